"""The part of ``docs/large-images.md`` on fewer keys: in clusters, and in cells of the grid."""

from pathlib import Path

from nerve_fast.bench.harness.words import seconds_in_words
from nerve_fast.config import GLOBAL_KEYS
from nerve_fast.utils.files import written_whole

KEYS = {
    "scene": "a tiny scene, with words",
    "photograph": "a photograph in DINOv2-S/14's features, with clicks",
}
"""Of the jobs that compare ways of grouping keys."""

FASTER, SAME = 40, 0.985
"""What clusters should reach at once: times faster than all keys, and share of equal labels."""


def compared(jobs: dict) -> list[tuple[dict, str]]:
    """Jobs that compare ways of grouping keys, as far as they have run, and what they are on."""
    named = ((jobs.get(f"keys, {name}"), what) for name, what in KEYS.items())
    return [(job, what) for job, what in named if job]


def bars_of_growth(seconds: dict) -> list[tuple]:
    """That of walks at two numbers of tokens, where they have run."""
    if not seconds:
        return []
    small, large = sorted(seconds, key=int)
    what = f"a walk at {int(large):,} tokens: times one at {int(small):,}"
    return [(what, seconds[large] / seconds[small], "<=", 20)]


def bars_of_keys(job: dict, what: str) -> list[tuple]:
    """Those of clusters beside all keys on one image."""
    every = job["rows"][0]
    few = [
        row for row in job["rows"] if row["grouping"] == "clusters" and row["keys"] <= GLOBAL_KEYS
    ]
    (default,) = (row for row in few if row["keys"] == GLOBAL_KEYS)
    fast = [row for row in few if every["seconds"] >= FASTER * row["seconds"]]
    best = max(fast, key=lambda row: row["agreement"], default=None)
    keys = f"{best['keys']:,} clusters, which are" if best else "no number of clusters is"
    of = f"{job['tokens']:,} tokens of {what}"
    same = "share of labels that are those with all keys"
    return [
        (f"{of}: {GLOBAL_KEYS:,} clusters, the default: {same}", default["agreement"], ">=", SAME),
        (
            f"{of}: {keys} {FASTER} times faster than all keys: {same}",
            best["agreement"] if best else 0,
            ">=",
            SAME,
        ),
    ]


def keys_table(job: dict, what: str) -> list[str]:
    """Keys, grouping, time, distance and equal labels on one image."""
    lines = [
        "",
        f"{job['tokens']:,} tokens of {what}:",
        "",
        "| | keys | time | times faster | distance | equal labels |",
        "|---|---|---|---|---|---|",
    ]
    for row in job["rows"]:
        off = "| |"
        if "error" in row:
            faster = job["rows"][0]["seconds"] / row["seconds"]
            off = f"{faster:.3g} | {row['error']:.2g} | {row['agreement']:.2%}"
        seconds = seconds_in_words(row["seconds"])
        lines.append(f"| {row['grouping']} | {row['keys']:,} | {seconds} | {off} |")
    return lines


def plot_keys(jobs: dict, path: Path) -> None:
    """Distance against keys for both ways of grouping them, where that has been measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = compared(jobs)
    if not found:
        return
    figure, axes = plt.subplots(
        1, len(found), figsize=(4.5 * len(found), 3.5), layout="constrained", squeeze=False
    )
    for axis, (job, what) in zip(axes[0], found, strict=True):
        for grouping in ("cells", "clusters"):
            rows = [row for row in job["rows"] if row["grouping"] == grouping]
            rows.sort(key=lambda row: row["keys"])
            axis.plot(
                [row["keys"] for row in rows],
                [row["error"] for row in rows],
                marker="o",
                label=grouping,
            )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("keys")
        axis.set_ylabel("distance from all keys, relative")
        axis.set_title(what, fontsize=9)
        axis.grid(alpha=0.3)
        axis.legend()
    with written_whole(path) as file:
        figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)

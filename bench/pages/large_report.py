"""``docs/large-images.md``: what is promised of large images and many, beside what was measured."""

from pathlib import Path

from nerve_fast.bench.harness.words import bytes_in_words, seconds_in_words
from nerve_fast.bench.pages.bars import Judged
from nerve_fast.bench.pages.dtypes_report import bars_of_dtypes, dtypes_section
from nerve_fast.bench.pages.keys_report import (
    KEYS,
    bars_of_growth,
    bars_of_keys,
    compared,
    keys_table,
    plot_keys,
)
from nerve_fast.bench.pages.shared_report import rows_table, shared_section
from nerve_fast.utils.files import written_whole

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parents[1] / "results" / "large"
PAGE = ROOT / "docs" / "large-images.md"
PICTURES = ROOT / "docs" / "plots"
README = ROOT / "README.md"
OPENS = "<!-- large: written by `python -m bench.large` -->\n"
CLOSES = "<!-- large: as far as here -->"
GRAPH_STAGE = ("entropy", "walk")
AFTER_NETWORKS = (*GRAPH_STAGE, "resampling")
"""Steps of the pipeline that no network takes; which networks there are depends on the graph."""


def render(document: dict) -> list[Judged]:
    """Write the page, its plot and the README's part; returns the bars, judged."""
    judged = bars(document["jobs"])
    with written_whole(PAGE) as path:
        path.write_text(page(document, judged), encoding="utf-8")
    with_part = within_readme(README.read_text(encoding="utf-8"), document)
    with written_whole(README) as path:
        path.write_text(with_part, encoding="utf-8")
    plot_keys(document["jobs"], PICTURES / "keys.png")
    return judged


def within_readme(text: str, document: dict) -> str:
    """The README with a large image in it, and what it took."""
    before, rest = text.split(OPENS)
    _, after = rest.split(CLOSES)
    jobs, machine = document["jobs"], document["machine"]
    shift, softmax = jobs["large shift"], jobs.get("large softmax")
    said = "The picture is the default normalisation's.\n\n"
    if softmax:
        said = (
            f"{in_minutes(softmax['seconds'])} and {bytes_in_words(softmax['process'])} with the "
            f"default normalisation, whose keys are in {softmax['keys']:,} clusters. {said}"
        )
    part = (
        "\n![a scene of 4096 × 4096 pixels, its labels, and a part of them]"
        "(docs/plots/large.png)\n\n"
        "A scene of 4096 × 4096 pixels, a million tokens, with the tiny models on "
        f"{machine['device']} with {machine['threads']} threads: {in_minutes(shift['seconds'])} "
        f"and {bytes_in_words(shift['process'])} (the whole process) with `shift`"
        f"{'; ' if softmax else '. '}{said}"
    )
    return before + OPENS + part + CLOSES + after


def in_minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def bars(jobs: dict) -> list[Judged]:
    """The promises of large images, by the results that they are judged from."""

    def share(steps):
        return sum(steps.get(name, 0) for name in GRAPH_STAGE) / steps["all"]

    shift = jobs["large shift"]
    turns, hundred, seams = jobs["fast against reference"], jobs["hundred"], jobs["seams"]
    memory = {name: jobs[f"memory, {name}"]["process"] for name in ("fast", "reference")}
    found = [
        ("tiny, 4096², shift: GB resident", shift["process"] / 1e9, "<=", 6),
        ("tiny, 4096², shift, no key pooled: minutes", shift["seconds"] / 60, "<=", 3),
        *bars_of_default(jobs.get("large softmax")),
        *(bar for job, what in compared(jobs) for bar in bars_of_keys(job, what)),
        *bars_of_growth(jobs.get("growth", {})),
        *bars_of_dtypes(jobs),
        (
            "SD 2.1 + ViT-L/14, bfloat16, 2048²: GB resident",
            jobs["full size 2048"]["process"] / 1e9,
            "<=",
            10,
        ),
        (
            "the same, 512²: times faster than the reference",
            turns["seconds"]["reference"] / turns["seconds"]["fast"],
            ">=",
            2,
        ),
        (
            "the same, 512²: share of the reference's memory",
            memory["fast"] / memory["reference"],
            "<=",
            1,
        ),
        ("the same, 512²: labels that are the reference's: share", turns["agreement"], ">=", 0.995),
        (
            "graph stage's share of the time, 512², default",
            share(jobs["full size 512, softmax"]["steps"]),
            "<=",
            0.05,
        ),
        ("the same, 512², shift", share(jobs["full size 512"]["steps"]), "<=", 0.05),
        ("the same, 2048², shift", share(jobs["full size 2048"]["steps"]), "<=", 0.05),
        (
            "100 images, tiny, 16 at a time: times faster than one by one",
            hundred["alone"] / hundred["together"],
            ">=",
            1.5,
        ),
        (
            "labels that tiles change: share near their borders over that elsewhere",
            seams["near"] / max(seams["elsewhere"], 1e-9),
            "<=",
            1.2,
        ),
    ]
    return [
        Judged(what, value, relation, bar, value >= bar if relation == ">=" else value <= bar)
        for what, value, relation, bar in found
    ]


def bars_of_default(job: dict | None) -> list[tuple]:
    """Those of the default normalisation on a very large image, where that has run."""
    if not job:
        return []
    return [
        ("tiny, 4096², default: GB resident", job["process"] / 1e9, "<=", 6),
        ("tiny, 4096², default: minutes", job["seconds"] / 60, "<=", 3),
    ]


def reasons(jobs: dict, judged: list[Judged]) -> list[str]:
    """Return the reasons why bars are missed, as far as they are known."""
    steps, turns = jobs["full size 512, softmax"]["steps"], jobs["fast against reference"]
    networks = sum(
        seconds for name, seconds in steps.items() if name not in ("all", *AFTER_NETWORKS)
    )
    known = {
        "the same, 512²: times faster": "the networks are the same in both and take "
        f"{seconds_in_words(networks)}; with no graph stage at all it would be "
        f"{turns['seconds']['reference'] / networks:.3g}.",
        "100 images": "batches make the networks faster; entropies, walk and resampling are each "
        "image's own.",
    }
    return [
        f"- Missed: {bar.what}: {reason}"
        for bar in judged
        for what, reason in known.items()
        if not bar.met and bar.what.startswith(what)
    ]


def page(document: dict, judged: list[Judged]) -> str:
    """The whole of it, as text."""
    jobs, machine = document["jobs"], document["machine"]
    lines = [
        "# Large images, and many",
        "",
        "Written by `python -m bench.large`; nothing here is typed by hand. "
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}; measured at "
        f"commit {' and '.join(sorted(set(document['commits'].values())))}. Every job ran in a "
        "process of its own; resident memory is that of the whole process.",
        "",
        "| | measured | bar | |",
        "|---|---|---|---|",
    ]
    for bar in judged:
        verdict = "met" if bar.met else "**missed**"
        lines.append(f"| {bar.what} | {bar.value:.3g} | {bar.relation} {bar.bar:g} | {verdict} |")
    lines += ["", *reasons(jobs, judged), "", "## One image of 4096 × 4096", ""]
    for name in (name for name in ("shift", "softmax") if f"large {name}" in jobs):
        job = jobs[f"large {name}"]
        lines.append(
            f"- `{name}`: {seconds_in_words(job['seconds'])}, {bytes_in_words(job['process'])} "
            f"resident: {job['plan']}."
        )
    lines += [
        "",
        "![image, labels, and a part of them](plots/large.png)",
        "",
        "## Fewer keys",
        "",
        "The default normalisation, all tokens as queries, with keys grouped by what they are "
        "(clusters, as the package does) and by where they lie (cells of 2 × 2, 4 × 4, … tokens, "
        "here for comparison alone). Distance is that of the walked prior from that with all keys, "
        "relative; times are of grouping and walk, in one process. Head entropies are from 1024 "
        "rows in all.",
    ]
    for job, what in compared(jobs):
        lines += keys_table(job, what)
    rows = jobs["entropy rows"]
    pictures = ["![distance against keys](plots/keys.png)"] * bool(compared(jobs))
    wanted = ("large softmax", *(f"keys, {name}" for name in KEYS), "growth")
    missing = [name for name in wanted if name not in jobs]
    said = [f"Not measured on this state: {'; '.join(missing)}."] if missing else []
    lines += [
        "",
        *pictures,
        *said,
        "",
        f"Head entropies from 1024 rows of {rows['tokens']:,}: {rows['agreement']:.3%} of labels "
        "are those with all rows.",
        *rows_table(jobs.get("rows")),
        "",
        *shared_section(jobs.get("shared memory"), jobs.get("shared prediction")),
        *dtypes_section(jobs),
        "## Where the time goes",
        "",
        "SD 2.1 and ViT-L/14 with random weights in bfloat16, warm, seconds.",
        "",
    ]
    steps = {
        "512², softmax": jobs["full size 512, softmax"]["steps"],
        "512², shift": jobs["full size 512"]["steps"],
        "2048², shift": jobs["full size 2048"]["steps"],
    }
    names = list(next(iter(steps.values())))
    lines.append("| | " + " | ".join(names) + " |")
    lines.append("|---" * (len(names) + 1) + "|")
    for what, found in steps.items():
        lines.append(f"| {what} | " + " | ".join(f"{found[name]:.2f}" for name in names) + " |")
    seams, hundred = jobs["seams"], jobs["hundred"]
    turns = jobs["fast against reference"]["seconds"]
    lines += [
        "",
        "512², softmax, in turns: "
        + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in turns.items())
        + ". The reference is the dense graph stage in float32, after networks laid out as "
        "diffusers gives them.",
        "",
        f"100 images one by one take {seconds_in_words(hundred['alone'])}, 16 at a time "
        f"{seconds_in_words(hundred['together'])}; {hundred['agreement']:.3%} of labels are equal.",
        "",
        "## Seams",
        "",
        f"{seams['scenes']} scenes of 1024 × 1024 in tiles and whole, CLIP seeing the same: "
        f"{seams['near']:.2%} of labels differ within 16 pixels of a tile's border, "
        f"{seams['elsewhere']:.2%} elsewhere. "
        "Whole, in tiles, and where they differ (red; borders grey):",
        "",
        "![whole, in tiles, difference](plots/seams.png)",
        "",
    ]
    return "\n".join(lines)

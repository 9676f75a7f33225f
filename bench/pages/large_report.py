"""``docs/large-images.md``: what is promised of large images and many, beside what was measured."""

import json
from pathlib import Path

from nerve_fast.bench.harness.words import bytes_in_words, seconds_in_words
from nerve_fast.bench.pages.bars import Judged
from nerve_fast.bench.pages.dtypes_report import FULL_SIZE, bars_of_dtypes, dtypes_section
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
NEEDED = {
    "large shift",
    "entropy rows",
    "full size 2048",
    "full size 512",
    "full size 512, softmax",
    "memory, fast",
    "memory, reference",
    "fast against reference",
    "hundred",
    "seams",
}
"""Jobs that the page cannot do without; others need many minutes, or files, and it says so."""

GRAPH_STAGE = ("entropy", "walk")
AFTER_NETWORKS = (*GRAPH_STAGE, "resampling")
"""Steps of the pipeline that no network takes; which networks there are depends on the graph."""


def documents() -> list[dict]:
    """The results of every machine that has all that must be, that measured last first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json")]
    whole = [one for one in found if one["jobs"].keys() >= NEEDED]
    return sorted(whole, key=lambda one: one["machine"]["date"], reverse=True)


def render() -> list[Judged]:
    """Write the page, its plot and the README's part; returns the last machine's bars, judged."""
    found = documents()
    document = found[0]
    with written_whole(PAGE) as path:
        path.write_text(page(found), encoding="utf-8")
    with_part = within_readme(README.read_text(encoding="utf-8"), document)
    with written_whole(README) as path:
        path.write_text(with_part, encoding="utf-8")
    plot_keys(document["jobs"], PICTURES / "keys.png")
    return bars(document)


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


def default_dtype(document: dict) -> str:
    """Of networks, on the machine of these results."""
    return "bfloat16" if document["machine"]["bfloat16_products"] else "float32"


def bars(document: dict) -> list[Judged]:
    """The promises of large images, by the results of a machine, where all that must run has."""
    jobs = document["jobs"]

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
        *bars_of_dtypes(jobs, default_dtype(document)),
        (
            f"{FULL_SIZE}, 2048²: GB resident",
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


def reasons(document: dict, judged: list[Judged]) -> list[str]:
    """Return the reasons why bars are missed, as far as they are known."""
    known = {
        "the same, 512²: times faster": why_not_faster,
        "100 images": why_not_faster_together,
    }
    found = {what: why(document) for what, why in known.items()}
    return [
        f"- Missed: {bar.what}: {reason}"
        for bar in judged
        for what, reason in found.items()
        if reason and not bar.met and bar.what.startswith(what)
    ]


def why_not_faster(document: dict) -> str | None:
    """Of one image, against the reference; older results do not say."""
    seconds = document["jobs"]["fast against reference"]["seconds"]
    networks = seconds.get("networks alone")
    if networks is None:
        return None
    return (
        f"the networks are the same in both and take {seconds_in_words(networks)} in these turns; "
        f"with no graph stage at all it would be {seconds['reference'] / networks:.3g}."
    )


def why_not_faster_together(document: dict) -> str | None:
    """Of many images, against one by one; older results do not say."""
    steps = document["jobs"]["hundred"].get("steps")
    if steps is None:
        return None

    def parts(steps):
        after = sum(steps.get(name, 0) for name in AFTER_NETWORKS)
        networks = sum(steps.values()) - steps["all"] - after
        return f"{seconds_in_words(networks)} of {seconds_in_words(steps['all'])}"

    return (
        f"the networks take {parts(steps['alone'])} one by one and {parts(steps['together'])} in "
        "batches; of the rest an image alone has all cores for its entropies and its walk too."
    )


def bars_table(documents: list[dict]) -> list[str]:
    """Every bar on every machine; which bars there are depends on what is found."""
    judged = [{bar.what: bar for bar in bars(document)} for document in documents]
    every = {what: bar for found in judged for what, bar in found.items()}
    names = [document["machine"]["device"] for document in documents]
    lines = ["| | bar | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for what, bar in every.items():
        cells = [
            f"{found[what].value:.3g}" + ", **missed**" * (not found[what].met)
            if what in found
            else "–"
            for found in judged
        ]
        lines.append(f"| {what} | {bar.relation} {bar.bar:g} | " + " | ".join(cells) + " |")
    return lines


def page(documents: list[dict]) -> str:
    """The whole of it, as text: every machine's bars, and what was found on the first."""
    document = documents[0]
    jobs, machine = document["jobs"], document["machine"]
    measured = [
        f"{one['machine']['device']}, {one['machine']['threads']} threads, torch "
        f"{one['machine']['torch']}, at commit {' and '.join(sorted(set(one['commits'].values())))}"
        for one in documents
    ]
    lines = [
        "# Large images, and many",
        "",
        "Written by `python -m bench.large`; nothing here is typed by hand. Measured on "
        f"{'; on '.join(measured)}. Every job ran in a process of its own; resident memory is that "
        "of the whole process.",
        "",
        *bars_table(documents),
        "",
        *reasons(document, bars(document)),
        "",
        f"All that follows is of the {machine['device']}.",
        "",
        "## One image of 4096 × 4096",
        "",
    ]
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
        *dtypes_section(jobs, default_dtype(document)),
        "## Where the time goes",
        "",
        f"{FULL_SIZE} with random weights in {default_dtype(document)}, warm, seconds.",
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

"""Networks in bfloat16 on ``docs/large-images.md``."""

FULL_SIZE = "SD 2.1 + ViT-L/14"

KINDS = {
    "scenes": "scenes of the tiny world, its words and models",
    "photographs": "photographs, clicks on the features of a DINOv2-S/14",
}


def bars_of_dtypes(jobs: dict, default: str) -> list[tuple]:
    """Labels that are float32's, and the time, where they have been measured.

    ``default`` is the dtype that networks have on that machine: the other one must be slower.
    """
    found: list[tuple] = [
        (
            f"networks in bfloat16, {kind}: labels that are float32's: share",
            jobs[f"bfloat16, {kind}"]["all"],
            ">=",
            0.995,
        )
        for kind in KINDS
        if f"bfloat16, {kind}" in jobs
    ]
    seconds = jobs.get("bfloat16, seconds")
    if seconds:
        (other,) = set(seconds) - {default}
        what = f"{FULL_SIZE}, 512²: times faster in {default}, its default, than in {other}"
        faster = seconds[other] / seconds[default]
        found.append((what, faster, ">=", {"bfloat16": 2, "float32": 1}[default]))
    return found


def dtypes_section(jobs: dict, default: str) -> list[str]:
    """What the default dtype of networks on such a CPU rests on."""
    lines = [
        "## Networks in bfloat16",
        "",
        "On a CPU that is faster in bfloat16 the networks run in it, unless `dtype` says "
        "otherwise; queries and keys come to the walk in float32. Labels that are those of "
        "networks in float32:",
        "",
        "| | images | of all pixels | of the worst image |",
        "|---|---|---|---|",
    ]
    measured = {kind: jobs.get(f"bfloat16, {kind}") for kind in KINDS}
    for kind, found in measured.items():
        if found:
            lines.append(
                f"| {KINDS[kind]} | {len(found['each'])} | {found['all']:.2%} | "
                f"{found['least']:.2%} |"
            )
    missing = [kind for kind, found in measured.items() if not found]
    if missing:
        lines += ["", f"Not measured on this state: {', '.join(missing)}."]
    seconds = jobs.get("bfloat16, seconds")
    if seconds:
        lines += [
            "",
            f"Encoding 512 × 512 pixels by SD 2.1 and ViT-L/14 takes {seconds['float32']:.2f} s in "
            f"float32 and {seconds['bfloat16']:.2f} s in bfloat16 here, where {default} is the "
            "default.",
        ]
    return [*lines, ""]

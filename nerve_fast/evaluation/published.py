"""Table 1 as it was published, CLIPer's own figures beside it, and what makes each row here."""

from collections.abc import Iterable, Sequence

from nerve_fast.datasets.layouts import LAYOUTS
from nerve_fast.evaluation.ablation.ablations import PUBLISHED
from nerve_fast.evaluation.differences import method_of, postprocessed
from nerve_fast.evaluation.presets import datasets_of

COLUMNS = {dataset: column for column, dataset in PUBLISHED["table1"]["columns"].items()}
"""The slides' short names, by data set."""

EIGHTH = "cityscapes"
"""The data set that some of the slides' averages count and none of their columns shows."""

MADE_BY = {
    ("CLIP", False): ("clip", ""),
    ("MaskCLIP", False): ("maskclip", ""),
    ("GroupViT", False): ("groupvit", ""),
    ("CLIP-DIY", False): ("clip-diy", "--prior-network found=decoder_weights.pt"),
    ("GEM", False): ("gem", ""),
    ("SCLIP", False): ("sclip", ""),
    ("PixelCLIP", False): ("pixelclip", "--prior-network weights=pixelclip_vit_base.pth"),
    ("NACLIP", False): ("naclip", "--refiner none"),
    ("iSeg", False): ("iseg", ""),
    ("NERVE", False): ("nerve", ""),
    ("CLIPer", False): ("cliper", ""),
    ("CLIPer + diffusion", False): ("cliper-diffusion", ""),
    ("SCLIP", True): ("sclip", "--refiner pamr"),
    ("ClearCLIP", True): ("clearclip-l14", ""),
    ("ProxyCLIP", True): ("proxyclip-l14", ""),
    ("OVDiff", True): ("ovdiff", "--refiner pamr"),
    ("CaR", True): ("car", ""),
    ("NACLIP", True): ("naclip", ""),
}
"""The preset and the flags that a row is measured with, by its method and post-processing."""

PRESENT = ("CLIPer", "CLIPer + diffusion", "CaR", "iSeg")
"""Methods whose published figures are means over the classes of the truth alone."""


def rows() -> list[dict]:
    """Return the slides' rows in their order, CLIPer's own ones after NERVE's."""
    found = []
    for row in PUBLISHED["table1"]["rows"]:
        found.append(row)
        if row["method"] == "NERVE":
            found += PUBLISHED["beside"]["rows"]
    return found


def counterpart(run: dict) -> dict | None:
    """Return the published row of a run, preferably post-processed as the run is."""
    same = [published for published in rows() if published["method"] == method_of(run)]
    alike = [published for published in same if published["postprocessed"] == postprocessed(run)]
    return next(iter(alike or same), None)


def average_of_seven(row: dict) -> float | None:
    """Return the mean of a row's seven figures, in %; ``None`` where one is missing."""
    return mean(row["miou"])


def average_of_eight(row: dict) -> float | None:
    """Return the mean of a row with Cityscapes, in %, as far as it was published."""
    if row.get("average_of") == 8:
        return row["average"]
    return mean([*row["miou"], row.get(EIGHTH)])


def unset(row: dict) -> list[str]:
    """Return the columns of which a row has a figure and its preset no settings."""
    preset, _ = MADE_BY[row["method"], row["postprocessed"]]
    known = datasets_of(preset) or LAYOUTS
    return [
        column
        for (dataset, column), figure in zip(COLUMNS.items(), row["miou"], strict=True)
        if figure is not None and dataset not in known
    ]


def command_of(row: dict, measured: Iterable[str]) -> str:
    """Return the command that measures what of a row was not measured.

    Of a row that has no figure on any data set that its preset has settings for, it is that of
    those data sets.

    Args:
        row: of :func:`rows`.
        measured: the data sets that are there.

    Returns:
        A line of shell; ``""`` where nothing is missing.
    """
    preset, flags = MADE_BY[row["method"], row["postprocessed"]]
    figures = dict(zip(COLUMNS, row["miou"], strict=True))
    figures[EIGHTH] = row.get(EIGHTH, row["average"] if row.get("average_of") == 8 else None)
    known = [
        dataset
        for dataset in LAYOUTS
        if dataset in (datasets_of(preset) or LAYOUTS) and dataset not in of_another(row)
    ]
    runs = [dataset for dataset in known if figures.get(dataset) is not None] or known
    runs = [dataset for dataset in runs if dataset not in measured]
    if not runs:
        return ""
    one = runs[0] if len(runs) == 1 else "$set"
    words = ["nerve-fast evaluate", f"--dataset {one}", f"--root ROOTS/{one}", f"--preset {preset}"]
    line = " ".join([*words, flags] if flags else words)
    return line if len(runs) == 1 else f"for set in {' '.join(runs)}; do {line}; done"


def of_another(row: dict) -> dict[str, str]:
    """Return the data sets whose figure in a row is of a network that no preset has, and which."""
    return row.get("of_another", {})


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, or ``None`` where a value is ``None``."""
    known = [value for value in values if value is not None]
    return None if len(known) < len(values) else sum(known) / len(known)

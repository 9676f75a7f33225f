"""Files of a result: what ``nerve-fast segment`` writes, each format in one file."""

import zipfile
from collections.abc import Callable
from pathlib import Path

from nerve_fast.app.result import Result
from nerve_fast.errors import InputError, check_choice
from nerve_fast.imaging import exports, visualize
from nerve_fast.imaging.exports import EXPORTS
from nerve_fast.utils.text import shortened

TOLERANCE = 1.0
"""Of exported outlines, in pixels, as the command line has it."""


def _label_map(result: Result, folder: Path, stem: str) -> None:
    result.out.save(folder / f"{stem}.labels.png")


def _overlay(result: Result, folder: Path, stem: str) -> None:
    visualize.save_picture(result.out.overlay(), folder / f"{stem}.overlay.png")


def _heat_maps(result: Result, folder: Path, stem: str) -> None:
    out = result.out
    picture = visualize.heat_maps(out.image, out.walked.numpy(), out.labels)
    visualize.save_picture(picture, folder / f"{stem}.heatmaps.png")


def _steps(result: Result, folder: Path, stem: str) -> None:
    out = result.out
    steps = {step: result.maps(step).numpy() for step in visualize.strip_stages(result.last)}
    picture = visualize.steps_strip(out.image, out.prior.numpy(), steps, out.labels)
    visualize.save_picture(picture, folder / f"{stem}.steps.png")


def _arrays(result: Result, folder: Path, stem: str) -> None:
    result.out.save(folder / f"{stem}.npz")


OWN: dict[str, tuple[str, Callable[[Result, Path, str], None]]] = {
    "png": ("label map, PNG", _label_map),
    "overlay": ("overlay with legend, PNG", _overlay),
    "heatmaps": ("heat maps, PNG", _heat_maps),
    "steps": ("steps of the walk, PNG", _steps),
    "npz": ("probabilities, npz", _arrays),
}
"""Formats besides the exports: what is said of them, and what writes their file."""

ALL = "all"


def formats() -> dict[str, str]:
    """The formats that can be written here, and what is said of them."""
    found = {name: about for name, (about, _) in OWN.items()}
    for name, export in EXPORTS.items():
        try:
            exports.need(*export.needs)
        except InputError:
            continue
        found[name] = {"csv": "areas and confidences, CSV"}.get(name, f"{name}: {export.about}")
    return {**found, ALL: "all of them, zip"}


def write(result: Result, name: str, folder: Path) -> Path:
    """Write a result in a format; what is more than one file is put in a zip.

    Args:
        result: of a session.
        name: one of :func:`formats`.
        folder: empty.

    Raises:
        InputError: there is no such format, its place cannot be written, or it has no place for the
            labels.
    """
    known = formats()
    check_choice("format", name, known)
    stem = _stem(result.name)
    parts = folder / "parts"
    parts.mkdir()
    for one in [one for one in known if one != ALL] if name == ALL else [name]:
        if one in OWN:
            OWN[one][1](result, parts, stem)
        else:
            _export(result, one, parts, stem)
    files = sorted(path for path in parts.rglob("*") if path.is_file())
    if len(files) == 1 and files[0].parent == parts:
        return files[0].rename(folder / files[0].name)
    packed = folder / f"{stem}.{name}.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, path.relative_to(parts).as_posix())
            path.unlink()
    return packed


def _export(result: Result, name: str, folder: Path, stem: str) -> None:
    export, labels = EXPORTS[name], list(result.out.labels)
    export.check(labels)
    one = result.out.labelled(result.name, stem)
    if export.write_image is not None:
        export.write_image(one, folder, TOLERANCE)
    if export.write_run is not None:
        export.write_run(folder, labels, [one])


def _stem(name: str) -> str:
    """The stem of an uploaded file's name, of letters, digits, hyphens and underscores."""
    kept = "".join(c if c.isalnum() or c in "-_" else "_" for c in Path(name).stem)
    return shortened(kept, 60) or "image"

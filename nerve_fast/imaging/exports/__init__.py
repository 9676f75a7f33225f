"""The formats that results are exported to: one file a format, and the table of them."""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nerve_fast.errors import InputError, check_choice
from nerve_fast.imaging.exports import areas, coco, masks, polygons, voc
from nerve_fast.imaging.exports.labelled import Labelled
from nerve_fast.imaging.visualize import PNG_MARK

__all__ = ["EXPORTS", "Export", "Labelled", "check", "need"]


@dataclasses.dataclass(frozen=True)
class Export:
    """A format.

    Attributes:
        about: what is written, for the help.
        write_image: writes an image's files into the output folder and returns their paths; given
            the tolerance of outlines too.
        places: names of an image's files, or of a folder that holds them, with the mark that they
            have, by its stem.
        write_run: writes what all images of a run share, from the labels and the images.
        files: the paths that this writes, in the order of writing, the first with its mark.
        needs: modules of the extra ``exports``.
        check: refuses labels that the format has no place for.
    """

    about: str
    write_image: Callable[[Labelled, Path, float], list[Path]] | None = None
    places: Callable[[str], dict[str, bytes]] = lambda stem: {}
    write_run: Callable[[Path, Sequence[str], Iterable[Labelled]], None] | None = None
    files: tuple[str, ...] = ()
    mark: bytes = b""
    needs: tuple[str, ...] = ()
    check: Callable[[Sequence[str]], None] = lambda labels: None


EXPORTS = {
    "coco": Export(
        "coco.json with run lengths",
        write_run=coco.write,
        files=(coco.FILE,),
        mark=coco.MARK,
        needs=("pycocotools",),
    ),
    "polygons": Export(
        "NAME.polygons.json",
        write_image=polygons.write,
        places=lambda stem: {polygons.file_of(stem): polygons.MARK},
        needs=("shapely",),
    ),
    "masks": Export(
        "NAME.masks/, a PNG a label",
        write_image=masks.write,
        places=lambda stem: {masks.folder_of(stem): PNG_MARK},
    ),
    "voc": Export(
        "voc/ as VOC and CVAT have it",
        write_image=voc.write_image,
        places=lambda stem: {voc.mask_of(stem): PNG_MARK},
        write_run=voc.write,
        files=(voc.LABEL_MAP, voc.IMAGES),
        mark=voc.MARK,
        check=voc.check,
    ),
    "csv": Export(
        "areas.csv with areas and confidences",
        write_run=areas.write,
        files=(areas.FILE,),
        mark=areas.MARK,
    ),
}
"""The formats by name."""


def check(names: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse formats that there are not, or that the labels do not fit.

    Raises:
        InputError: which, and what would be right.
    """
    for name in names:
        check_choice("export", name, EXPORTS)
        need(*EXPORTS[name].needs)
        EXPORTS[name].check(labels)


def need(*modules: str) -> None:
    """Raise an :class:`InputError` where a module of the extra ``exports`` is not installed."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise InputError(f'{name} is not installed; get it: pip install "nerve-fast[exports]"')

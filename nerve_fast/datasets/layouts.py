"""The layouts of published data sets on disk, which are those of mmsegmentation."""

import dataclasses
from pathlib import Path

from nerve_fast.datasets.dataset import Sample
from nerve_fast.errors import InputError


@dataclasses.dataclass(frozen=True)
class Layout:
    """Folders and endings of a data set, below its root.

    Attributes:
        images: folder of the images, which may lie in folders of their own.
        masks: folder of the masks, in the same folders and named alike.
        endings: that make a sample's name its image's file and its mask's.
        size: number of images that was published.
        list_file: names the samples, one a line; without it all images are samples.
        homes: folders below the root that may hold all of this.
        reduce_zero_label: of the masks 0 is not counted and ``n`` is class ``n − 1``.
        advice: what makes the masks.
    """

    images: str
    masks: str
    endings: tuple[str, str]
    size: int
    list_file: str | None = None
    homes: tuple[str, ...] = ()
    reduce_zero_label: bool = False
    advice: str = ""


_VOC = Layout(
    images="JPEGImages",
    masks="SegmentationClass",
    endings=(".jpg", ".png"),
    size=1449,
    list_file="ImageSets/Segmentation/val.txt",
    homes=("VOC2012", "VOCdevkit/VOC2012"),
)
_CONTEXT = Layout(
    images="JPEGImages",
    masks="SegmentationClassContext",
    endings=(".jpg", ".png"),
    size=5104,
    list_file="ImageSets/SegmentationContext/val.txt",
    homes=("VOC2010", "VOCdevkit/VOC2010"),
    advice="mmsegmentation's tools/dataset_converters/pascal_context.py makes it",
)
LAYOUTS = {
    "voc21": _VOC,
    "voc20": dataclasses.replace(_VOC, reduce_zero_label=True),
    "pc60": _CONTEXT,
    "pc59": dataclasses.replace(_CONTEXT, reduce_zero_label=True),
    "coco-object": Layout(
        images="images/val2017",
        masks="annotations/val2017",
        endings=(".jpg", "_instanceTrainIds.png"),
        size=5000,
        advice="`nerve-fast data coco-object ROOT` makes it",
    ),
    "coco-stuff": Layout(
        images="images/val2017",
        masks="annotations/val2017",
        endings=(".jpg", "_labelTrainIds.png"),
        size=5000,
        advice="mmsegmentation's tools/dataset_converters/coco_stuff164k.py makes it",
    ),
    "ade20k": Layout(
        images="images/validation",
        masks="annotations/validation",
        endings=(".jpg", ".png"),
        size=2000,
        homes=("ADEChallengeData2016",),
        reduce_zero_label=True,
    ),
    "cityscapes": Layout(
        images="leftImg8bit/val",
        masks="gtFine/val",
        endings=("_leftImg8bit.png", "_gtFine_labelTrainIds.png"),
        size=500,
        advice="cityscapesScripts' csCreateTrainIdLabelImgs makes it",
    ),
}


def samples_of(layout: Layout, root: Path) -> tuple[Sample, ...]:
    """List the samples of a layout, in the order of its list or by path; no image is opened.

    Raises:
        InputError: a folder or the list is missing, or a name stands twice, or there is none.
    """
    home = _home(layout, root)
    images, masks = home / layout.images, home / layout.masks
    if not masks.is_dir():
        advice = f"; {layout.advice}" if layout.advice else ""
        raise InputError(f"{masks}: no such folder; expected the masks there{advice}")
    image_ending, mask_ending = layout.endings
    if layout.list_file:
        source = home / layout.list_file
        names = [name for line in lines_of(source) if (name := line.strip())]
    else:
        source = images
        names = [
            path.relative_to(images).as_posix().removesuffix(image_ending)
            for path in sorted(images.rglob(f"*{image_ending}"))
            if not path.name.startswith(".")
        ]
    if not names:
        raise InputError(f"{source}: names no image; expected *{image_ending}")
    samples = tuple(
        Sample(Path(name).name, images / (name + image_ending), masks / (name + mask_ending))
        for name in names
    )
    check_unique(samples, source)
    return samples


def _home(layout: Layout, root: Path) -> Path:
    """Return the root itself, or the one folder below it that holds the images."""
    if (root / layout.images).is_dir():
        return root
    homes = [root / home for home in layout.homes if (root / home / layout.images).is_dir()]
    if len(homes) > 1:
        raise InputError(f"{root}: both {homes[0]} and {homes[1]} fit; name one of them")
    if not homes:
        raise InputError(f"{root / layout.images}: no such folder; expected the images there")
    return homes[0]


def lines_of(path: Path) -> list[str]:
    """Read the lines of a text file.

    Raises:
        InputError: the file is missing, or is not a text in UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise InputError(f"{path}: not a text, it holds a null character")
        return text.splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text in UTF-8") from None


def check_unique(samples: tuple[Sample, ...], source: Path) -> None:
    """Raise an :class:`InputError` where two samples have one name."""
    seen: dict[str, Path] = {}
    for sample in samples:
        if sample.name in seen:
            raise InputError(
                f"{source}: two images are named {sample.name}, {seen[sample.name]} and "
                f"{sample.image}"
            )
        seen[sample.name] = sample.image

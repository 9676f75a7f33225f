"""One user's image, clicks and result: what the page does, without the page."""

import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from PIL import Image

from nerve_fast.app.result import Asked, Click, Result
from nerve_fast.app.settings import AppSettings, check_steps
from nerve_fast.certainty import Certainty
from nerve_fast.errors import InputError
from nerve_fast.imaging.decoding import opened_file, reading, undecoded
from nerve_fast.imaging.images import load_image
from nerve_fast.pipeline import ImageFeatures, NervePipeline, SegmentationOutput
from nerve_fast.priors.seeds import Seeds
from nerve_fast.utils.files import shown
from nerve_fast.utils.labels import number_of
from nerve_fast.utils.text import plain

MOST_PIXELS = 50_000_000
"""The largest upload that is decoded, which takes up to 12 bytes a pixel."""

LONGEST_SIDE = 1536
"""An image is segmented and shown at most so long, in pixels, so that changes are seen at once."""

MOST_LABELS = 64
MOST_CLICKS = 1_000
LONGEST_WORDS = 4_000
"""Bounds of what one user may ask for; the last in characters."""


PICTURES = 4
"""Files of the latest pictures that a session keeps, as browsers may still fetch them."""

SMALL = 1 << 20
"""Pixels of a picture that is kept without loss."""


class Session:
    """What one open page has: an image, clicks, and the latest result.

    Args:
        pipe: shared by all sessions, one of which uses it at a time.
        settings: of the app.
        folder: for the pictures and files of this session; made when it is needed.
    """

    def __init__(self, pipe: NervePipeline, settings: AppSettings, folder: Path):
        self.folder = folder
        self.name = ""
        self.note = ""
        self.clicks: list[Click] = []
        self.tuned = False
        self.result: Result | None = None
        self.closed = False
        self._pipe = pipe
        self._settings = settings
        self._features: ImageFeatures | None = None
        self._pictures: list[Path] = []

    @property
    def image(self) -> Image.Image | None:
        """The image as it is segmented, RGB."""
        return None if self._features is None else self._features.image

    def open(self, image: str | os.PathLike | Image.Image, name: str = "") -> None:
        """Take another image, and run the networks on it; its clicks and result start anew.

        Raises:
            InputError: it cannot be read or is too large; the image before it stays.
        """
        name = plain(name or ("" if isinstance(image, Image.Image) else Path(image).name))
        whole = image if isinstance(image, Image.Image) else read_upload(image, name)
        size, taken = whole.size, whole
        if max(size) > LONGEST_SIDE:
            # A copy, as that of an example is shared.
            taken = whole.copy()
            taken.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        settings = self._settings
        self._features = cast(
            ImageFeatures,
            self._pipe.encode(
                taken,
                processing_resolution=settings.resolution,
                generator=torch.Generator().manual_seed(settings.models.seed),
                max_memory=settings.max_memory,
                tile=settings.tile,
                overlap=settings.overlap,
            ),
        )
        self.name, self.clicks, self.result = name, [], None
        self.note = f"{name}: {size[0]} × {size[1]} pixels"
        if taken.size != size:
            self.note += (
                f", shown and segmented at {taken.width} × {taken.height}; `nerve-fast segment` "
                "takes all of them"
            )

    def click(self, label: str, x: float, y: float) -> None:
        """Say what is at a place; what was said of the same pixel before is forgotten.

        Raises:
            InputError: there is no image, no label, or no room for more.
        """
        width, height = self._opened().image.size
        label = " ".join(label.split())
        if not label:
            raise InputError("the click has no label; write one beside the picture, then click")
        if len(label) > 200:
            raise InputError("the label of the click is too long; expected at most 200 characters")
        # At the right edge a browser may round up.
        place = (min(max(int(x), 0), width - 1), min(max(int(y), 0), height - 1))
        kept = [click for click in self.clicks if click[1:] != place]
        if len(kept) >= MOST_CLICKS:
            raise InputError(f"there are {len(kept)} clicks; expected at most {MOST_CLICKS}")
        self.clicks = [*kept, Click(label, *place)]

    def labels(self, words: str) -> list[str]:
        """The labels of the words, then those that only clicks have."""
        classes = words_of(words)
        return list(dict.fromkeys([*classes, *self._points(classes)]))

    def segment(self, asked: Asked) -> Result | None:
        """Walk from the words and clicks; no network but the text encoder runs.

        Returns:
            The result, which :attr:`result` holds too; ``None`` where there are neither.

        Raises:
            InputError: there is no image, or a value is not usable; the result before it stays.
        """
        features = self._opened()
        classes = words_of(asked.words)
        points = self._points(classes)
        if not (classes or points):
            self.result = None
            return None
        if len({*classes, *points}) > MOST_LABELS:
            raise InputError(
                f"there are {len({*classes, *points})} labels; expected at most {MOST_LABELS} on "
                "this page: `nerve-fast segment` takes more"
            )
        config = asked.config or self._settings.config_for(words=bool(classes))
        check_steps(config.steps)
        certainty = Certainty(asked.threshold or None)
        settings = self._settings
        out = self._pipe(
            features,
            classes or None,
            points=points or None,
            config=config,
            processing_resolution=settings.resolution,
            return_steps=range(1, cast(int, config.steps)),
            max_memory=settings.max_memory,
            global_keys=settings.global_keys,
            max_key_error=settings.max_key_error,
            tile=settings.tile,
            overlap=settings.overlap,
            threshold=certainty.threshold,
        )
        seeds = Seeds.of(features.image.size, points=points or None)
        self.result = Result(self.name, cast(SegmentationOutput, out), seeds, certainty, config)
        return self.result

    def keep(self, picture: Image.Image) -> Path:
        """Write a picture for the browser: a small one as PNG, another as JPEG.

        Each has a name of its own, so that a browser takes none for another; the latest few stay.
        """
        folder = self._folder()
        while len(self._pictures) >= PICTURES:
            self._pictures.pop(0).unlink(missing_ok=True)
        small = picture.width * picture.height <= SMALL
        path = folder / (secrets.token_urlsafe(6) + (".png" if small else ".jpg"))
        if small:
            picture.save(path, compress_level=1)
        else:
            picture.save(path, quality=90, subsampling=0)
        self._pictures.append(path)
        return path

    def empty_folder(self) -> Path:
        """A folder for files to download, in place of the one before."""
        folder = self._folder() / "download"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def _folder(self) -> Path:
        if self.closed:
            raise InputError("the page was closed")
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder

    def close(self) -> None:
        """Let go of everything; what is on disk is removed."""
        self.closed = True
        self._features = self.result = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _opened(self) -> ImageFeatures:
        if self._features is None:
            raise InputError("there is no image; drop one, or take one of the examples")
        return self._features

    def _points(self, classes: Sequence[str]) -> Mapping[str, list[tuple[int, int]]]:
        """The clicks by label; one of a synonym is of its class."""
        points: dict[str, list[tuple[int, int]]] = {}
        for click in self.clicks:
            number = number_of(click.label, classes)
            label = click.label if number is None else classes[number]
            points.setdefault(label, []).append((click.x, click.y))
        return points


def words_of(text: str) -> list[str]:
    """The classes of the page's line of words: ``"cat, kitten; dog"`` are two.

    Raises:
        InputError: the text is too long.
    """
    if len(text) > LONGEST_WORDS:
        raise InputError(
            f"the words have {len(text)} characters; expected at most {LONGEST_WORDS} on this page"
        )
    return [part.strip() for part in re.split(r"[;\n]", text) if part.strip()]


def read_upload(path: str | os.PathLike, name: str) -> Image.Image:
    """An uploaded image, upright and in RGB, refused from its header where it is too large.

    Raises:
        InputError: it cannot be read, or has more than :data:`MOST_PIXELS` pixels; the message has
            the user's name of it, and no path of this machine.
    """
    try:
        with opened_file(path) as file, reading(shown(path)):
            width, height = undecoded(file).size
        if width * height > MOST_PIXELS:
            raise InputError(
                f"{name}: has {width} × {height} pixels, {width * height / 1e6:.0f} million; this "
                f"page takes up to {MOST_PIXELS / 1e6:.0f} million: make it smaller, or use "
                "`nerve-fast segment`"
            )
        return load_image(path, max_pixels=MOST_PIXELS)
    except InputError as error:
        raise InputError(str(error).replace(shown(path), name)) from None

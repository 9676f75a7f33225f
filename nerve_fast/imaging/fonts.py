"""Fonts of the system for labels in any script: each piece of a text in one that has its letters.

Where fontconfig is, it says which fonts there are and what they hold; elsewhere the fonts that
systems bring are looked for by name.
"""

import contextlib
import functools
import logging
import shutil
import subprocess
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from PIL import ImageDraw, ImageFont, features

logger = logging.getLogger(__name__)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SIZE = 14
"""In pixels."""

USUAL = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")
"""What is taken for all letters that it has, the first that there is."""

BY_NAME = (
    *("NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf", "wqy-microhei.ttc"),  # Linux
    *("NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "Lohit-Devanagari.ttf"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Medium.ttc", "AppleSDGothicNeo.ttc"),
    *("Arial Unicode.ttf", "GeezaPro.ttc", "DevanagariMT.ttc", "Kohinoor.ttc"),  # macOS
    *("msyh.ttc", "msgothic.ttc", "malgun.ttf", "segoeui.ttf", "Nirmala.ttf", "Nirmala.ttc"),
)
"""Looked for in the folders in which Pillow looks, where there is no fontconfig."""

SHAPED = (
    *((0x0590, 0x08FF), (0x0900, 0x0DFF), (0x0E00, 0x109F), (0x1780, 0x18AF)),
    *((0xFB1D, 0xFDFF), (0xFE70, 0xFEFF)),
)
"""Letters that join, move or run from the right: without Raqm Pillow sets them one by one."""


class Piece(NamedTuple):
    """Characters, one after another, that one font has."""

    text: str
    font: Font


def length(text: str) -> int:
    """The width of a text, in pixels."""
    return round(sum(piece.font.getlength(piece.text) for piece in pieces(text)))


def draw(picture: ImageDraw.ImageDraw, place: tuple[float, float], text: str) -> None:
    """Draw a text in black, its top left corner at a place."""
    x, y = place
    base = _ascent(usual())
    for piece in pieces(text):
        picture.text((x, y + base - _ascent(piece.font)), piece.text, fill="black", font=piece.font)
        x += piece.font.getlength(piece.text)


def say_what_is_missing(texts: Iterable[str]) -> None:
    """Say once, in the log, which characters of some texts cannot be drawn, and what would help."""
    characters = sorted(set("".join(texts)))
    without = "".join(one for one in characters if font_of(one) is None)
    if without:
        _warn(
            f"the pictures cannot show {_some(without)}: no font has them; install one that does, "
            "such as the Noto fonts (Debian and Ubuntu: fonts-noto-cjk, fonts-noto-core)"
        )
    joined = "".join(one for one in characters if _is_shaped(one) and one not in without)
    if joined and not features.check("raqm"):
        _warn(
            f"the pictures show {_some(joined)} letter by letter, unjoined and from the left: "
            "this Pillow has no Raqm; its wheels on PyPI have"
        )


@functools.lru_cache(maxsize=1 << 12)
def pieces(text: str) -> tuple[Piece, ...]:
    """A text in pieces, each as long as one font has its characters."""
    found: list[Piece] = []
    for character in text:
        last = found[-1].font if found else None
        # What stands between words, or on a letter, goes with what is before it.
        bound = character.isspace() or unicodedata.category(character)[0] in "CM"
        font = (last if bound else None) or font_of(character) or usual()
        if font is last:
            found[-1] = Piece(found[-1].text + character, font)
        else:
            found.append(Piece(character, font))
    return tuple(found)


@functools.lru_cache(maxsize=1 << 16)
def font_of(character: str) -> Font | None:
    """The first font that has a character; ``None`` where there is none."""
    if character.isspace() or unicodedata.category(character)[0] == "C":
        return usual()
    return next((font for font in _candidates(character) if _has(font, character)), None)


@functools.cache
def usual() -> Font:
    """The font for all letters that it has; Pillow's own has ASCII letters only."""
    return next(filter(None, map(_loaded, USUAL)), None) or ImageFont.load_default(SIZE)


def _candidates(character: str) -> Iterator[Font]:
    yield usual()
    files = _listed()
    if files is None:
        yield from filter(None, map(_loaded, BY_NAME))
        return
    code = ord(character)
    for file, index, ranges in files:
        if any(first <= code <= last for first, last in ranges):
            font = _loaded(file, index)
            if font is not None:
                yield font


@functools.cache
def _listed() -> list[tuple[str, int, list[tuple[int, int]]]] | None:
    """Fonts that fontconfig knows: file, number in it, characters; upright regular ones first.

    ``None`` where there is no fontconfig.
    """
    command = shutil.which("fc-list")
    if command is None:
        return None
    form = "%{weight}\t%{slant}\t%{spacing}\t%{file}\t%{index}\t%{charset}\n"
    try:
        said = subprocess.run(
            [command, "--format", form], capture_output=True, timeout=60, check=True
        ).stdout.decode("utf-8", "surrogateescape")
    except (OSError, subprocess.SubprocessError):
        return None
    found = []
    for line in said.splitlines():
        with contextlib.suppress(ValueError):
            weight, slant, spacing, file, index, characters = line.split("\t")
            ends = (one.partition("-") for one in characters.split())
            ranges = [(int(first, 16), int(last or first, 16)) for first, _, last in ends]
            # Numbers above name instances of variable fonts.
            found.append((weight != "80", slant != "0", spacing != "", file, int(index), ranges))
    return [one[3:] for one in sorted(found) if one[4] < 1 << 16]


@functools.cache
def _loaded(file: str, index: int = 0) -> ImageFont.FreeTypeFont | None:
    # Of pictures, as of emoji, there are fonts that have one size.
    with contextlib.suppress(OSError, ValueError):
        return ImageFont.truetype(file, SIZE, index=index)
    return None


@functools.lru_cache(maxsize=1 << 16)
def _has(font: Font, character: str) -> bool:
    """Whether a font has a character: it is not drawn as what no font has is drawn."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        return character.isascii()
    return _drawn(font, character) != _drawn(font, "\U0010ffff")


def _drawn(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _ascent(font: Font) -> int:
    """Pixels from the top of a line to what letters stand on, of which all fonts have their own."""
    return font.getmetrics()[0] if isinstance(font, ImageFont.FreeTypeFont) else SIZE


def _is_shaped(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in SHAPED)


def _some(characters: str) -> str:
    return " ".join(characters[:20]) + f" and {len(characters) - 20} more" * (len(characters) > 20)


@functools.cache
def _warn(text: str) -> None:
    logger.warning("%s", text)

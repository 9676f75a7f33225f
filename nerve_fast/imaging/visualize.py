"""Pictures of results: label maps, overlays with a legend, heat maps, the strip of steps."""

import colorsys
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from nerve_fast.errors import InputError
from nerve_fast.imaging import fonts
from nerve_fast.utils.files import shown, written_whole
from nerve_fast.utils.tiles import spans

FONT_SIZE = fonts.SIZE
MARGIN = 6

LEGEND_WIDTH = 640
"""Of a legend by itself, in pixels."""

PANEL_WIDTH = 256
"""Of heat maps and of the strip of steps, in pixels."""

MAX_PANEL_ASPECT = 8
"""A panel is at most so many times as high as wide; a narrower image is squeezed into that."""

MAX_WIDENED = 1 << 25
"""Pixels of an overlay that its legend makes wider than the image; beyond them it gets lower."""

STRIPE_PIXELS = 1 << 22
"""Pixels of an overlay that are coloured at a time."""

LONGEST_NAME = 200
"""Characters of a label that a legend or a caption shows."""


MOST_LABELS = 65_535
"""Labels that a label map can have as a PNG: one value of 16 bits stands for none."""

NO_LABEL = np.array([[255, 255, 255]], dtype=np.uint8)
"""The colour of pixels without a label."""


def palette(count: int) -> np.ndarray:
    """``(count, 3)`` uint8: distinct colours, of which the first ``n`` do not depend on the count.

    Hues advance by the golden angle; brightness and saturation alternate.
    """
    hues = (np.arange(count) * 0.61803398875 + 0.05) % 1
    tones = [(0.75, 0.95), (0.55, 1.0), (0.9, 0.7)]
    colours = [colorsys.hsv_to_rgb(hue, *tones[i % 3]) for i, hue in enumerate(hues)]
    return np.round(np.array(colours).reshape(-1, 3) * 255).astype(np.uint8)


SOFTWARE = "nerve-fast"
PNG_MARK = f"tEXtSoftware\0{SOFTWARE}".encode()
"""What PNG files that this package writes hold at their start."""


def save_picture(picture: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture in one atomic write; its format follows from the ending of the name.

    A PNG says in its text chunk ``Software`` that it was made by this package.

    Raises:
        InputError: the ending is of no format that can be written, or the file cannot be.
    """
    ending = Path(path).suffix.lower()
    if Image.registered_extensions().get(ending) not in Image.SAVE:
        raise InputError(
            f"{shown(path)}: {ending or 'a name without an ending'} is of no format that can be "
            "written; expected .png or .jpg"
        )
    with written_whole(path) as file:
        picture.save(file, format=Image.registered_extensions()[ending], pnginfo=_signed())


def _signed() -> PngInfo:
    """The first text chunk of what is written."""
    info = PngInfo()
    info.add_text("Software", SOFTWARE)
    return info


def save_label_map(path: str | os.PathLike, label_map: np.ndarray, labels: Sequence[str]) -> None:
    """Write labels as a PNG whose pixel values are the labels' indices.

    Up to 255 labels make an 8-bit palette image, more a 16-bit greyscale one. Its largest value,
    255 or 65535, stands for no label, as the field's data sets have it. The text chunk ``labels``
    holds the labels, one a line; ``Software`` says that the file was made by this package.

    Args:
        path: the file to write.
        label_map: ``(H, W)`` integers, −1 where there is no label.
        labels: ``K`` names.
    """
    info = _signed()
    info.add_itxt("labels", "\n".join(labels))
    if len(labels) > 255:
        Image.fromarray(label_map.astype(np.uint16)).save(path, format="PNG", pnginfo=info)
        return
    image = Image.fromarray(label_map.astype(np.uint8)).convert("P")
    # All 256 colours: with fewer, Pillow writes fewer bits a pixel, in which 255 has no place.
    colours = np.full((256, 3), NO_LABEL)
    colours[: len(labels)] = palette(len(labels))
    image.putpalette(colours.tobytes())
    image.save(path, format="PNG", pnginfo=info)


def overlay(
    image: Image.Image, label_map: np.ndarray, labels: Sequence[str], opacity: float = 0.55
) -> Image.Image:
    """The image under its labels' colours, with a legend below.

    Args:
        image: RGB, resized to the label map where it differs.
        label_map: ``(H, W)`` integers, −1 where there is no label.
        labels: ``K`` names; the legend lists those that occur, with their share of the pixels.
        opacity: of the colours, 0 to 1.

    Returns:
        RGB, ``W`` wide or, for a very narrow image, as wide as the legend needs. Where that would
        be more than :data:`MAX_WIDENED` pixels, the image is drawn less high.
    """
    height, width = label_map.shape
    # The last colour is that of −1.
    colours = np.vstack([palette(len(labels)), NO_LABEL])
    names = [*map(_elided, labels), "(no label)"]
    shares = np.zeros(len(names))
    for rows in spans(height, max(STRIPE_PIXELS // width, 1)):
        shares += np.bincount(label_map[rows].ravel() % len(names), minlength=len(names))
    shares /= label_map.size
    entries = [
        (tuple(colours[i].tolist()), f"{names[i]} {shares[i]:.0%}")
        for i in np.argsort(-shares, kind="stable")
        if shares[i] > 0
    ]
    below = _legend(entries, max(width, 160))
    if below.width > width and below.width * height > MAX_WIDENED:
        height = max(MAX_WIDENED // below.width, 1)
        label_map = label_map[(2 * np.arange(height) + 1) * len(label_map) // (2 * height)]
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    picture = Image.new("RGB", (below.width, height + below.height), "white")
    _paste_coloured(picture, image, label_map, colours, opacity)
    picture.paste(below, (0, height))
    return picture


def coloured(
    image: Image.Image, label_map: np.ndarray, labels: Sequence[str], opacity: float = 0.55
) -> Image.Image:
    """The image under its labels' colours, without a legend: RGB, of the image's size.

    Args:
        image: RGB.
        label_map: ``(H, W)`` integers of the image's size, −1 where there is no label.
        labels: ``K`` names.
        opacity: of the colours, 0 to 1.
    """
    picture = Image.new("RGB", image.size)
    colours = np.vstack([palette(len(labels)), NO_LABEL])
    _paste_coloured(picture, image, label_map, colours, opacity)
    return picture


def save_legend(path: str | os.PathLike, labels: Sequence[str], *, unlabelled: bool) -> None:
    """Write the colours of labels with their names as a PNG, :data:`LEGEND_WIDTH` wide.

    Args:
        path: the file to write.
        labels: ``K`` names, of which a long one makes the picture wider.
        unlabelled: whether the colour of what has no label is among them.
    """
    entries = [
        (tuple(colour.tolist()), _elided(name))
        for colour, name in zip(palette(len(labels)), labels, strict=True)
    ]
    entries += [(tuple(NO_LABEL[0].tolist()), "(no label)")] * unlabelled
    _legend(entries, LEGEND_WIDTH).save(path, format="PNG", pnginfo=_signed())


def _paste_coloured(
    picture: Image.Image,
    image: Image.Image,
    label_map: np.ndarray,
    colours: np.ndarray,
    opacity: float,
) -> None:
    """Paste the image under its labels' colours into the top left corner of a picture."""
    width, height = image.size
    count = max(STRIPE_PIXELS // width, 1)
    for top in range(0, height, count):
        stripe = image.crop((0, top, width, min(top + count, height)))
        over = Image.fromarray(colours[label_map[top : top + count]])
        picture.paste(Image.blend(stripe, over, opacity), (0, top))


def heat_maps(
    image: Image.Image, probabilities: np.ndarray, labels: Sequence[str], width: int = PANEL_WIDTH
) -> Image.Image:
    """One panel a label: the image in grey, its probability in colour.

    Args:
        image: RGB.
        probabilities: ``(K, h, w)`` in [0, 1].
        labels: ``K`` names.
        width: of a panel, in pixels. It is as high as the image's shape says, but at most
            :data:`MAX_PANEL_ASPECT` times as high as wide.

    Returns:
        RGB, up to four panels a row.
    """
    size = _panel_size(image, width)
    grey = np.asarray(image.convert("L").resize(size)).astype(np.float32)[..., None]
    panels = []
    for label, heat in zip(labels, probabilities, strict=True):
        heat = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR))[..., None]
        colour = heat_colours(heat[..., 0])
        panel = np.clip(0.35 * grey + 0.65 * colour, 0, 255).astype(np.uint8)
        panels.append(_captioned(Image.fromarray(panel), label))
    return _grid(panels, columns=4)


def strip_stages(steps: int | None) -> list[int]:
    """The numbers of steps that the strip of a walk shows, the last of which is ``steps``."""
    if steps is None:
        return [1, 2, 5, 10, 20, 50]
    return [count for count in (1, 2, 5, 10, 20, 50) if count < steps] + [steps]


def steps_strip(
    image: Image.Image,
    prior: np.ndarray,
    steps: Mapping[int, np.ndarray],
    labels: Sequence[str],
    *,
    truth: np.ndarray | None = None,
    width: int = PANEL_WIDTH,
) -> Image.Image:
    """The image, the prior, and the labels after each number of steps, as in the slides' figure 2.

    Args:
        image: RGB.
        prior: ``(K, h, w)``.
        steps: ``(K, h, w)`` after each number of steps.
        labels: ``K`` names.
        truth: ``(H, W)`` integers, drawn last.
        width: of a panel, in pixels, as of :func:`heat_maps`.

    Returns:
        RGB, one row of panels and a legend below.
    """
    size = _panel_size(image, width)
    label_maps = {"prior": _likeliest(prior, size)}
    label_maps.update({f"step {count}": _likeliest(maps, size) for count, maps in steps.items()})
    if truth is not None:
        resized = Image.fromarray(truth.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
        label_maps["ground truth"] = np.asarray(resized)
    small = image.resize(size, Image.Resampling.BICUBIC)
    # The last colour is that of −1.
    colours = np.vstack([palette(len(labels)), NO_LABEL])
    names = [*map(_elided, labels), "(no label)"]
    panels = [_captioned(small, "image")]
    for caption, label_map in label_maps.items():
        blended = Image.blend(small, Image.fromarray(colours[label_map]), 0.65)
        panels.append(_captioned(blended, caption))
    strip = _grid(panels, columns=len(panels))
    seen = np.unique(np.stack(list(label_maps.values())))
    entries = [(tuple(colours[i].tolist()), names[i]) for i in seen]
    return _stack([strip, _legend(entries, strip.width)])


def _panel_size(image: Image.Image, width: int) -> tuple[int, int]:
    height = min(round(width * image.height / image.width), MAX_PANEL_ASPECT * width)
    return width, max(height, 1)


def _likeliest(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The largest of ``(K, h, w)`` probabilities at ``size = (W, H)``, −1 where all are 0."""

    def resized(heat):
        return np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR))

    best, index = resized(maps[0]), np.zeros(size[::-1], np.int64)
    for label, heat in enumerate(maps[1:], start=1):
        one = resized(heat)
        index[one > best] = label
        best = np.maximum(best, one)
    index[best <= 0] = -1
    return index


def heat_colours(heat: np.ndarray) -> np.ndarray:
    """``(h, w)`` in [0, 1] to ``(h, w, 3)`` in [0, 255]: dark blue, violet, orange, pale yellow."""
    stops = np.linspace(0, 1, 5)
    colours = np.array([[0, 0, 40], [90, 15, 110], [190, 55, 85], [250, 140, 10], [252, 255, 165]])
    channels = [np.interp(heat, stops, colours[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1)


def _elided(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _legend(entries: Sequence[tuple[tuple[int, int, int], str]], width: int) -> Image.Image:
    """Colour swatches with names, wrapped to ``width``; wider where one name needs that."""
    fonts.say_what_is_missing(name for _, name in entries)
    line = FONT_SIZE + MARGIN
    placed, x, y = [], MARGIN, MARGIN
    for colour, name in entries:
        length = FONT_SIZE + MARGIN + fonts.length(name) + 2 * MARGIN
        if x > MARGIN and x + length > width:
            x, y = MARGIN, y + line
        placed.append((x, y, colour, name))
        x += length
        width = max(width, x)
    legend = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(legend)
    for x, y, colour, name in placed:
        draw.rectangle(
            (x, y + 1, x + FONT_SIZE - 2, y + FONT_SIZE - 1), fill=colour, outline="black"
        )
        fonts.draw(draw, (x + FONT_SIZE + MARGIN, y - 1), name)
    return legend


def _captioned(panel: Image.Image, caption: str) -> Image.Image:
    line = FONT_SIZE + MARGIN
    framed = Image.new("RGB", (panel.width, panel.height + line), "white")
    framed.paste(panel, (0, line))
    fonts.draw(ImageDraw.Draw(framed), (2, 0), _elided(caption))
    return framed


def _grid(panels: Sequence[Image.Image], columns: int) -> Image.Image:
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width, height = panels[0].width + MARGIN, panels[0].height + MARGIN
    sheet = Image.new("RGB", (columns * width - MARGIN, rows * height - MARGIN), "white")
    for i, panel in enumerate(panels):
        sheet.paste(panel, (i % columns * width, i // columns * height))
    return sheet


def _stack(images: Sequence[Image.Image]) -> Image.Image:
    width, height = max(i.width for i in images), sum(i.height for i in images)
    stacked, y = Image.new("RGB", (width, height), "white"), 0
    for image in images:
        stacked.paste(image, (0, y))
        y += image.height
    return stacked

"""Pictures of photographs that may be shown: clicks, truth, and what was made of the clicks."""

from pathlib import Path

import numpy as np
from photographs import Photograph
from PIL import Image, ImageDraw, ImageFont
from segmenters import labelled, segment
from torch import Tensor

from nerve_fast.imaging.visualize import palette, save_picture
from nerve_fast.priors.seeds import Seeds

HEIGHT = 260
GAP = 6
TEXT = 18
OPACITY = 0.55


def strip(photograph: Photograph, seeds: Seeds, ways: dict[str, tuple[str, dict]], path: Path):
    """Photograph with its clicks, truth, and the labels of each way, side by side.

    Args:
        photograph: one that may be shown.
        seeds: what all ways start from.
        ways: by title, a segmenter and its settings.
        path: a JPEG.
    """
    panels = {"photograph and clicks": clicked(photograph, seeds)}
    panels["truth"] = painted(photograph, photograph.truth)
    for title, (name, settings) in ways.items():
        (scores,) = segment(name, photograph, [seeds], settings)
        panels[title] = painted(photograph, labelled(scores, photograph, seeds))
    width, height = photograph.image.size
    size = (round(width * HEIGHT / height), HEIGHT)
    picture = Image.new("RGB", (len(panels) * (size[0] + GAP) - GAP, HEIGHT + TEXT), "white")
    draw = ImageDraw.Draw(picture)
    for index, (title, panel) in enumerate(panels.items()):
        left = index * (size[0] + GAP)
        picture.paste(panel.resize(size, Image.Resampling.LANCZOS), (left, TEXT))
        draw.text((left + 2, 1), title, fill="black", font=ImageFont.load_default(13))
    save_picture(picture, path)


def painted(photograph: Photograph, labels: Tensor) -> Image.Image:
    """The photograph under its labels' colours; without a label, or where none counts, dark."""
    count = len(photograph.labels)
    colours = palette(count).astype(np.float32)
    pixels = np.asarray(photograph.image, np.float32)
    labels = labels.numpy()
    mixed = (1 - OPACITY) * pixels + OPACITY * colours[labels.clip(max=count - 1)]
    return Image.fromarray(np.where((labels < count)[..., None], mixed, pixels / 4).astype("uint8"))


def clicked(photograph: Photograph, seeds: Seeds) -> Image.Image:
    """The photograph with its clicks in their labels' colours."""
    picture = photograph.image.copy()
    draw = ImageDraw.Draw(picture)
    radius = max(picture.size[1] / 55, 4)
    colours = palette(len(photograph.labels)).tolist()
    for y, x in (seeds.pixels >= 0).nonzero().tolist():
        around = [x - radius, y - radius, x + radius, y + radius]
        draw.ellipse(around, fill=tuple(colours[seeds.pixels[y, x]]), outline="white", width=2)
    return picture

"""What the page shows of a result: the image in colours, and the legend as HTML."""

import html
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from nerve_fast.app.result import Click, Result
from nerve_fast.errors import check_choice
from nerve_fast.imaging.resampling import to_pixels
from nerve_fast.imaging.visualize import NO_LABEL, heat_colours, palette
from nerve_fast.utils.labels import number_of
from nerve_fast.utils.text import plain

KINDS = ("labels", "confidence", "image")
"""What can be shown."""

OPACITY = 0.55

SHOWN = 900
"""The least length of the longer side of the page's picture, in pixels."""


def scale_of(image: Image.Image) -> int:
    """How many pixels of the page's picture a side of an image's pixel is.

    Small images are enlarged before they are sent: a browser that enlarged them would report clicks
    in wrong places.
    """
    return max(-(-SHOWN // max(image.size)), 1)


def drawn(result: Result, step: int, kind: str, clicks: Sequence[Click]) -> Image.Image:
    """The image with what was found in it after a number of steps, enlarged by :func:`scale_of`.

    Args:
        result: of a session.
        step: of the walk, 0 being the prior.
        kind: ``labels`` in colours; ``confidence``, the probability of the likeliest label, dark to
            bright; or the ``image`` alone.
        clicks: drawn as dots in the colours of their labels.

    Raises:
        InputError: there is no such step or kind.
    """
    check_choice("show", kind, KINDS)
    image, labels = result.out.image, result.out.labels
    if kind == "labels":
        # The last colour is that of −1.
        colours = np.vstack([palette(len(labels)), NO_LABEL])
        image = Image.blend(image, Image.fromarray(colours[result.label_map(step)]), OPACITY)
    elif kind == "confidence":
        image = Image.fromarray(_heat(result.maps(step), image.size))
    return with_clicks(image, clicks, labels)


def _heat(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """``(H, W, 3)`` uint8 of the largest of ``(K, h, w)`` probabilities; one label at a time."""
    best = torch.zeros(size[::-1])
    for one in maps:
        torch.maximum(best, to_pixels(one[None], (size[1], size[0]))[0], out=best)
    return heat_colours(best.clamp(0, 1).numpy()).astype(np.uint8)


def with_clicks(image: Image.Image, clicks: Sequence[Click], labels: Sequence[str]) -> Image.Image:
    """An image enlarged by :func:`scale_of`, on which each click is a dot with a rim."""
    scale = scale_of(image)
    size = (scale * image.width, scale * image.height)
    picture = image.resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    radius = max(picture.size) / 100
    colours = palette(len(labels))
    for click in clicks:
        number = number_of(click.label, labels)
        colour = (255, 255, 255) if number is None else tuple(colours[number].tolist())
        x, y = scale * (click.x + 0.5), scale * (click.y + 0.5)
        for far, fill in ((radius * 1.6, "black"), (radius * 1.35, "white"), (radius, colour)):
            draw.ellipse((x - far, y - far, x + far, y + far), fill=fill)
    return picture


def legend(result: Result, step: int) -> str:
    """A table in HTML: colour, label, share of the pixels and mean confidence, largest first."""
    labels = result.out.labels
    label_map = result.label_map(step)
    counts = torch.bincount(label_map.flatten() + 1, minlength=len(labels) + 1).tolist()
    confidences = result.confidences(step).tolist()
    colours = ["#" + bytes(colour.tolist()).hex() for colour in palette(len(labels))]
    rows = []
    for number in sorted(range(-1, len(labels)), key=lambda number: -counts[number + 1]):
        share = counts[number + 1] / label_map.numel()
        if number < 0:
            if share > 0:
                rows.append(_row("#ffffff", "<i>no label</i>", share, math.nan))
            continue
        name = html.escape(plain(labels[number]))
        rows.append(_row(colours[number], name, share, confidences[number]))
    head = "<tr><th></th><th>label</th><th>area</th><th>confidence</th></tr>"
    return f'<table class="nf-legend"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _row(colour: str, name: str, share: float, confidence: float) -> str:
    known = not math.isnan(confidence)
    bar = f'<span class="nf-bar"><span style="width:{confidence:.0%}"></span></span>' * known
    number = f"{confidence:.2f}" if known else "–"
    return (
        f'<tr><td><span class="nf-swatch" style="background:{colour}"></span></td>'
        f'<td class="nf-name">{name}</td><td>{share:.1%}</td><td>{bar}{number}</td></tr>'
    )

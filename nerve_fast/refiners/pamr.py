"""PAMR (Araslanov, Roth: Single-Stage Semantic Segmentation from Image Labels, CVPR 2020)."""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from nerve_fast.backbones.source import GraphFeatures
from nerve_fast.errors import InputError, check_choice
from nerve_fast.imaging.images import to_tensor
from nerve_fast.priors.resizing import mmseg_size, opencv_bilinear
from nerve_fast.refiners.checks import check_count, check_maps
from nerve_fast.refiners.registry import registered
from nerve_fast.utils.tiles import GPU_TILE_BYTES, spans

CHUNK_BYTES = 8 << 20
"""Labels are worked on so many at a time that, on a CPU, their maps take this."""


@registered("pamr", needs_graph=False, linear=True)
@dataclasses.dataclass(frozen=True)
class PAMR:
    """Pixel-adaptive mask refinement: :func:`pamr` as a refiner, at the image's own pixels.

    Settings are those of NACLIP and SCLIP. Both refine cosine similarities of words and take the
    softmax afterwards: to follow them, pass similarities in place of probabilities, which works as
    all is linear in them. Both also give it not the image but what CLIP sees of it, brought back up
    to the image's size: so does ``seen``.

    Args:
        iterations: how often labels move to neighbours.
        dilations: distances of neighbours, in pixels.
        seen: short side in pixels to which mmseg's ``Resize`` brings the image before it is
            brought back up, bilinearly; ``None`` takes the image's own pixels.
        at: where labels move: ``pixels``, the image's; ``maps``, those of the maps, to whose size
            the image is brought by Lanczos's filter, as OVDiff has it.

    Raises:
        InputError: a value is out of its range; a ``ValueError``.
    """

    iterations: int = 10
    dilations: Sequence[int] = (8, 16)
    seen: int | None = None
    at: str = "pixels"

    def __post_init__(self):
        check_count("iterations", self.iterations, 0)
        if not self.dilations:
            raise InputError("dilations is empty; expected distances in pixels, such as (8, 16)")
        for dilation in self.dilations:
            check_count("a dilation", dilation, 1)
        check_choice("at", self.at, ("pixels", "maps"))
        if self.seen is not None:
            check_count("seen", self.seen, 1)

    def __call__(
        self, image: Image.Image, probabilities: Tensor, graph: GraphFeatures | None = None
    ) -> Tensor:
        """Probabilities ``(K, h, w)`` to ``(K, H, W)``, the size of the image, or ``(K, h, w)``."""
        check_maps(probabilities)
        if self.at == "maps":
            height, width = probabilities.shape[1:]
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        pixels = to_tensor(image)
        if self.seen is not None:
            seen = to_tensor(opencv_bilinear(image, mmseg_size(image.size, self.seen)))
            pixels = interpolate(seen[None], pixels.shape[-2:], mode="bilinear")[0]
        return pamr(pixels, probabilities, self.iterations, self.dilations)

    def memory(self, labels: int, image_size: tuple[int, int], tokens: int) -> int:
        """Bytes of the labels and of the weights of neighbours at the image's pixels."""
        width, height = image_size
        planes = labels + 3 * 8 * len(self.dilations)
        return 4 * planes * width * height + 4 * CHUNK_BYTES


@torch.no_grad()
def pamr(image: Tensor, maps: Tensor, iterations: int, dilations: Sequence[int]) -> Tensor:
    r"""Maps move to neighbours of a like colour, again and again.

    .. math:: m_i \leftarrow \sum_{j \in N(i)} w_{ij} m_j, \quad
              w_{ij} = \operatorname*{softmax}_{j \in N(i)} \left(
              -\frac{1}{3} \sum_c \frac{|x_{ci} - x_{cj}|}{10^{-8} + 0.1 \, \sigma_{ci}} \right)

    with ``N(i)`` the eight pixels around ``i`` at each distance, those beyond the border being its
    nearest; σ is the (unbiased) standard deviation over ``N(i)`` and, once a distance, ``i``. The
    constants are the authors'. Another brightness or contrast of a channel changes nothing.

    Args:
        image: ``x``, ``(3, H, W)``.
        maps: ``(K, h, w)``, resized bilinearly to ``(H, W)`` first.
        iterations: how often.
        dilations: the distances, in pixels.

    Returns:
        ``(K, H, W)`` in the dtype and on the device of ``maps``. Nothing larger than it is made
        but ``w``, of as many planes as there are neighbours.
    """
    height, width = image.shape[-2:]
    weights = colour_weights(image.to(maps), dilations)
    refined = maps.new_empty(len(maps), height, width)
    chunk_bytes = CHUNK_BYTES if maps.device.type == "cpu" else GPU_TILE_BYTES
    count = max(chunk_bytes // (height * width * maps.element_size()), 1)
    for labels in spans(len(maps), count):
        part = interpolate(
            maps[labels][None], (height, width), mode="bilinear", align_corners=False
        )[0]
        for _ in range(iterations):
            moved = torch.zeros_like(part)
            for weight, near in zip(weights, neighbours(part, dilations), strict=True):
                moved.addcmul_(weight, near)
            part = moved
        refined[labels] = part
    return refined


def colour_weights(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """``w`` of :func:`pamr`: ``(8 · len(dilations), H, W)`` in the order of :func:`neighbours`."""
    centres = len(dilations)
    count = 9 * centres
    mean = (sum(neighbours(image, dilations)) + centres * image) / count
    squares = sum((near - mean).square() for near in neighbours(image, dilations))
    variance = (squares + centres * (image - mean).square()) / (count - 1)
    scale = 1e-8 + 0.1 * variance.sqrt()
    scores = [-((near - image).abs() / scale).mean(0) for near in neighbours(image, dilations)]
    return torch.stack(scores).softmax(0)


def neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """``(C, H, W)`` of the neighbours of all pixels, one after another, the border repeated."""
    height, width = maps.shape[-2:]
    reach = max(dilations)
    padded = pad(maps[None], (reach,) * 4, mode="replicate")[0]
    for dilation in dilations:
        for y in (-dilation, 0, dilation):
            for x in (-dilation, 0, dilation):
                if (y, x) != (0, 0):
                    yield padded[:, reach + y : reach + y + height, reach + x : reach + x + width]

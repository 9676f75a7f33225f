"""DenseCRF (Krähenbühl, Koltun: Efficient Inference in Fully Connected CRFs, NeurIPS 2011)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from nerve_fast.utils.tiles import CPU_TILE_BYTES, GPU_TILE_BYTES

LEAST_PROBABILITY = 1e-8
"""Probabilities are raised to it before their logarithm is taken."""

LOST = 1e-5
"""What is left out of a normalised sum over all pixels is at most this."""

TILE = 64
"""At most so many pixels, alike in colour and place, are taken or left out together."""

BLOCK = 4
"""Tiles whose pairs with others are taken at a time."""

LEAST_EXPONENT = -60.0
"""Exponents are raised to it: an exponential that underflows takes many times as long."""


@torch.no_grad()
def densecrf(
    image: Tensor,
    probabilities: Tensor,
    *,
    iterations: int = 10,
    weight: float = 3.0,
    spread: float = 1.0,
    bilateral_weight: float = 4.0,
    bilateral_spread: float = 67.0,
    colour_spread: float = 3.0,
) -> Tensor:
    r"""Mean field of a CRF whose pixels are all connected, with the compatibility of Potts.

    .. math:: Q_i \leftarrow \mathrm{softmax}\left(\log p_i + \textstyle\sum_m w_m
              \sum_j \frac{k_m(i, j)}{\sqrt{z_i z_j}} Q_j\right), \quad
              z_i = \textstyle\sum_j k_m(i, j)

    with :math:`k_1 = \exp(-|x_i - x_j|^2 / 2 \theta^2)` and :math:`k_2` the same with another θ and
    the colours' Gaussian as a factor; ``Q`` begins as ``p``. A pixel's own label counts among the
    sum, and both kernels are normalised on both sides, as in the authors' public code, which takes
    them from a permutohedral lattice, some percent off. Here the sums are exact but for pairs so
    unlike that all of those of a pixel add less than :data:`LOST`: pixels are sorted into tiles
    that are alike in colour and place, and pairs of tiles too far apart are left out. The time
    grows with the square of the pixels all the same. All is in float64: at pixels between two
    labels ten iterations magnify what is lost in float32, which is little faster, a hundredfold.

    Args:
        image: ``(3, H, W)``, 0 to 255.
        probabilities: ``p``, ``(K, H, W)``, summing to 1 over ``K``.
        iterations, weight, spread, bilateral_weight, bilateral_spread, colour_spread: as for
            :class:`~nerve_fast.refiners.DenseCRF`.

    Returns:
        ``(K, H, W)``, summing to 1 over ``K``, in the dtype of ``probabilities``.
    """
    # MPS has no float64.
    device = torch.device("cpu") if probabilities.device.type == "mps" else probabilities.device
    image, p = image.to(device).double(), probabilities.to(device).double()
    unary = p.clamp(min=LEAST_PROBABILITY).log()
    Q = unary.softmax(0)
    smoothness = _Places(image, spread) if weight else None
    appearance = _Pairs(image, bilateral_spread, colour_spread) if bilateral_weight else None
    for _ in range(iterations):
        message = unary.clone()
        if smoothness is not None:
            message += weight * smoothness(Q)
        if appearance is not None:
            message += bilateral_weight * appearance(Q)
        Q = message.softmax(0)
    return Q.to(probabilities)


def densecrf_memory(labels: int, image_size: tuple[int, int]) -> int:
    """Bytes of labels and features of the pixels of ``(width, height)``, and of tiles of pairs."""
    pixels = math.prod(image_size)
    tiled = pixels + pixels * 2 // TILE + 1
    return 8 * tiled * (6 * labels + 32) + 4 * GPU_TILE_BYTES


class _Places:
    """The sum with the Gaussian of places, normalised on both sides: rows, then columns."""

    def __init__(self, image: Tensor, spread: float):
        height, width = image.shape[-2:]
        # The least that is kept, times the pixels of the image, is LOST.
        reach = spread * math.sqrt(2 * math.log(height * width / LOST))
        self.weights = []
        for side in (height, width):
            radius = min(math.ceil(reach), side - 1)
            offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device=image.device)
            self.weights.append(torch.exp(-(offsets**2) / (2 * spread**2)))
        self.scale = self._sum(image.new_ones(1, height, width)).rsqrt()

    def __call__(self, maps: Tensor) -> Tensor:
        scale = self.scale.to(maps)
        return scale * self._sum(scale * maps)

    def _sum(self, maps: Tensor) -> Tensor:
        rows, columns = (weights.to(maps) for weights in self.weights)
        tall, wide = len(rows) // 2, len(columns) // 2
        maps = conv2d(pad(maps[:, None], (0, 0, tall, tall)), rows[None, None, :, None])
        return conv2d(pad(maps, (wide, wide, 0, 0)), columns[None, None, None, :])[:, 0]


class _Pairs:
    """The sum with the Gaussian of places and colours, normalised on both sides.

    Pixels are in tiles ``(T, n)``; a last few places can be empty.
    """

    def __init__(self, image: Tensor, spread: float, colour_spread: float):
        height, width = image.shape[-2:]
        y, x = (
            torch.arange(side, dtype=image.dtype, device=image.device) / spread
            for side in (height, width)
        )
        places = torch.stack([y[:, None].expand(height, width), x.expand(height, width)])
        features = torch.cat([image / colour_spread, places]).flatten(1).T.contiguous()  # (N, 5)
        self.pixels = height * width
        order = _balanced(features)
        taken = order < self.pixels
        self.order = order.clamp(max=self.pixels - 1)
        self.position = torch.empty_like(order.flatten()[: self.pixels])
        self.position[order[taken]] = taken.flatten().nonzero()[:, 0]
        self.features = features[self.order]
        self.least, self.most = self.features.amin(1), self.features.amax(1)
        self.largest = image.new_zeros(len(order))
        self.scale = taken * self._sum(taken.to(image)[None])[0].clamp(min=1).rsqrt()
        self.largest = self.scale.amax(1).log()

    def __call__(self, maps: Tensor) -> Tensor:
        rows = self.scale * maps.flatten(1)[:, self.order]
        summed = (self.scale * self._sum(rows)).flatten(1)
        return summed[:, self.position].unflatten(1, maps.shape[1:])

    def _sum(self, maps: Tensor) -> Tensor:
        """``k_2`` times ``(C, T, n)``."""
        summed = torch.zeros_like(maps)
        for first in range(0, len(self.order), BLOCK):
            own = slice(first, first + BLOCK)
            # Inner products of what is far from 0 lose digits.
            centre = self.features[own].mean((0, 1))
            ours = _rows(self.features[own], centre)
            values = maps[:, own].flatten(1)
            for some in self._near(own):
                # A pair of a block with a later tile is there once for both.
                kernel = _kernel(ours, _rows(self.features[some], centre))
                theirs = maps[:, some].flatten(1)
                summed[:, own] += (theirs @ kernel.T).view_as(summed[:, own])
                summed[:, some] += (values @ kernel).view(len(maps), len(some), -1)
            summed[:, own] += (values @ _kernel(ours, ours)).view_as(summed[:, own])
        return summed

    def _near(self, own: slice) -> Iterator[Tensor]:
        """Tiles after a block that add enough to it or take enough from it, so many at a time."""
        # What a pair adds to a normalised sum is at most its kernel over the roots of both z.
        least, most = self.least[own].amin(0), self.most[own].amax(0)
        later = slice(own.stop, None)
        apart = torch.maximum(self.least[later] - most, least - self.most[later]).clamp(min=0)
        adds = apart.square().sum(1) / -2 + self.largest[later] + self.largest[own].amax()
        near = (adds > math.log(LOST / self.pixels)).nonzero()[:, 0] + own.stop
        tile_bytes = CPU_TILE_BYTES if near.device.type == "cpu" else GPU_TILE_BYTES
        count = max(tile_bytes // (8 * BLOCK * self.order.shape[1] ** 2), 1)
        yield from near.split(count) if len(near) else ()


def _rows(features: Tensor, centre: Tensor) -> Tensor:
    """Of tiles, ``(P, 7)``: features, what the exponent has besides their products, and 1."""
    rows = features.flatten(0, 1) - centre
    halves = rows.square().sum(1, keepdim=True) / -2
    return torch.cat([rows, halves, torch.ones_like(halves)], 1)


def _kernel(ours: Tensor, theirs: Tensor) -> Tensor:
    exponents = ours @ theirs[:, [0, 1, 2, 3, 4, 6, 5]].T
    return exponents.clamp_(min=LEAST_EXPONENT).exp_()


def _balanced(points: Tensor) -> Tensor:
    """Points ``(N, 5)`` in tiles of the same size, ``(T, n)``: halved again and again.

    Each part is halved along the axis in which it varies most. Places left over have the number N.
    """
    halvings = max(math.ceil(math.log2(len(points) / TILE)), 0)
    size = math.ceil(len(points) / 2**halvings)
    order = torch.arange(size * 2**halvings, device=points.device).clamp(max=len(points))[None]
    points = torch.cat([points, points[-1:]])
    for _ in range(halvings):
        parts = points[order]
        axes = parts.var(1).argmax(1)[:, None, None].expand(-1, parts.shape[1], 1)
        along = parts.gather(2, axes)[..., 0].argsort(1)
        order = order.gather(1, along).view(2 * len(order), -1)
    return order

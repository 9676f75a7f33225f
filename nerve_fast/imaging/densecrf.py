"""DenseCRF (Krähenbühl, Koltun: Efficient Inference in Fully Connected CRFs, NeurIPS 2011)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from nerve_fast.utils.tiles import CPU_TILE_BYTES, GPU_TILE_BYTES, spans

LEAST_PROBABILITY = 1e-8
"""Probabilities are raised to it before their logarithm is taken."""

LOST = 1e-5
"""What is left out of the sum over all pixels takes at most this, where the sum is 1 or more."""

TILE = 256
"""Pixels, alike in colour and place, that are taken or left out together."""


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
    grows with the pixels' square all the same. Sums are in float64: at pixels between two labels
    ten iterations magnify what is lost in float32 a hundredfold and more.

    Args:
        image: ``(3, H, W)``, 0 to 255.
        probabilities: ``p``, ``(K, H, W)``, summing to 1 over ``K``.
        iterations, weight, spread, bilateral_weight, bilateral_spread, colour_spread: as for
            :class:`~nerve_fast.refiners.DenseCRF`.

    Returns:
        ``(K, H, W)``, summing to 1 over ``K``, in the dtype of ``probabilities``.
    """
    image = image.to(probabilities.device, torch.float64)
    unary = probabilities.double().clamp(min=LEAST_PROBABILITY).log()
    smoothness = _Places(image, spread) if weight else None
    appearance = _Pairs(image, bilateral_spread, colour_spread) if bilateral_weight else None
    Q = unary.softmax(0)
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
    return 8 * pixels * (6 * labels + 24) + 8 * (pixels // TILE + 1) + 4 * GPU_TILE_BYTES


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
    """The sum with the Gaussian of places and colours, normalised on both sides."""

    def __init__(self, image: Tensor, spread: float, colour_spread: float):
        height, width = image.shape[-2:]
        y, x = (
            torch.arange(side, dtype=image.dtype, device=image.device) / spread
            for side in (height, width)
        )
        places = torch.stack([y[:, None].expand(height, width), x.expand(height, width)])
        features = torch.cat([image / colour_spread, places]).flatten(1).T  # (N, 5)
        self.order = _along_a_curve(features)
        self.features = features[self.order]
        self.spans = list(spans(len(features), TILE))
        self.least = torch.stack([self.features[span].amin(0) for span in self.spans])
        self.most = torch.stack([self.features[span].amax(0) for span in self.spans])
        self.reach = 2 * math.log(len(features) / LOST)
        self.scale = self._sum(image.new_ones(len(features), 1)).rsqrt()

    def __call__(self, maps: Tensor) -> Tensor:
        rows = self.scale * maps.flatten(1).T[self.order]
        summed = torch.empty_like(rows)
        summed[self.order] = self.scale * self._sum(rows)
        return summed.T.unflatten(1, maps.shape[1:])

    def _sum(self, rows: Tensor) -> Tensor:
        """``k_2`` times ``(N, C)``, both in the order of the tiles."""
        summed = torch.zeros_like(rows)
        for own, near in self._near():
            # Inner products of what is far from 0 lose digits.
            centre = self.features[own].mean(0)
            ours, theirs = self.features[own] - centre, self.features[near] - centre
            exponents = ours @ theirs.T
            exponents -= ours.square().sum(1, keepdim=True) / 2
            exponents -= theirs.square().sum(1) / 2
            summed[own] += exponents.clamp_(max=0).exp_() @ rows[near]
        return summed

    def _near(self) -> Iterator[tuple[slice, Tensor]]:
        """Each tile, and the pixels of the tiles that are near enough, so many at a time."""
        device = self.features.device
        tile_bytes = CPU_TILE_BYTES if device.type == "cpu" else GPU_TILE_BYTES
        count = max(tile_bytes // (TILE * self.features.element_size() * TILE), 1)
        within = torch.arange(TILE, device=device)
        for number, own in enumerate(self.spans):
            apart = torch.maximum(self.least - self.most[number], self.least[number] - self.most)
            near = (apart.clamp(min=0).square().sum(1) <= self.reach).nonzero()[:, 0]
            for some in near.split(count):
                pixels = (some[:, None] * TILE + within).flatten()
                yield own, pixels[pixels < len(self.features)]


def _along_a_curve(features: Tensor) -> Tensor:
    """The order of points along Morton's curve, in cells of one standard deviation."""
    cells = (features - features.amin(0)).floor().long()
    code = torch.zeros(len(cells), dtype=torch.int64, device=features.device)
    for bit in range(12):
        for axis in range(5):
            code |= ((cells[:, axis] >> bit) & 1) << (5 * bit + axis)
    return code.argsort()

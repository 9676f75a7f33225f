"""Maps of a prompt's tokens: cross-attentions of some grids in one, averaged in clusters.

As iSeg has it (arXiv 2409.03209), with the layers and heads of Stable Diffusion that it takes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_ATTN1, _ATTN2 = (f"transformer_blocks.0.attn{number}" for number in (1, 2))
SELF = (f"up_blocks.3.attentions.1.{_ATTN1}",)
"""The self-attention along which iSeg moves labels."""

SELF_HEADS = (1, 2)
"""Those of its heads that are averaged."""

CROSS = (
    (
        *(f"down_blocks.2.attentions.{number}.{_ATTN2}" for number in (0, 1)),
        *(f"up_blocks.1.attentions.{number}.{_ATTN2}" for number in (0, 1, 2)),
    ),
    (
        f"down_blocks.1.attentions.1.{_ATTN2}",
        *(f"up_blocks.2.attentions.{number}.{_ATTN2}" for number in (0, 1)),
    ),
)
"""Its cross-attentions on grids of 16 × 16 and of 32 × 32."""

WEIGHTS = (0.7, 0.3)
"""Of their maps."""

HEADS: dict[str, tuple[tuple[int, ...], ...] | None] = {
    "all": None,
    "voc": (
        (
            *(76, 1, 43, 17, 81, 6, 44, 27, 2, 8, 22, 20, 60, 78, 12, 83, 94, 47, 88, 96),
            *(3, 33, 46, 52, 77, 93, 51, 58, 0, 13, 14, 19, 34, 41, 59, 87, 16, 24, 28, 30, 32),
        ),
        (22, 5, 21, 13, 8, 27, 28, 6, 25),
    ),
}
"""Heads of :data:`CROSS` that are averaged, on 16 × 16 and on 32 × 32: all; and those of
Stable Diffusion 2.1 that its authors take on VOC, in the order of the layers."""

CLUSTERS = 32
"""Clusters that are asked for; there begin as many as a square grid of that many needs."""

ROUNDS = 20
"""How often places are assigned to clusters."""

LEAST = 1e-6
"""Zeros of maps become it before they are compared."""

EPSILON = 1e-5
"""Added to what logarithms are taken of."""


def token_maps(
    groups: Sequence[Tensor],
    weights: Sequence[float],
    side: int,
    heads: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """The weighted sum over grids of a token's map, each of sum 1 over its places.

    Args:
        groups: ``(H, T, h, w)`` each, attention of places to tokens.
        weights: of the groups.
        side: of the result, to which maps are brought bilinearly.
        heads: of each group, those that are averaged; ``None``: all.

    Returns:
        ``(T, side, side)`` float32.
    """
    total = torch.zeros((), device=groups[0].device)
    for number, (maps, weight) in enumerate(zip(groups, weights, strict=True)):
        mean = (maps if heads is None else maps[list(heads[number])]).mean(0)
        shares = mean / mean.sum((1, 2), keepdim=True)
        total = (
            total
            + weight
            * interpolate(shares[None], (side, side), mode="bilinear", align_corners=False)[0]
        )
    return total


def averaged_in_clusters(maps: Tensor) -> Tensor:
    r"""Each place's values as the mean of its cluster's.

    Places ``i`` are compared by what all tokens have there: clusters begin at places on a square
    grid, and :data:`ROUNDS` times each place goes to the cluster whose mean ``c`` is nearest,

    .. math:: d(c, x) = \tfrac12 \textstyle\sum_t (c_t - x_t) (\ln (c_t + ε) - \ln (x_t + ε))

    which is the mean of both Kullback-Leibler divergences. Clusters that no place goes to are gone.
    The authors take these distances in 16 bits.

    Args:
        maps: ``(T, side, side)``, not negative.

    Returns:
        The same shape.
    """
    side = maps.shape[-1]
    places = maps.flatten(1).T
    x = torch.where(places == 0, LEAST, places)
    step = max(int(side // CLUSTERS**0.5), 1)
    line = torch.arange(0, side, step, device=maps.device)
    means = x[(line[:, None] * side + line).flatten()]
    logarithms = (x + EPSILON).log()
    for _ in range(ROUNDS):
        distances = torch.stack(
            [((mean - x) * ((mean + EPSILON).log() - logarithms)).sum(1) for mean in means]
        )
        cluster = distances.argmin(0)
        means = _means(x, cluster)
    cluster = cluster.unique(return_inverse=True)[1]
    return _means(places, cluster)[cluster].T.unflatten(1, (side, side))


def _means(x: Tensor, cluster: Tensor) -> Tensor:
    """The means ``(C, T)`` of the clusters that have a place, in their order."""
    numbers, own, counts = cluster.unique(return_inverse=True, return_counts=True)
    sums = x.new_zeros(len(numbers), x.shape[1]).index_add_(0, own, x)
    return sums / counts[:, None]

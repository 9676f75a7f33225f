"""iSeg (Sun, Cao, Xie, Khan, Pang: An Iterative Refinement-based Framework, arXiv 2409.03209)."""

import dataclasses
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from nerve_fast.backbones.attention_maps import attention_map, reduce_entropy_
from nerve_fast.backbones.source import GraphFeatures
from nerve_fast.errors import InputError
from nerve_fast.imaging.resampling import as_maps, to_tokens
from nerve_fast.ops.checks import check_real
from nerve_fast.refiners.checks import check_count, check_graph, check_maps
from nerve_fast.refiners.registry import registered
from nerve_fast.utils.tiles import GPU_TILE_BYTES


@registered("iseg", needs_graph=True)
@dataclasses.dataclass(frozen=True, eq=False)
class ISeg:
    """iSeg's refinement by entropy-reduced self-attention: :func:`iseg` as a refiner.

    The rest of iSeg, which makes a first map from cross-attention, is left out: a prior takes its
    place. Also otherwise than with the authors, the graph is whichever is given, which with the
    diffusion model means the empty prompt, and the image in its own shape rather than in 512 × 512.
    All of iSeg is the prior of that name, :class:`nerve_fast.priors.ISegPrior`, which needs no
    refiner.

    Args:
        iterations: how often labels move, at least 0.
        step_size: λ, 0 or more.
        heads: which of the model's heads are averaged, in the order of its layers; ``None`` takes
            all. The authors' runs took the second and third of
            ``up_blocks.3.attentions.1``: of Stable Diffusion 2.1's default layers ``(6, 7)``.

    The authors' ``(iterations, step_size)`` for open vocabularies are ``(8, 0.015)`` on VOC, which
    are the defaults, ``(5, 0.002)`` on Pascal Context and ``(10, 0.2)`` on COCO-Object.

    Raises:
        InputError, TypeError: a value is out of its range, or of the wrong type.
    """

    iterations: int = 8
    step_size: float = 0.015
    heads: Sequence[int] | None = None

    def __post_init__(self):
        _check(self.iterations, self.step_size)

    def __call__(
        self, image: Image.Image, probabilities: Tensor, graph: GraphFeatures | None = None
    ) -> Tensor:
        """Probabilities ``(K, h, w)`` to those of the graph's tokens.

        Raises:
            InputError: there is no graph, or the image has more tokens than
                :data:`~nerve_fast.backbones.attention_maps.MAX_TOKENS`.
        """
        check_maps(probabilities)
        graph = check_graph("iseg", graph)
        return iseg(
            graph,
            probabilities,
            iterations=self.iterations,
            step_size=self.step_size,
            heads=self.heads,
        )

    def memory(self, labels: int, image_size: tuple[int, int], tokens: int) -> int:
        """Bytes of the map of all tokens, of a tile of it, and of the labels on the tokens."""
        return 4 * tokens**2 + 3 * GPU_TILE_BYTES + 16 * tokens * labels


@torch.no_grad()
def iseg(
    features: GraphFeatures,
    probabilities: Tensor,
    *,
    iterations: int = 8,
    step_size: float = 0.015,
    heads: Sequence[int] | None = None,
) -> Tensor:
    r"""Labels move along the self-attention, made surer, again and again: ``G ← A' G``.

    ``A'`` is :func:`~nerve_fast.backbones.attention_maps.attention_map` after
    :func:`~nerve_fast.backbones.attention_maps.reduce_entropy_`. The authors bring each label's
    map to a least value of 0 and a sum of 1 after each step and to a range of 0 to 1 in the end, as
    their labels are known to be in the image. As rows of ``A'`` sum to 1, that changes a map by a
    factor and a constant alone; it is left out, or a label that is nowhere would cover the image.

    Args:
        features: of one image, ``q, k (1, H, N, D)``.
        probabilities: ``(K, h', w')``, resampled to the tokens first.
        iterations, step_size, heads: as for :class:`ISeg`.

    Returns:
        ``(K, h, w)`` float32 on the grid of the features, where the probabilities are.

    Raises:
        InputError, TypeError: a value is out of its range, or there are too many tokens.
    """
    check_maps(probabilities)
    _check(iterations, step_size)
    _check_heads(heads, features.q.shape[1])
    q, k = features.q[0], features.k[0]
    if heads is not None:
        q, k = q[list(heads)], k[list(heads)]
    G = to_tokens(probabilities[None].to(q.device), features.grid)[0]
    attention = reduce_entropy_(attention_map(q, k), step_size)
    for _ in range(iterations):
        G = attention @ G
    return as_maps(G, features.grid).to(probabilities.device)


def _check(iterations: int, step_size: float) -> None:
    check_count("iterations", iterations, 0)
    check_real("step_size", step_size, 0)


def _check_heads(heads: Sequence[int] | None, count: int) -> None:
    if heads is None:
        return
    known = all(isinstance(head, int) and 0 <= head < count for head in heads)
    if not heads or not known or len(set(heads)) < len(heads):
        raise InputError(
            f"heads is {heads!r}; expected one or more of 0 to {count - 1}, none of them twice, "
            "or None for all"
        )

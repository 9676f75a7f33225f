"""CLIPer's diffusion (Sun et al.: CLIPer, ICCV 2025): a chain of self-attention maps."""

import dataclasses
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from nerve_fast.backbones.source import GraphFeatures
from nerve_fast.imaging.resampling import as_maps
from nerve_fast.ops.checks import check_real
from nerve_fast.refiners.checks import check_graph, check_maps
from nerve_fast.refiners.registry import registered
from nerve_fast.utils.tiles import CPU_TILE_BYTES, GPU_TILE_BYTES, spans

EPSILON = 1e-5
"""Keeps divisions by maxima and sums from dividing by 0."""


@registered("cliper", needs_graph=True, linear=True)
@dataclasses.dataclass(frozen=True)
class CLIPerDiffusion:
    """CLIPer's refinement by diffusion: :func:`attention_chain` as a refiner.

    The authors take the heads of ``up_blocks.3.attentions.1`` and then of ``….0`` of Stable
    Diffusion 2.1 at step 101, with the empty prompt, and show it the image squashed to 512 × 512 by
    its nearest pixels, which :meth:`graph_image` does; their noise has no seed.

    Args:
        cut: what is left of a map's columns, in shares of their largest value.
        side: of the square that the graph's network sees; ``None`` shows it the image's own shape.

    Raises:
        InputError, TypeError: a value is out of its range, or of the wrong type.
    """

    cut: float = 0.2
    side: int | None = 512

    def __post_init__(self):
        check_real("cut", self.cut, 0)

    def graph_image(self, image: Image.Image) -> Image.Image:
        """What the graph's network sees of an image."""
        if self.side is None:
            return image
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        squashed = interpolate(pixels, (self.side, self.side), mode="nearest")[0]
        return Image.fromarray(squashed.permute(1, 2, 0).numpy())

    def __call__(
        self, image: Image.Image, probabilities: Tensor, graph: GraphFeatures | None = None
    ) -> Tensor:
        """Maps ``(K, h, w)`` of any scale to those of the graph's tokens."""
        check_maps(probabilities)
        graph = check_graph("cliper", graph)
        maps = probabilities[None].to(graph.q.device)
        rows = interpolate(maps, graph.grid, mode="bilinear")[0].flatten(1).T
        moved = attention_chain(graph.q[0], graph.k[0], rows, self.cut)
        return as_maps(moved, graph.grid).to(probabilities.device)

    def memory(self, labels: int, image_size: tuple[int, int], tokens: int) -> int:
        """Bytes of tiles of a map, and of the labels on the tokens."""
        return 4 * GPU_TILE_BYTES + 24 * tokens * (labels + 1)


@torch.no_grad()
def attention_chain(q: Tensor, k: Tensor, rows: Tensor, cut: float) -> Tensor:
    r"""Rows moved along the product of the maps of all heads, the last head's first.

    .. math:: \tilde a_{ij} = a_{ij} / \max_i a_{ij}, \quad
              a'_{ij} \propto \tilde a_{ij} \,[\tilde a_{ij} \ge \text{cut}], \quad
              G \leftarrow A'_1 A'_2 \cdots A'_H G

    with :math:`A_h = \mathrm{softmax}(q_h k_h^\top / \sqrt D)` and rows of ``A'`` of sum 1. Each
    map is made twice, in tiles of rows: for its columns' maxima, and to be applied. No ``N × N``
    matrix is kept.

    Args:
        q, k: ``(H, N, D)``.
        rows: ``G``, ``(N, K)``, of any scale.
        cut: see above.

    Returns:
        ``(N, K)`` float32.
    """
    heads, tokens, head_dim = q.shape
    tile_bytes = CPU_TILE_BYTES if q.device.type == "cpu" else GPU_TILE_BYTES
    tiles = list(spans(tokens, max(tile_bytes // (4 * tokens), 1)))
    G = rows.float()
    for head in reversed(range(heads)):
        keys = k[head].float().mT / math.sqrt(head_dim)

        def attention(tile, head=head, keys=keys):
            return (q[head, tile].float() @ keys).softmax(-1)

        largest = torch.stack([attention(tile).amax(0) for tile in tiles]).amax(0)
        moved = torch.empty_like(G)
        for tile in tiles:
            a = attention(tile) / (largest + EPSILON)
            a = torch.where(a < cut, 0, a)
            moved[tile] = a @ G / (a.sum(-1, keepdim=True) + EPSILON)
        G = moved
    return G

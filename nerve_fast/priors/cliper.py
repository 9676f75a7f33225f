"""CLIPer's prior (Sun et al.: CLIPer, ICCV 2025): early layers' maps and features in the last."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.backbones.clip import DEFAULT_CLIP, CLIPBackbone
from nerve_fast.priors.config import PriorConfig
from nerve_fast.priors.layers import merged, on_grid, split_heads
from nerve_fast.priors.prior import ConfiguredPrior
from nerve_fast.priors.probabilities import as_distribution, best_words
from nerve_fast.priors.registry import ACTIVATIONS, system
from nerve_fast.priors.views import View, resized, view_of


@dataclasses.dataclass(frozen=True, eq=False)
class LayerFeatures:
    """What CLIPer finds in images.

    Attributes:
        features: ``(B, L, N, E)``, of each layer and patch, of norm 1.
        moves: ``(B, N, N)``, the mean of heads of ``S``.
        grid: ``(h, w)`` of the patches.
    """

    features: Tensor
    moves: Tensor
    grid: tuple[int, int]


@system(
    "cliper",
    clip=DEFAULT_CLIP,
    templates="imagenet",
    reads=("resolution", "logit_scale", "layer", "cut", "others", "background"),
)
class CLIPer(ConfiguredPrior):
    r"""CLIPer's maps of words, with a head that has a probability of each layer.

    :func:`fused` gives ``L`` features of a patch. The cosines of each to all words, to those that
    compete (``others``) and to the mean of all words that are not of the background, times the
    scale, go through one softmax a layer, ``p_l``. Of one layer ``s`` what is below ``cut`` times
    the map's maximum is 0, in all that follows, and

    .. math:: m_j = \tfrac{1}{L}\textstyle\sum_l p_{lj} + \sum_i p_{si} S_{ij}

    with ``S`` the mean over heads of the last layer's attention, is the map of a word; that of a
    label is its best word's. They are no distribution: as probabilities they are made to sum to 1
    over the labels. Images are seen whole, position embeddings are brought to their grid
    bilinearly. Held to the authors' code on random weights; they compute in float16.

    Args:
        clip: the network.
        config: its size, scale, ``layer`` (−1 is the last), ``cut`` and words.
    """

    def __init__(self, clip: CLIPBackbone, config: PriorConfig | None = None):
        self.clip = clip
        self.config = PriorConfig("cliper") if config is None else config

    @classmethod
    def load(
        cls, config: PriorConfig, clip: str, *, device: torch.device, dtype: torch.dtype
    ) -> "CLIPer":
        """See :class:`~nerve_fast.priors.registry.System`."""
        return cls(CLIPBackbone.from_pretrained(clip, device=device, dtype=dtype), config)

    @property
    def networks(self) -> Sequence[Any]:
        """See :meth:`ConfiguredPrior.networks`."""
        return (self.clip,)

    def view(
        self,
        image_size: tuple[int, int],
        seen: tuple[int, int] | None = None,
        native_size: int | None = None,
    ) -> View:
        """See :meth:`Prior.view`: the whole image, whatever the graph's network sees."""
        return view_of(self.clip, image_size, self.config)

    def memory(self, view: View, images: int, words: int) -> int:
        """See :meth:`Prior.memory`: activations, five maps of all heads, and all layers' words."""
        vision = self.clip.model.config.vision_config
        tokens = 1 + view.size[0] * view.size[1] // self.clip.patch**2
        hidden = tokens * vision.hidden_size * self.clip.model.dtype.itemsize
        layers, width = vision.num_hidden_layers, self.clip.model.config.projection_dim
        maps = 20 * vision.num_attention_heads * tokens**2
        head = 4 * tokens * layers * (3 * (words + len(self.config.others) + 1) + width)
        activations = (ACTIVATIONS + 2 * layers) * hidden
        return activations + maps + head + self.encoded_memory(view, images)

    def encoded_memory(self, view: View, images: int) -> int:
        """See :meth:`Prior.encoded_memory`."""
        config = self.clip.model.config
        tokens = view.size[0] * view.size[1] // self.clip.patch**2
        layers = config.vision_config.num_hidden_layers
        return 4 * images * tokens * (layers * config.projection_dim + tokens)

    def check_labels(self, classes: Sequence[Sequence[str]], *, progress: bool = False) -> None:
        """Encode the words, which later calls take from memory; see :meth:`Prior.check_labels`."""
        words = [*(word for words in classes for word in words), *self.config.others]
        self.clip.encode_words(words, self.config.prompts, progress=progress)

    @torch.no_grad()
    def encode(
        self,
        images: Sequence[Image.Image],
        view: View,
        advance: Callable[[int], None] = lambda windows: None,
    ) -> LayerFeatures:
        """See :meth:`Prior.encode`."""
        features, moves = [], []
        for image in images:
            pixels = self.clip.pixels(resized(self.clip, image, view.size, self.config))[None]
            kept: list[Tensor] = []

            def read_out(layers, x, grid, pixels, kept=kept):
                read, S = fused(layers, x)
                kept.append(S.mean(1)[0, 1:, 1:])
                return on_grid(read, grid)

            read = self.clip.projected(pixels, read_out, position_filter="bilinear")
            grid = (read.shape[-3], read.shape[-2])
            features.append(normalize(read[:, 0].flatten(1, 2), dim=-1))
            moves += kept
            advance(1)
        return LayerFeatures(torch.stack(features), torch.stack(moves), grid)

    def probabilities(self, encoded: LayerFeatures, classes: Sequence[Sequence[str]]) -> Tensor:
        """``(B, K, h, w)`` float32 on CLIP's patches."""
        return as_distribution(self._maps(encoded, classes))

    def maps(self, images: Sequence[Image.Image], classes: Sequence[Sequence[str]]) -> Tensor:
        """The maps of labels, ``(B, K, h, w)``, which do not sum to 1."""
        return self._maps(self.encode(images, self.view(images[0].size)), classes)

    @torch.no_grad()
    def _maps(self, encoded: LayerFeatures, classes: Sequence[Sequence[str]]) -> Tensor:
        prompts, config = self.config.prompts, self.config
        words = [word for words in classes for word in words]
        text = self.clip.encode_words([*words, *config.others], prompts)
        foreground = [word for words in classes if config.background not in words for word in words]
        if foreground:
            mean = self.clip.encode_words(foreground, prompts).mean(0, keepdim=True)
            text = torch.cat([text, normalize(mean, dim=-1)])
        maps = []
        for features, moves in zip(encoded.features, encoded.moves, strict=True):
            p = torch.softmax(config.logit_scale * features @ text.T, dim=-1)[..., : len(words)]
            chosen = p[config.layer]
            chosen[chosen < config.cut * chosen.amax(0)] = 0
            maps.append(((p.mean(0) + moves.T @ chosen).T).unflatten(1, encoded.grid))
        return best_words(torch.stack(maps), classes)


def fused(layers: Sequence[CLIPEncoderLayer], x: Tensor) -> tuple[Tensor, Tensor]:
    r"""The last layer's attention with the sum of the maps before it, and nothing else of it.

    It is applied to what each layer takes, normalised as that layer does (the last one's as it is),
    which makes L features of a token. Each head keeps its own map:

    .. math:: A = \textstyle\sum_{l<L} \mathrm{softmax}(q_l k_l^\top / \sqrt{d}), \quad
              A \leftarrow \text{columns, then rows, of sum 1}, \quad
              B = (A + A^\top) / 2, \quad
              S_{ij} \propto \max(B_{ij} - \tfrac{1}{1+N}\textstyle\sum_i B_{ij}, 0)

    with rows of ``S`` of sum 1. Residual and MLP of the last layer are left out. As in the authors'
    code, which normalises ``A`` in place, its columns and rows are made to sum to 1 once more for
    each of the L features: the last one's is very nearly doubly stochastic.

    Args:
        layers: of the encoder.
        x: ``(B, 1+N, C)``, what the first of them takes.

    Returns:
        features: ``(L, B, 1+N, C)``.
        S: of the last feature, ``(B, heads, 1+N, 1+N)`` float32.
    """
    *early, last = layers
    inputs, summed = [], x.new_zeros((), dtype=torch.float32)
    for layer in early:
        attention = layer.self_attn
        y = layer.layer_norm1(x)
        inputs.append(y)
        q, k, v = split_heads(
            attention, attention.q_proj(y), attention.k_proj(y), attention.v_proj(y)
        )
        weights = torch.softmax(q @ k.mT * attention.scale, dim=-1, dtype=torch.float32)
        summed = summed + weights
        x = x + merged(attention, weights.to(v.dtype) @ v)
        x = x + layer.mlp(layer.layer_norm2(x))
    inputs.append(x)

    attention = last.self_attn
    features = []
    for y in inputs:
        (v,) = split_heads(attention, attention.v_proj(last.layer_norm1(y)))
        summed = summed / summed.sum(-2, keepdim=True)
        summed = summed / summed.sum(-1, keepdim=True)
        symmetric = (summed + summed.mT) / 2
        above = (symmetric - symmetric.mean(-2, keepdim=True)).clamp_min(0)
        S = normalize(above, p=1, dim=-1)
        features.append(merged(attention, S.to(v.dtype) @ v))
    return torch.stack(features), S

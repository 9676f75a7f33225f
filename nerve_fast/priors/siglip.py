"""SigLIP (Zhai et al., ICCV 2023) and SigLIP 2 (Tschannen et al., 2025), read densely."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nerve_fast.backbones.siglip import DEFAULT_SIGLIP, SigLIPBackbone, value_path
from nerve_fast.priors.config import PriorConfig
from nerve_fast.priors.patchwise import CLIPPrior
from nerve_fast.priors.probabilities import best_words
from nerve_fast.priors.registry import ENTRIES, Method, system


@system(
    "siglip",
    clip=DEFAULT_SIGLIP,
    templates="siglip",
    reads=("resolution", "window", "stride", "protocol"),
)
class SigLIP(CLIPPrior):
    r"""The value path of the pooling head on each patch, and sigmoids of its cosines.

    See :func:`~nerve_fast.backbones.siglip.value_path`. It is the read-out that MaskCLIP has of
    CLIP; no authors published one. A word's score at a place is what the model was trained to
    give, ``sigmoid(scale · cosine + bias)``, with the checkpoint's own scale and bias: how likely
    an image and a text belong together, each word by itself. A label's score is that of its best
    word, and thresholds of an evaluation meet these. The distribution over labels is the scores
    over their sum: where all of them are small, as they mostly are, a sigmoid is an exponential,
    and that is the softmax of ``scale · cosine``.

    Args:
        clip: the network.
        config: at what size and in which windows it sees images.
    """

    def __init__(self, clip: SigLIPBackbone, config: PriorConfig | None = None):
        config = PriorConfig("siglip") if config is None else config
        entry = ENTRIES["siglip"]
        method = Method("siglip", {}, entry.reads, entry.templates, entry.clip, value_path)
        super().__init__(clip, config, method)
        self._logits = clip.logits

    @classmethod
    def load(
        cls, config: PriorConfig, clip: str, *, device: torch.device, dtype: torch.dtype
    ) -> "SigLIP":
        """See :class:`~nerve_fast.priors.registry.System`."""
        return cls(SigLIPBackbone.from_pretrained(clip, device=device, dtype=dtype), config)

    def scores(self, maps: Tensor, classes: Sequence[Sequence[str]]) -> Tensor:
        """The sigmoid of each label's best word."""
        return best_words(self._logits(maps).sigmoid(), classes)

"""Where a UNet's cross-attention sees the words of a prompt, added up while an image is made."""

import contextlib
import math
from collections.abc import Iterator, Sequence

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn.functional import interpolate


class Attribution:
    """The mean attention to some tokens, over layers, heads and passes.

    As DAAM (Tang et al.: What the DAAM, ACL 2023) in the form that OVDiff has it: each head's map
    of each token is brought to one grid bicubically, what falls below 0 there is 0, and all of them
    weigh the same. Each pass has the unconditional images first, which do not count.

    Args:
        tokens: places in the prompt.
        size: side of the maps.
    """

    def __init__(self, tokens: Sequence[int], size: int):
        self.tokens = list(tokens)
        self.size = size
        self.total: Tensor | None = None
        self.count = 0

    def add(self, attention: Attention, hidden_states: Tensor, prompt: Tensor) -> None:
        """Count one layer in one pass.

        Args:
            attention: the layer.
            hidden_states: ``(2B, N, C)`` with N a square.
            prompt: ``(2B, T, C')``.
        """
        half = len(hidden_states) // 2
        q = attention.head_to_batch_dim(attention.to_q(hidden_states[half:]))
        k = attention.head_to_batch_dim(attention.to_k(prompt[half:]))
        side = math.isqrt(hidden_states.shape[1])
        probabilities = attention.get_attention_scores(q, k)[..., self.tokens]
        maps = probabilities.float().mT.unflatten(-1, (side, side))
        maps = interpolate(maps, (self.size, self.size), mode="bicubic").clamp(min=0)
        found = maps.unflatten(0, (half, -1)).sum(1)
        self.total = found if self.total is None else self.total + found
        self.count += attention.heads

    def maps(self) -> Tensor:
        """``(B, size, size)`` float32, the mean over tokens.

        Raises:
            ValueError: nothing was counted.
        """
        if self.total is None:
            raise ValueError("no pass was made")
        return self.total.mean(1) / self.count


class _Recording:
    """A processor of diffusers that is another one, and counts what it sees."""

    def __init__(self, inner, attribution: Attribution):
        self.inner = inner
        self.attribution = attribution

    def __call__(self, attention, hidden_states, encoder_hidden_states=None, *rest, **more):
        self.attribution.add(attention, hidden_states, encoder_hidden_states)
        return self.inner(attention, hidden_states, encoder_hidden_states, *rest, **more)


@contextlib.contextmanager
def recorded(unet: UNet2DConditionModel, tokens: Sequence[int], size: int) -> Iterator[Attribution]:
    """Add up the attention to ``tokens`` in all passes inside the block; one thread at a time."""
    attribution = Attribution(tokens, size)
    before = dict(unet.attn_processors)
    watched = {
        name: _Recording(inner, attribution) if name.endswith(".attn2.processor") else inner
        for name, inner in before.items()
    }
    unet.set_attn_processor(watched)
    try:
        yield attribution
    finally:
        unet.set_attn_processor(before)


def cross_attentions(unet: UNet2DConditionModel) -> list[str]:
    """Names of the UNet's cross-attentions, in the order in which a pass comes to them."""
    names = [name for name, _ in unet.named_modules() if name.endswith(".attn2")]
    order = ("down_blocks", "mid_block", "up_blocks")
    return sorted(names, key=lambda name: order.index(name.partition(".")[0]))


def default_cross_attentions(unet: UNet2DConditionModel) -> tuple[str, ...]:
    """OVDiff's nine of Stable Diffusion's sixteen: the first, the middle, and those going up.

    Of the last up-block that has any it is the last alone.
    """
    names = cross_attentions(unet)
    rest = [name for name in names if not name.startswith("down_blocks")]
    last = rest[-1].split(".")[:2]
    up = [name for name in rest[:-1] if name.split(".")[:2] != last]
    return (*[name for name in names if name.startswith("down_blocks")][:1], *up, rest[-1])

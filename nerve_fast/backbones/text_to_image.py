"""Stable Diffusion as OVDiff has it: images of a prompt, where a word is in them, and features."""

import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import CLIPTextModel, CLIPTokenizer

from nerve_fast.backbones.attribution import default_cross_attentions, recorded
from nerve_fast.backbones.capture import captured, watch
from nerve_fast.backbones.diffusion import ENCODER_ACTIVATIONS, PIXEL_BYTES, UNET_ACTIVATIONS
from nerve_fast.backbones.files import Checkpoint, read_config
from nerve_fast.backbones.kinds import not_stable_diffusion
from nerve_fast.backbones.loading import load
from nerve_fast.backbones.prompt_encoder import PromptEncoder
from nerve_fast.backbones.stable_diffusion import LAYOUT, TEXT_ENCODER, UNET, VAE
from nerve_fast.backbones.text_cache import fingerprint, tokenizer_digest
from nerve_fast.errors import InputError
from nerve_fast.utils.provenance import digest

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

DEFAULT_TEXT_TO_IMAGE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""The mirror of Stable Diffusion 1.5 that diffusers' own documentation names."""

NEGATIVE = "text, low quality, blurry, cartoon, meme, low resolution, bad, poor, faded"
STEPS, GUIDANCE = 30, 8.0
BATCH = 8
"""Images that are made at a time."""

TIMESTEP = 200
"""How much noise is added to images whose features are taken, a step of the scheduler."""

DECODER_ACTIVATIONS = 12
"""Live activations of the VAE's last layer in multiples of its output, while it decodes."""


class TextToImage:
    """A frozen Stable Diffusion 1.x or 2.x that makes images and looks at images.

    Args:
        pipe: diffusers' own pipeline, on its device and in its dtype, with a scheduler that needs
            as many passes as steps.
        revision: of the hub's repository, where the model comes from one.

    Attributes:
        size: side of the images that it makes and sees, in pixels.
        grid: side of the grid of features.
        channels: of a feature.
    """

    def __init__(self, pipe: "StableDiffusionPipeline", revision: str | None = None):
        self.pipe = pipe
        self.revision = revision
        self.networks = (pipe.vae, pipe.unet, pipe.text_encoder)
        for network in self.networks:
            network.eval().requires_grad_(False)
        pipe.set_progress_bar_config(disable=True)
        # One by one, as images decoded take more than all else.
        pipe.vae.enable_slicing()
        self.grid = pipe.unet.config.sample_size
        self.size = self.grid * pipe.vae_scale_factor
        self.layers = default_cross_attentions(pipe.unet)
        self._queries = [pipe.unet.get_submodule(f"{layer}.to_q") for layer in self.layers]
        self.channels = sum(query.out_features for query in self._queries)
        watch(self._queries)

    @classmethod
    def from_pretrained(
        cls,
        source: str = DEFAULT_TEXT_TO_IMAGE,
        *,
        device: torch.device,
        dtype: torch.dtype,
        option: str = "diffusion",
    ) -> "TextToImage":
        """Load a Stable Diffusion 1.x or 2.x, without the safety checker, which OVDiff never asks.

        Images are made by DPM-Solver++ whatever the scheduler of the checkpoint; it ends at the
        least noise of the schedule, as in the version of diffusers that OVDiff was written for.

        Args:
            source: hub id (``owner/name``, or ``owner/name@revision`` for one commit, tag or
                branch) or local folder in diffusers layout.
            device, dtype: of the networks.
            option: the argument that the source was given as, for messages.

        Raises:
            InputError: it is not available, lacks a file, is damaged or of another kind.
        """
        # Its import warns everybody of image processors that are not asked for.
        from diffusers import StableDiffusionPipeline

        source = str(source)

        def loader(checkpoint: Checkpoint) -> "TextToImage":
            folder = str(checkpoint.folder)
            read_config(checkpoint.folder / "scheduler" / "scheduler_config.json")
            pipe = StableDiffusionPipeline(
                vae=checkpoint.network(VAE, AutoencoderKL, dtype),
                text_encoder=checkpoint.network(TEXT_ENCODER, CLIPTextModel, dtype),
                tokenizer=CLIPTokenizer.from_pretrained(
                    folder, subfolder="tokenizer", local_files_only=True, trust_remote_code=False
                ),
                unet=checkpoint.network(UNET, UNet2DConditionModel, dtype),
                scheduler=DPMSolverMultistepScheduler.from_pretrained(
                    folder,
                    subfolder="scheduler",
                    local_files_only=True,
                    final_sigmas_type="sigma_min",
                ),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
            return cls(pipe.to(device), checkpoint.revision)

        return load(option, source, LAYOUT, option, loader, not_stable_diffusion)

    @functools.cached_property
    def identity(self) -> str:
        """Digests of all weights and settings, the layers, and the revision."""
        pipe = self.pipe
        parts = [network.config for network in self.networks] + [pipe.scheduler.config]
        settings = [type(pipe.scheduler).__name__, *map(_settings, parts)]
        tokens = [pipe.tokenizer.model_max_length, tokenizer_digest(pipe.tokenizer)]
        return (
            f"sha256 {fingerprint(*self.networks)} settings {digest([settings, tokens])} "
            f"{self.layers} revision {self.revision}"
        )

    @property
    def device(self) -> torch.device:
        """The device of all networks."""
        return self.pipe.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which they compute."""
        return self.pipe.unet.dtype

    def memory(self) -> int:
        """Bytes of the VAE's encoder or of the UNet, whichever takes more, for one image."""
        vae, unet = self.pipe.vae.config, self.pipe.unet.config
        encoder = ENCODER_ACTIVATIONS * vae.block_out_channels[0]
        denoiser = UNET_ACTIVATIONS * unet.block_out_channels[0] / self.pipe.vae_scale_factor**2
        pixels = (max(encoder, denoiser) * self.dtype.itemsize + PIXEL_BYTES) * self.size**2
        return int(pixels) + 8 * self.channels * self.grid**2

    def making_memory(self, count: int) -> int:
        """Bytes that a batch of ``count`` images, or of :data:`BATCH`, takes at most."""
        vae, unet = self.pipe.vae.config, self.pipe.unet.config
        batch, pixels, latents = min(count, BATCH), self.size**2, self.grid**2
        decoder = (DECODER_ACTIVATIONS * vae.block_out_channels[0] + 12 * batch) * pixels
        passes = 2 * UNET_ACTIVATIONS * unet.block_out_channels[0] * batch * latents
        tokens = self.pipe.tokenizer.model_max_length
        heads = max(self.pipe.unet.get_submodule(layer).heads for layer in self.layers)
        maps = 12 * heads * tokens * batch * latents
        return max(decoder, passes) * self.dtype.itemsize + maps

    def check(self, word: str, template: str) -> None:
        """Refuse a word that the text encoder would not read to its end.

        Raises:
            InputError: naming the word.
        """
        length = len(self.pipe.tokenizer(template.format(word)).input_ids)
        most = self.pipe.tokenizer.model_max_length
        if length > most:
            raise InputError(
                f"the label {word!r} takes {length} tokens with its prompt, and the diffusion "
                f"model reads {most}: shorten it"
            )

    @torch.no_grad()
    def make(
        self,
        word: str,
        templates: Sequence[str],
        count: int,
        seed: int,
        advance: Callable[[int], None] = lambda images: None,
    ) -> tuple[Tensor, Tensor]:
        """Images of a word, and where its tokens are seen in them.

        Args:
            word: of the label.
            templates: of prompts, each with ``{}`` for the word; batches take them in turn.
            count: of images, ``n``.
            seed: of the noise that they are made of, which is drawn on the CPU.
            advance: called with the number of images just made.

        Returns:
            images: ``(n, 3, size, size)`` uint8 on the CPU.
            maps: ``(n, grid, grid)`` float32 on the CPU, see
                :class:`~nerve_fast.backbones.attribution.Attribution`.
        """
        generator = torch.Generator().manual_seed(seed)
        images, maps = [], []
        for number, first in enumerate(range(0, count, BATCH)):
            template = templates[number % len(templates)]
            batch = min(BATCH, count - first)
            with recorded(self.pipe.unet, self.places(word, template), self.grid) as seen:
                made = self.pipe(
                    template.format(word),
                    negative_prompt=NEGATIVE,
                    num_inference_steps=STEPS,
                    guidance_scale=GUIDANCE,
                    num_images_per_prompt=batch,
                    generator=generator,
                    output_type="pt",
                )
            # As images are saved by torchvision: cut off, not rounded.
            images.append((255 * made.images.float()).to(torch.uint8).cpu())
            maps.append(seen.maps().cpu())
            advance(batch)
        return torch.cat(images), torch.cat(maps)

    def places(self, word: str, template: str) -> list[int]:
        """Where the word's tokens stand in its prompt."""
        before, own = (
            self.pipe.tokenizer(text, add_special_tokens=False).input_ids
            for text in (template.partition("{}")[0], word)
        )
        return list(range(1 + len(before), 1 + len(before) + len(own)))

    @torch.no_grad()
    def features(self, pixels: Tensor, sampling: torch.Generator, noise: torch.Generator) -> Tensor:
        """Queries of the cross-attentions for a noised image, with the empty prompt.

        Args:
            pixels: ``(3, size, size)`` from 0 to 1.
            sampling: draws the latents from the VAE's distribution.
            noise: draws the noise.

        Returns:
            ``(grid, grid, channels)`` float32: layers on coarser grids brought to it bilinearly,
            one after another.
        """
        vae, unet, alphas = self.pipe.vae, self.pipe.unet, self.pipe.scheduler.alphas_cumprod
        seen = (2 * pixels[None] - 1).to(self.device, self.dtype)
        latents = vae.encode(seen).latent_dist.sample(sampling) * vae.config.scaling_factor
        drawn = torch.randn(latents.shape, generator=noise, device=noise.device)
        signal, strength = math.sqrt(alphas[TIMESTEP]), math.sqrt(1 - alphas[TIMESTEP])
        noisy = signal * latents.float() + strength * drawn.to(latents.device)

        def forward():
            unet(noisy.to(self.dtype), TIMESTEP, self._empty_prompt, return_dict=False)

        found = []
        for query in captured(self._queries, forward):
            side = math.isqrt(query.shape[1])
            plane = query.float().mT.unflatten(-1, (side, side))
            found.append(interpolate(plane, (self.grid, self.grid), mode="bilinear"))
        return torch.cat(found, dim=1)[0].permute(1, 2, 0)

    @functools.cached_property
    def _empty_prompt(self) -> Tensor:
        encoder = self.pipe.text_encoder
        return PromptEncoder.of(encoder, self.pipe.tokenizer).states()


def _settings(config: Any) -> str:
    """A configuration of diffusers or transformers, without who wrote it and where it lay."""
    found = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    own = {
        name: value
        for name, value in found.items()
        if name != "transformers_version" and not name.startswith("_")
    }
    return json.dumps(own, sort_keys=True, default=str)

"""The networks of a Stable Diffusion 1.x or 2.x, from a folder, the hub or one file."""

import dataclasses
import os
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from nerve_fast.backbones.files import Checkpoint, Layout, Network, read_config
from nerve_fast.backbones.kinds import not_stable_diffusion
from nerve_fast.backbones.loading import guarded, load
from nerve_fast.backbones.prompt_encoder import PromptEncoder

_STEMS = ("diffusion_pytorch_model", "diffusion_pytorch_model")
TEXT_ENCODER = Network("text_encoder")
UNET = Network("unet", _STEMS)
VAE = Network("vae", _STEMS)

LAYOUT = Layout(
    networks=(TEXT_ENCODER, UNET, VAE),
    others=(
        ("scheduler/scheduler_config.json",),
        ("tokenizer/tokenizer.json", "tokenizer/vocab.json"),
        ("tokenizer/tokenizer.json", "tokenizer/merges.txt"),
    ),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Networks:
    """The parts of a Stable Diffusion, on the CPU.

    Attributes:
        vae, unet: the networks.
        alphas_cumprod: ``(T,)``, the scheduler's :math:`\\bar α`.
        prompts: the text encoder.
        revision: the commit of the hub's repository, where the model comes from one.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    alphas_cumprod: Tensor
    prompts: PromptEncoder
    revision: str | None = None


def load_networks(source: str, dtype: torch.dtype, option: str = "diffusion") -> Networks:
    """Load the networks of a folder or a hub id in diffusers layout, or of a single file.

    Single files are what the authors of Stable Diffusion distribute, ``.safetensors`` or ``.ckpt``.

    Args:
        source: hub id, folder or file.
        dtype: of the networks.
        option: the argument that takes the source, for messages.

    Raises:
        InputError: the model is not available, lacks a file, is damaged or of another kind.
    """
    if os.path.isfile(source):
        from nerve_fast.backbones.single_file import read_single_file

        with guarded("diffusion", source):
            return read_single_file(Path(source), dtype)

    def loader(checkpoint: Checkpoint) -> Networks:
        return _from_folder(checkpoint, dtype)

    return load("diffusion", source, LAYOUT, option, loader, not_stable_diffusion)


def _from_folder(checkpoint: Checkpoint, dtype: torch.dtype) -> Networks:
    folder = str(checkpoint.folder)
    read_config(checkpoint.folder / "scheduler" / "scheduler_config.json")
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(
        folder, subfolder="tokenizer", local_files_only=True, trust_remote_code=False
    )
    text_encoder = checkpoint.network(TEXT_ENCODER, CLIPTextModel, dtype)
    return Networks(
        checkpoint.network(VAE, AutoencoderKL, dtype),
        checkpoint.network(UNET, UNet2DConditionModel, dtype),
        scheduler.alphas_cumprod,
        PromptEncoder.of(text_encoder, tokenizer),
        checkpoint.revision,
    )

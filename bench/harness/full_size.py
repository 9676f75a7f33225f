"""A full-size pipeline with random weights: the configurations of SD 2.1 and ViT-L/14.

It recognises nothing, but its time and memory do not depend on the weights.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from nerve_fast import NervePipeline
from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.diffusion import DiffusionBackbone
from nerve_fast.bench.harness.machine import dtype_of_networks
from nerve_fast.priors import CLIPPrior
from nerve_fast.tiny import MODELS
from nerve_fast.utils.files import cache_folder

# fmt: off
WORDS = [
    "sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "hill", "sand", "desk",
    "bed", "house", "cloud", "lamp", "door", "window", "shelf", "curtain", "stair", "floor",
]
# fmt: on

VIT_L_14 = {
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
    },
    "text_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "projection_dim": 768,
}
SD_2_1_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
}
SD_2_1_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}


@functools.cache
def full_size_pipe(device: str = "cpu") -> NervePipeline:
    """The pipeline with the same weights every time; cached until ``cache_clear``."""
    dtype = getattr(torch, dtype_of_networks(device))
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "clip")
    text = {
        **VIT_L_14["text_config"],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPConfig(**{**VIT_L_14, "text_config": text})
        clip = random_network(lambda: CLIPModel(config), dtype)
        vae = random_network(lambda: AutoencoderKL(**SD_2_1_VAE), dtype)
        unet = random_network(lambda: UNet2DConditionModel(**SD_2_1_UNET), dtype)
    backbone = CLIPBackbone(
        clip.to(device),
        tokenizer,
        image_mean=OPENAI_CLIP_MEAN,
        image_std=OPENAI_CLIP_STD,
        resample=Image.Resampling.BICUBIC,
        source="random ViT-L/14",
        cache=cache_folder(),
    )
    return NervePipeline(
        CLIPPrior(backbone),
        DiffusionBackbone(
            vae.to(device),
            unet.to(device),
            alphas_cumprod=DDPMScheduler().alphas_cumprod,
            empty_prompt=torch.zeros(1, 77, 1024, dtype=dtype, device=device),
        ),
    )


def random_network(make: Callable[[], Any], dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model in ``dtype``; its weights are drawn by torch's own rules."""
    torch.set_default_dtype(dtype)
    try:
        return make()
    finally:
        torch.set_default_dtype(torch.float32)

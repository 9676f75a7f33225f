"""Small random models in the layouts of transformers, diffusers and the original authors."""

import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from nerve_fast.tiny import MODELS

TEXT = {
    "vocab_size": 765,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "bos_token_id": 763,
    "eos_token_id": 764,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
UNET = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "sample_size": 8,
}
VAE = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "sample_size": 16,
}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A CLIP in transformers layout; copy it before changing it."""
    folder = tmp_path_factory.mktemp("models") / "clip"
    shutil.copytree(MODELS / "clip", folder, ignore=shutil.ignore_patterns("model.*"))
    CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def diffusion_folder(tmp_path_factory):
    """A Stable Diffusion in diffusers layout; copy it before changing it."""
    folder = tmp_path_factory.mktemp("models") / "diffusion"
    shutil.copytree(
        MODELS / "diffusion", folder, ignore=shutil.ignore_patterns("unet", "vae", "text_encoder")
    )
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    AutoencoderKL(**VAE).save_pretrained(folder / "vae")
    CLIPTextModel(CLIPTextConfig(**TEXT)).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture
def clip_copy(clip_folder, tmp_path):
    """A CLIP that a test may change."""
    return shutil.copytree(clip_folder, tmp_path / "clip")


@pytest.fixture
def diffusion_copy(diffusion_folder, tmp_path):
    """A Stable Diffusion that a test may change."""
    return shutil.copytree(diffusion_folder, tmp_path / "diffusion")


@pytest.fixture
def cpu():
    return {"device": torch.device("cpu"), "dtype": torch.float32}

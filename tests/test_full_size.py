"""SD 2.1 and CLIP ViT-L/14 in their real configurations with random weights: shapes and stamina."""

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

import nerve_fast as nf
from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.diffusion import DiffusionBackbone
from nerve_fast.tiny import MODELS

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


def random_model(make):
    """A model in bfloat16; its weights are drawn by torch's own rules."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        return make()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def full_size_pipe(tmp_path_factory):
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "clip")
    text = {
        **VIT_L_14["text_config"],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    clip = CLIPBackbone(
        random_model(lambda: CLIPModel(CLIPConfig(**{**VIT_L_14, "text_config": text}))),
        tokenizer,
        image_mean=OPENAI_CLIP_MEAN,
        image_std=OPENAI_CLIP_STD,
        resample=Image.Resampling.BICUBIC,
        source="random ViT-L/14",
        cache=tmp_path_factory.mktemp("cache"),
    )
    diffusion = DiffusionBackbone(
        random_model(lambda: AutoencoderKL(**SD_2_1_VAE)),
        random_model(lambda: UNet2DConditionModel(**SD_2_1_UNET)),
        alphas_cumprod=DDPMScheduler().alphas_cumprod,
        empty_prompt=torch.zeros(1, 77, 1024, dtype=torch.bfloat16),
    )
    return nf.NervePipeline(clip, diffusion, backend="reference")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(512, 512), (768, 512)])
def test_the_pipeline_runs_at_full_size(full_size_pipe, width, height):
    image = Image.effect_noise((width, height), 60).convert("RGB")
    out = full_size_pipe(image, ["cat", "dog", "grass"])
    assert full_size_pipe.diffusion.layers == tuple(
        f"up_blocks.3.attentions.{i}.transformer_blocks.0.attn1" for i in range(3)
    )
    assert out.label_map.shape == (height, width)
    assert out.prior.shape == (3, height // 8, width // 8)
    torch.testing.assert_close(out.probabilities.sum(0), torch.ones(height, width))

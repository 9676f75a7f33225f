"""The shipped folder: what it weighs, that it loads, and that its parts do what they are for."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch.nn.functional import avg_pool2d, interpolate
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from nerve_fast.tiny import MODELS, scenes

CLIP, DIFFUSION = MODELS / "clip", MODELS / "diffusion"


@pytest.fixture(scope="module")
def vae():
    return AutoencoderKL.from_pretrained(DIFFUSION, subfolder="vae").eval()


@pytest.fixture(scope="module")
def pictures():
    """``(8, 3, 128, 128)`` in [-1, 1], of validation seeds."""
    drawn = [scenes.generate(scenes.VALIDATION_SEED + k)[0] for k in range(8)]
    pixels = np.stack([np.asarray(image) for image in drawn])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.fixture(scope="module")
def latents(vae, pictures):
    with torch.no_grad():
        return vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor


def test_all_of_it_is_ten_megabytes_at_most():
    assert sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file()) <= 10e6


def test_weights_are_fp16_and_finite():
    files = sorted(MODELS.rglob("*.safetensors"))
    assert len(files) == 4
    for file in files:
        for name, weights in load_file(file).items():
            assert weights.dtype == torch.float16, (file, name)
            assert weights.isfinite().all(), (file, name)


def test_there_is_a_model_card():
    card = (MODELS / "README.md").read_text()
    assert "examples.tiny.train" in card
    assert "not evidence" in card


@pytest.mark.parametrize(
    ("cls", "folder"), [(CLIPModel, CLIP), (CLIPTextModel, DIFFUSION / "text_encoder")]
)
def test_transformers_finds_every_weight(cls, folder):
    _, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


@pytest.mark.parametrize(("cls", "part"), [(AutoencoderKL, "vae"), (UNet2DConditionModel, "unet")])
def test_diffusers_finds_every_weight(cls, part):
    _, info = cls.from_pretrained(DIFFUSION, subfolder=part, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_the_schedule_is_stable_diffusions():
    scheduler = DDPMScheduler.from_pretrained(DIFFUSION, subfolder="scheduler")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod, (1 - betas).cumprod(0))
    assert scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize("folder", [CLIP, DIFFUSION / "tokenizer"])
@pytest.mark.parametrize(
    "label", ["a star", "Köttbullar", "traffic-light", "猫", "e\u0301tude no. 7", "don't", "🙂 ok"]
)
def test_the_tokenizer_reads_any_label(folder, label):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(label).input_ids
    assert (tokens[0], tokens[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.unk_token_id not in tokens[1:-1]
    read = tokenizer.decode(tokens, skip_special_tokens=True)
    # CLIP's tokenizer composes accents, ignores case and sets punctuation apart.
    expected = label.lower().replace("e\u0301", "\u00e9")
    assert read.replace(" ", "") == expected.replace(" ", "")


def test_the_tokenizer_pads_to_clips_context():
    tokenizer = CLIPTokenizer.from_pretrained(CLIP)
    assert len(tokenizer("", padding="max_length").input_ids) == 77
    text = CLIPModel.from_pretrained(CLIP).config.text_config
    assert text.eos_token_id == tokenizer.eos_token_id
    assert text.max_position_embeddings == 77


def test_latents_have_unit_spread(latents):
    assert 0.8 < latents.std() < 1.2


def test_the_vae_keeps_more_than_a_shrunken_picture_would(vae, latents, pictures):
    """Its grid is a quarter as fine; so is the rival's, a picture of that size enlarged."""
    with torch.no_grad():
        picture = vae.decode(latents / vae.config.scaling_factor).sample
    rival = interpolate(avg_pool2d(pictures, 4), scale_factor=4, mode="bicubic")
    error = (picture - pictures).square().mean()
    assert 10 * torch.log10(4 / error) > 22  # dB, of a range of 2
    assert error < 0.8 * (rival - pictures).square().mean()


def test_the_unet_finds_the_noise(latents):
    """At the pipeline's timestep, without a prompt; predicting nothing would leave all of it."""
    unet = UNet2DConditionModel.from_pretrained(DIFFUSION, subfolder="unet").eval()
    text_encoder = CLIPTextModel.from_pretrained(DIFFUSION / "text_encoder", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(DIFFUSION / "tokenizer")
    scheduler = DDPMScheduler.from_pretrained(DIFFUSION, subfolder="scheduler")
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor(100)
    noisy = scheduler.add_noise(latents, noise, timestep)
    with torch.no_grad():
        tokens = tokenizer("", padding="max_length", return_tensors="pt").input_ids
        states = text_encoder(tokens).last_hidden_state.expand(len(latents), -1, -1)
        found = unet(noisy, timestep, states).sample
    assert (found - noise).square().mean() < 0.5

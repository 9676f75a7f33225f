"""Models of other kinds are refused in one line that says what they are and what would do."""

import json
import shutil

import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from nerve_fast import InputError
from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.diffusion import DiffusionBackbone
from nerve_fast.backbones.dino import DINOBackbone


def unet(folder, **changes):
    settings = json.loads((folder / "unet" / "config.json").read_text())
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_config({**settings, **changes}).save_pretrained(folder / "unet")


def vae_of_16_channels(folder):
    settings = json.loads((folder / "vae" / "config.json").read_text())
    shutil.rmtree(folder / "vae")
    AutoencoderKL.from_config({**settings, "latent_channels": 16}).save_pretrained(folder / "vae")


def wide_text_encoder(folder):
    settings = json.loads((folder / "text_encoder" / "config.json").read_text())
    shutil.rmtree(folder / "text_encoder")
    encoder = CLIPTextModel(CLIPTextConfig(**{**settings, "hidden_size": 32}))
    encoder.save_pretrained(folder / "text_encoder")


def t5(folder):
    (folder / "text_encoder" / "config.json").write_text('{"model_type": "t5"}')


def transformer(name):
    def change(folder):
        shutil.rmtree(folder / "unet")
        (folder / "transformer").mkdir()
        (folder / "transformer" / "config.json").write_text(json.dumps({"_class_name": name}))

    return change


def another_class(part, name):
    def change(folder):
        path = folder / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": name}))

    return change


def sdxl(folder):
    unet(
        folder,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sdxl, "is a Stable Diffusion XL, whose UNet needs a second text encoder's output"),
        (lambda folder: unet(folder, in_channels=9), "is an inpainting model, .* takes 9 channels"),
        (lambda folder: unet(folder, in_channels=8), "is a model for editing images"),
        (lambda folder: unet(folder, in_channels=5), "is a depth-to-image model"),
        (
            lambda folder: unet(folder, in_channels=7, num_class_embeds=1000),
            "is an upscaler, whose UNet also takes the small image",
        ),
        (
            lambda folder: unet(
                folder, class_embed_type="projection", projection_class_embeddings_input_dim=8
            ),
            "is a model that varies images",
        ),
        (
            lambda folder: unet(folder, encoder_hid_dim_type="text_proj", encoder_hid_dim=12),
            "needs an embedding of kind 'text_proj'",
        ),
        (
            lambda folder: unet(folder, cross_attention_dim=24),
            "prompts of 24 channels .* and a text encoder of 16",
        ),
        (wide_text_encoder, "prompts of 16 channels .* and a text encoder of 32"),
        (vae_of_16_channels, "a VAE of 16 latent channels, and Stable Diffusion's has 4"),
        (t5, "a text encoder of kind 't5'"),
        (transformer("SD3Transformer2DModel"), "is Stable Diffusion 3, which has a transformer"),
        (transformer("FluxTransformer2DModel"), "is FLUX, which has a transformer and no UNet"),
        (transformer("NewTransformer"), "is a diffusion model with a NewTransformer"),
        (another_class("unet", "UNet3DConditionModel"), "unet is a UNet3DConditionModel"),
        (another_class("vae", "AutoencoderTiny"), "vae is a AutoencoderTiny"),
    ],
)
def test_other_diffusion_models_are_refused_by_name(diffusion_copy, cpu, change, message):
    change(diffusion_copy)
    # Before the weights are read.
    for path in diffusion_copy.rglob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=message) as caught:
        DiffusionBackbone.from_pretrained(diffusion_copy, **cpu)
    assert "expected a Stable Diffusion 1.x or 2.x" in str(caught.value)
    assert "\n" not in str(caught.value)


def siglip(folder):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes["num_attention_heads"] = 2
    SiglipModel(
        SiglipConfig(text_config={**sizes, "vocab_size": 20}, vision_config=sizes)
    ).save_pretrained(folder)


def open_clip(folder):
    folder.mkdir()
    (folder / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 8}}')
    (folder / "open_clip_model.safetensors").write_bytes(b"")


def timm(folder):
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "vit_base_patch16_224"}')


def vit(folder):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    ViTModel(ViTConfig(**sizes, num_attention_heads=2)).save_pretrained(folder)


def diffusers(folder):
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (siglip, "is SigLIP, not a CLIP"),
        (open_clip, "is an OpenCLIP checkpoint in open_clip's layout"),
        (timm, "is a model in timm's layout"),
        (vit, "is a 'vit', not a CLIP"),
        (diffusers, "is a diffusion model"),
    ],
)
def test_what_is_no_clip_is_named(tmp_path, cpu, make, message):
    make(tmp_path / "model")
    with pytest.raises(InputError, match=message) as caught:
        CLIPBackbone.from_pretrained(tmp_path / "model", **cpu)
    assert "expected a CLIP in transformers layout, such as openai/" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (siglip, "the proxy model is a 'siglip'; expected one of vit, dinov2"),
        (timm, "is a model in timm's layout; expected one of vit"),
        (diffusers, "is a diffusion model, and the proxy model is a DINO"),
    ],
)
def test_what_is_no_dino_is_named(tmp_path, cpu, make, message):
    make(tmp_path / "model")
    with pytest.raises(InputError, match=message):
        DINOBackbone.from_pretrained(tmp_path / "model", **cpu)


def test_a_clip_is_no_diffusion_model(clip_folder, cpu):
    with pytest.raises(InputError, match="is a 'clip', not a diffusion model; expected a Stable"):
        DiffusionBackbone.from_pretrained(clip_folder, **cpu)


def test_code_of_a_folder_is_neither_run_nor_offered(
    clip_copy, diffusion_copy, tmp_path, cpu, monkeypatch
):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    vit(tmp_path / "vit")
    ran = tmp_path / "ran"
    configs = ["config.json", "tokenizer_config.json", "preprocessor_config.json"]
    for folder in (clip_copy, diffusion_copy, tmp_path / "vit"):
        for path in folder.rglob("*.json"):
            if path.name in (*configs, "scheduler_config.json", "model_index.json"):
                names = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor")
                code = {"auto_map": dict.fromkeys(names, "evil.Model")}
                path.write_text(json.dumps({**json.loads(path.read_text()), **code}))
                (path.parent / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Model: pass")
    CLIPBackbone.from_pretrained(clip_copy, **cpu)
    DiffusionBackbone.from_pretrained(diffusion_copy, **cpu)
    vit_config = tmp_path / "vit" / "config.json"
    DINOBackbone.from_pretrained(tmp_path / "vit", **cpu)
    vit_config.write_text(json.dumps({**json.loads(vit_config.read_text()), "model_type": "evil"}))
    with pytest.raises(InputError, match="is a 'evil'; expected one of"):
        DINOBackbone.from_pretrained(tmp_path / "vit", **cpu)
    assert not ran.exists()

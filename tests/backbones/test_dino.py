import json

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from nerve_fast import InputError
from nerve_fast.backbones.dino import DINOBackbone
from nerve_fast.backbones.positions import resampled_positions

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "patch_size": 4,
    "image_size": 16,
}


@pytest.fixture(params=["vit", "dinov2", "dinov2_with_registers"])
def model(request):
    if request.param == "vit":
        return ViTModel(ViTConfig(**SIZES), add_pooling_layer=False).eval()
    if request.param == "dinov2":
        return Dinov2Model(Dinov2Config(**SIZES)).eval()
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES)).eval()


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_features_are_the_patches_of_the_last_state(model, folder, generator):
    pixels = torch.randn(2, 3, 16, 16, generator=generator)
    features = DINOBackbone.from_pretrained(folder, **CPU).features(pixels)
    with torch.no_grad():
        states = model(pixels).last_hidden_state
    assert features.shape == (2, 4, 4, 16)
    torch.testing.assert_close(features.flatten(1, 2), states[:, -16:])


@pytest.mark.parametrize("size", [(8, 24), (32, 12)])
def test_on_other_grids_positions_are_those_of_dinos_authors(model, folder, generator, size):
    pixels = torch.randn(1, 3, *size, generator=generator)
    grid = (size[0] // 4, size[1] // 4)
    features = DINOBackbone.from_pretrained(folder, **CPU).features(pixels)
    assert features.shape == (1, *grid, 16)
    if "registers" not in model.config.model_type:
        positions = resampled_positions(model.embeddings.position_embeddings[0].detach(), grid, 0.1)
        model.embeddings.interpolate_pos_encoding = lambda *_: positions
    asked = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
    with torch.no_grad():
        states = model(pixels, **asked).last_hidden_state
    torch.testing.assert_close(features.flatten(1, 2), states[:, -grid[0] * grid[1] :])


def test_normalisation_is_the_checkpoints_and_else_imagenets(folder):
    proxy = DINOBackbone.from_pretrained(folder, **CPU)
    assert proxy.image_mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert proxy.image_std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    (folder / "preprocessor_config.json").unlink()
    proxy = DINOBackbone.from_pretrained(folder, **CPU)
    assert proxy.image_mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert proxy.image_std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_a_model_of_another_kind_is_refused(tmp_path):
    sizes = SIZES | {"projection_dim": 8}
    CLIPVisionModel(CLIPVisionConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a 'clip_vision_model'; expected one of vit, dinov2"):
        DINOBackbone.from_pretrained(tmp_path, **CPU)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"not a complete proxy folder: model\.safetensors or"):
        DINOBackbone.from_pretrained(folder, **CPU)


def test_half_precision_stays_close(folder, generator):
    pixels = torch.randn(1, 3, 24, 16, generator=generator)
    full = DINOBackbone.from_pretrained(folder, **CPU).features(pixels)
    low = DINOBackbone.from_pretrained(folder, device=CPU["device"], dtype=torch.bfloat16)
    low = low.features(pixels)
    assert low.dtype == torch.bfloat16
    assert torch.cosine_similarity(full, low.float(), dim=-1).min() > 0.99


def test_a_model_without_layers_is_refused(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 0}))
    with pytest.raises(InputError, match="the proxy model cannot be loaded: "):
        DINOBackbone.from_pretrained(folder, **CPU)

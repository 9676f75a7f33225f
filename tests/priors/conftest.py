import json

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from nerve_fast import NervePipeline


@pytest.fixture(scope="session")
def pipe():
    """The tiny models in float32, which derivations are compared in."""
    return NervePipeline.from_pretrained("tiny", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session", params=["dino", "dinov2"])
def proxy(request, tmp_path_factory):
    """A folder with a tiny random DINO or DINOv2."""
    folder = tmp_path_factory.mktemp(request.param)
    sizes = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "patch_size": 4,
        "image_size": 32,
    }
    torch.manual_seed(0)
    if request.param == "dino":
        model = ViTModel(ViTConfig(**sizes), add_pooling_layer=False)
    else:
        model = Dinov2Model(Dinov2Config(**sizes))
    model.save_pretrained(folder)
    settings = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder

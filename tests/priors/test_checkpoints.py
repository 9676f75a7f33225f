"""CLIPs of the shape of OpenAI's that others trained: what differs is read from the checkpoint."""

import json

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.priors import METHODS
from nerve_fast.tiny import MODELS

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
# Activation, projection, mean and deviation: OpenAI's and MetaCLIP's alike, OpenCLIP's, and others.
KINDS = {
    "metaclip": ("quick_gelu", 8, [0.48145466, 0.4578275, 0.40821073], [0.2686, 0.2613, 0.2758]),
    "openclip": ("gelu", 12, [0.48145466, 0.4578275, 0.40821073], [0.2686, 0.2613, 0.2758]),
    "inception": ("gelu", 8, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
}


@pytest.fixture(params=KINDS)
def checkpoint(request, tmp_path, generator):
    activation, projection, mean, std = KINDS[request.param]
    sizes = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "hidden_act": activation,
    }
    text = {**sizes, "vocab_size": 765, "bos_token_id": 763, "eos_token_id": 764}
    vision = {**sizes, "patch_size": 8, "image_size": 32}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
    model = CLIPModel(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    model.save_pretrained(tmp_path)
    for file in (MODELS / "clip").glob("*.json"):
        if file.name not in ("config.json", "preprocessor_config.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = {"image_mean": mean, "image_std": std, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    return tmp_path, KINDS[request.param]


def activated(x, activation):
    """By the formulas, not by transformers."""
    if activation == "quick_gelu":
        return x / (1 + torch.exp(-1.702 * x))
    return x * (1 + torch.erf(x / 2**0.5)) / 2


@torch.no_grad()
def test_activation_projection_and_normalisation_are_the_checkpoints(checkpoint):
    folder, (activation, projection, mean, std) = checkpoint
    clip = CLIPBackbone.from_pretrained(folder, **CPU)
    image = Image.effect_noise((40, 24), 80).convert("RGB")
    pixels = clip.pixels(image)
    grey = torch.tensor(list(image.convert("L").tobytes())).view(24, 40) / 255
    expected = torch.stack([(grey - m) / s for m, s in zip(mean, std, strict=True)])
    torch.testing.assert_close(pixels, expected)

    features = clip.patch_features(pixels[None], METHODS["clip"].read_out)
    assert features.shape == (1, 3, 5, projection)
    vision = clip.model.vision_model
    x = vision.pre_layrnorm(vision.embeddings(pixels[None], interpolate_pos_encoding=True))
    for layer in vision.encoder.layers:
        y, attention = layer.layer_norm1(x), layer.self_attn
        q, k, v = (
            part(y).unflatten(-1, (2, 8)).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = (q @ k.mT / 8**0.5).softmax(-1) @ v
        x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        x = x + layer.mlp.fc2(activated(layer.mlp.fc1(layer.layer_norm2(x)), activation))
    expected = clip.model.visual_projection(vision.post_layernorm(x[0, 1:]))
    torch.testing.assert_close(
        features[0].flatten(0, 1), normalize(expected, dim=-1), rtol=1e-4, atol=1e-5
    )
    assert clip.encode_words(["cat"]).shape == (1, projection)

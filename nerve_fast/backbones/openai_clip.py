"""The image encoder of a checkpoint in OpenAI's layout, into a CLIP of transformers."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import CLIPModel

SINGLE = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre": "vision_model.pre_layrnorm",
    "ln_post": "vision_model.post_layernorm",
}
"""OpenAI's names below ``visual.``, and transformers' ones."""

IN_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
"""The same, of a layer."""


def load_image_encoder(model: CLIPModel, weights: Mapping[str, Tensor]) -> None:
    """Put the weights of an image encoder in the place of a model's own.

    Args:
        model: of the same shape.
        weights: by OpenAI's names, ``visual.`` left out.

    Raises:
        ValueError: a weight is missing, or there are others.
        RuntimeError: a weight is of another shape.
    """
    renamed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name == "proj":
            renamed["visual_projection.weight"] = weight.T
            continue
        layer = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if layer is None:
            renamed[_renamed(name, SINGLE)] = weight
            continue
        home = f"vision_model.encoder.layers.{layer[1]}"
        packed = re.fullmatch(r"attn\.in_proj_(weight|bias)", layer[2])
        if packed is None:
            renamed[f"{home}.{_renamed(layer[2], IN_LAYERS)}"] = weight
            continue
        for part, values in zip("qkv", weight.chunk(3), strict=True):
            renamed[f"{home}.self_attn.{part}_proj.{packed[1]}"] = values
    own = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(("vision_model.", "visual_projection."))
    }
    for what, names in (("missing", own.keys() - renamed), ("further", renamed.keys() - own)):
        if names:
            raise ValueError(f"{len(names)} {what} weights, such as {min(names)}")
    with torch.no_grad():
        model.load_state_dict(renamed, strict=False)


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name

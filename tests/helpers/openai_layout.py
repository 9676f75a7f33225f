"""What a CLIP of transformers would be in OpenAI's layout."""

from collections.abc import Mapping

import torch
from torch import Tensor


def as_openai(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an image encoder of transformers under OpenAI's names."""
    vision = "vision_model."
    layers = sum(name.startswith(vision) and name.endswith("layer_norm1.bias") for name in state)
    found = {
        "class_embedding": state[vision + "embeddings.class_embedding"],
        "conv1.weight": state[vision + "embeddings.patch_embedding.weight"],
        "positional_embedding": state[vision + "embeddings.position_embedding.weight"],
        "proj": state["visual_projection.weight"].T.contiguous(),
    }
    for kind in ("weight", "bias"):
        found[f"ln_pre.{kind}"] = state[f"{vision}pre_layrnorm.{kind}"]
        found[f"ln_post.{kind}"] = state[f"{vision}post_layernorm.{kind}"]
        for number in range(layers):
            layer = f"{vision}encoder.layers.{number}."
            block = f"transformer.resblocks.{number}."
            found[f"{block}attn.in_proj_{kind}"] = torch.cat(
                [state[f"{layer}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            )
            for new, old in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                found[f"{block}{new}.{kind}"] = state[f"{layer}{old}.{kind}"]
    return found

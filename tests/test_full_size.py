"""Models in their real configurations with random weights: shapes and stamina."""

import copy
import sys

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    GroupViTConfig,
    GroupViTModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from nerve_fast.backbones import text_to_image as text_to_image_module
from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.diffusion import DiffusionBackbone
from nerve_fast.backbones.dino import DINOBackbone
from nerve_fast.backbones.found import Saliency
from nerve_fast.backbones.groupvit import GroupViTBackbone
from nerve_fast.backbones.prompt_encoder import PromptEncoder
from nerve_fast.backbones.prompted import PromptedDiffusion
from nerve_fast.backbones.siglip import SigLIPBackbone
from nerve_fast.backbones.text_to_image import TextToImage
from nerve_fast.bench.harness.full_size import full_size_pipe
from nerve_fast.bench.harness.memory import Memory
from nerve_fast.evaluation.presets import Settings, settings_of
from nerve_fast.evaluation.segmenter import Segmenter, prior_of
from nerve_fast.priors import (
    CLIPDIY,
    CaR,
    GroupViT,
    ISegPrior,
    OVDiff,
    PixelCLIP,
    PriorConfig,
    SigLIP,
)
from nerve_fast.priors.iseg import CROSS, SELF
from nerve_fast.priors.ovdiff import prior as ovdiff_prior
from nerve_fast.priors.ovdiff.crops import crops
from nerve_fast.priors.pixelclip import PixelCLIPBackbone
from nerve_fast.tiny import MODELS
from nerve_fast.utils.files import cache_folder


@pytest.fixture(scope="module")
def pipe(own_cache):
    pipe = copy.copy(full_size_pipe())
    full_size_pipe.cache_clear()
    pipe.backend = "reference"
    return pipe


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(512, 512), (768, 512)])
def test_the_pipeline_runs_at_full_size(pipe, width, height):
    image = Image.effect_noise((width, height), 60).convert("RGB")
    out = pipe(image, ["cat", "dog", "grass"])
    assert pipe.graph.layers == tuple(
        f"up_blocks.3.attentions.{i}.transformer_blocks.0.attn1" for i in range(3)
    )
    assert out.label_map.shape == (height, width)
    assert out.prior.shape == (3, height // 8, width // 8)
    torch.testing.assert_close(out.probabilities.sum(0), torch.ones(height, width))


SIDES = {"large": (1024, 16, 4096), "base": (768, 12, 3072), "small": (384, 6, 1536)}


def sizes(name, **more):
    width, heads, inner = SIDES[name]
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "num_hidden_layers": 12,
        **more,
    }


def words(tokenizer, **more):
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 12, **ends, **more}


@pytest.fixture(scope="module")
def make_clip(own_cache):
    """``make_clip(kind, patch)``: a CLIP ViT-B in its real configuration, with random weights."""
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "clip")

    def make(kind, patch):
        config = CLIPConfig(
            vision_config=sizes("base", patch_size=patch, image_size=224),
            text_config=words(tokenizer),
            projection_dim=512,
        )
        normal = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD, "resample": 3}
        return kind(CLIPModel(config), tokenizer, **normal, source="random", cache=cache_folder())

    return make


@pytest.fixture(scope="module")
def make_system(own_cache, make_clip):
    """``make_system(name)``: a whole system in its real configuration, with random weights."""
    common = {"source": "random", "cache": cache_folder()}
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "clip")

    def make(name, graph=None):
        torch.manual_seed(0)
        half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        if name == "groupvit":
            ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            model = GroupViTModel(GroupViTConfig(text_config=ends))
            config = PriorConfig(name, background="background", threshold=0.95)
            return GroupViT(GroupViTBackbone(model, tokenizer, **half, **common), config)
        if name == "iseg":
            backbone = DiffusionBackbone(
                graph.vae,
                graph.unet,
                alphas_cumprod=graph.alphas_cumprod,
                empty_prompt=graph.empty_prompt,
                layers=SELF,
            )
            sizes_of_text = {
                "num_hidden_layers": 23,
                "intermediate_size": 4096,
                "hidden_act": "gelu",
            }
            ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            text = CLIPTextConfig(hidden_size=1024, num_attention_heads=16, **sizes_of_text, **ends)
            encoder = PromptEncoder.of(CLIPTextModel(text).to(graph.dtype), tokenizer)
            config = prior_of(settings_of(name, "voc21", True), "background", ("sea", "wall"))
            prompted = PromptedDiffusion(backbone, encoder, CROSS)
            return ISegPrior(make_clip(CLIPBackbone, 16), prompted, config)
        if name == "clip-diy":
            vision = ViTConfig(**sizes("small", patch_size=8, image_size=224))
            dino = DINOBackbone(ViTModel(vision, add_pooling_layer=False), **half)
            config = PriorConfig(name, background="background")
            return CLIPDIY(
                make_clip(CLIPBackbone, 32), Saliency(dino, torch.randn(384), 0.1), config
            )
        if name == "car":
            vision = sizes("large", patch_size=14, image_size=224, num_hidden_layers=24)
            text = words(tokenizer, hidden_size=768, num_attention_heads=12, intermediate_size=3072)
            config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=768)
            normal = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD, "resample": 3}
            judge = CLIPBackbone(CLIPModel(config), tokenizer, **normal, **common)
            return CaR(
                make_clip(CLIPBackbone, 16), judge, PriorConfig(name, background="background")
            )
        if name == "pixelclip":
            return PixelCLIP(make_clip(PixelCLIPBackbone, 16))
        vision = sizes("base", patch_size=16, image_size=224)
        text = sizes("base", vocab_size=32_000)
        model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
        return SigLIP(SigLIPBackbone(model, tokenizer, resample=3, **half, **common))

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dataset", "size"),
    [
        ("groupvit", "voc21", (448, 597)),
        ("clip-diy", "voc21", (256, 256)),
        ("pixelclip", "voc20", (64, 64)),
        ("car", "voc21", (150, 200)),
        ("siglip", "voc20", (21, 28)),
    ],
)
def test_a_system_labels_an_image_at_full_size(make_system, name, dataset, size):
    prior = make_system(name)
    background = ["background"] if dataset == "voc21" else []
    classes = [[word] for word in [*background, "cat", "dog", "grass"]]
    # The dense CRF takes time with the square of the pixels.
    seen = (200, 150) if name == "car" else (500, 375)
    image = Image.effect_noise(seen, 60).convert("RGB")
    assert prior.maps([image], classes).shape[-2:] == size
    settings = Settings(name, "none", "plain")
    if name != "siglip":
        settings = settings_of(name, dataset, bool(background))
    found = Segmenter(prior, settings, classes, bool(background))(image)
    assert found.shape == seen[::-1]
    assert found.min() >= 0
    assert found.max() < len(classes)


@pytest.mark.slow
def test_iseg_labels_an_image_at_full_size(make_system, pipe):
    prior = make_system("iseg", pipe.graph)
    assert prior.diffusion.heads == [100, 30]
    classes = [[word] for word in ["background", "cat", "dog", "grass"]]
    image = Image.effect_noise((500, 375), 60).convert("RGB")
    prior.check_labels(classes)
    segmenter = Segmenter(prior, settings_of("iseg", "voc21", True), classes, True)
    found = segmenter(image)
    assert found.shape == (375, 500)
    assert found.min() >= 0
    assert found.max() < len(classes)
    # What is not the background is what was found in the image.
    assert len(found.unique()) > 1


@pytest.fixture(scope="module")
def text_to_image(own_cache):
    """Stable Diffusion 1.5 in its real configuration, with random weights."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "clip", model_max_length=77)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4}
    blocks |= {"up_block_types": ("UpDecoderBlock2D",) * 4}
    channels = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    vae = AutoencoderKL(latent_channels=4, sample_size=512, **channels, **blocks)
    text = words(tokenizer, hidden_size=768, num_attention_heads=12, intermediate_size=3072)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(final_sigmas_type="sigma_min", **betas),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return TextToImage(pipe)


class Halves:
    """A detector that finds the upper and the lower half of any image."""

    def __call__(self, image):
        upper = torch.zeros(image.height, image.width)
        upper[: image.height // 2] = 1
        return [upper, 1 - upper]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ovdiff_makes_prototypes_and_labels_an_image(make_clip, text_to_image, monkeypatch):
    monkeypatch.setattr(text_to_image_module, "STEPS", 1)
    vision = ViTConfig(**sizes("base", patch_size=8, image_size=224))
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    dino = DINOBackbone(ViTModel(vision, add_pooling_layer=False), **half)
    config = PriorConfig("ovdiff", background="background", support=1)
    clip = make_clip(CLIPBackbone, 16)
    prior = OVDiff(clip, dino, text_to_image, Halves(), config)
    assert (text_to_image.size, text_to_image.grid, text_to_image.channels) == (512, 64, 7680)
    assert len(text_to_image.layers) == 9
    # Each crop takes what the whole takes.
    monkeypatch.setattr(ovdiff_prior, "crops", lambda size, side: crops(size, side)[-1:])
    classes = [["background"], ["cat"]]
    image = Image.effect_noise((375, 375), 60).convert("RGB")
    memory = Memory("cpu")
    prior.check_labels(classes)
    making = memory.peak()[0]
    networks, gathered = prior.support.memory()
    # What the SAM would take is no part of it.
    alone = max(text_to_image.making_memory(1), gathered)
    print(f"making: {making:,} bytes of {alone:,}, with a SAM {networks:,}")
    memory = Memory("cpu")
    found = Segmenter(prior, settings_of("ovdiff", "voc21", True), classes, True)(image)
    view = prior.view(image.size)
    planned = prior.memory(view, 1, len(classes))
    calling = memory.peak()[0]
    print(f"calling: {calling:,} bytes of {planned:,}")
    assert found.shape == (375, 375)
    assert making <= alone
    assert calling <= planned

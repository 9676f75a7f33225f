"""Make the tiny models: ``python -m examples.tiny.train --out DIR``.

Everything is drawn and trained on the CPU from one seed: scenes, then a VAE on them, a CLIP from
captions and masks, and a latent diffusion UNet that reads prompts through CLIP's text encoder. The
UNet learns to remove noise and nothing else: no mask ever reaches it.
"""

import argparse
import math
import random
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from nerve_fast.backbones.templates import IMAGENET_TEMPLATES
from nerve_fast.errors import InputError
from nerve_fast.priors import METHODS
from nerve_fast.tiny import scenes

LOGIT_SCALE = 40  # of the class probabilities that the pipeline forms from cosines
CAPTION_SCALE = 15  # of the contrast between captions, of which several may fit a picture
CONTEXT = 77  # CLIP's context length


@dataclass(frozen=True)
class Budget:
    """How much is drawn and trained; the default is what the shipped models had."""

    scenes: int = 8000
    vae_steps: int = 1200
    clip_caption_steps: int = 200
    clip_patch_steps: int = 3400
    unet_steps: int = 1000


# --- scenes and words -----------------------------------------------------------------------------


def _draw(seed):
    image, mask, names = scenes.generate(seed)
    kinds = np.array([scenes.NAMES.index(n) for n in names], np.uint8)
    return np.asarray(image), kinds[mask]


def draw_scenes(count):
    """Scenes of seeds 0 to count − 1.

    Returns:
        images: ``(count, 3, 128, 128)`` uint8.
        masks: ``(count, 128, 128)`` uint8, indices into ``scenes.NAMES``.
    """
    images = torch.empty(count, 3, scenes.BASE, scenes.BASE, dtype=torch.uint8)
    masks = torch.empty(count, scenes.BASE, scenes.BASE, dtype=torch.uint8)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        drawn = pool.map(_draw, range(count), chunksize=50)
        for i, (image, mask) in enumerate(tqdm(drawn, "scenes", count)):
            images[i] = torch.from_numpy(image).permute(2, 0, 1)
            masks[i] = torch.from_numpy(mask)
    return images, masks


def captions(masks):
    """A caption a mask, "ball and a sand and a tree" in random order, to be put into a template."""
    result = []
    for mask in masks:
        names = [scenes.NAMES[k] for k in torch.bincount(mask.flatten()).nonzero()]
        random.shuffle(names)
        result.append(random.choice(IMAGENET_TEMPLATES).format(" and a ".join(names)))
    return result


def build_tokenizer():
    """CLIP's tokenizer with few words: every byte, and those of templates and scenes whole."""
    alphabet = list(_byte_alphabet())
    vocabulary = alphabet + [c + "</w>" for c in alphabet]
    text = " ".join(IMAGENET_TEMPLATES).replace("{}", " ").replace(".", " ").replace("-", " ")
    merges: list[tuple[str, str]] = []
    for word in sorted({*text.lower().split(), "and", *scenes.NAMES}):
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            # As the tokenizer will: the oldest merge that applies goes first.
            known = [merge for merge in merges if merge in pairwise(parts)]
            pair = known[0] if known else (parts[0], parts[1])
            if not known:
                merges.append(pair)
                vocabulary.append("".join(pair))
            merged, i = [], 0
            while i < len(parts):
                take = 2 if tuple(parts[i : i + 2]) == pair else 1
                merged.append("".join(parts[i : i + take]))
                i += take
            parts = merged
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


def _byte_alphabet():
    """The printable stand-ins that byte-level BPE uses for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = (chr(256 + n) for n in range(256 - len(plain)))
    return [chr(b) if b in plain else next(rest) for b in range(256)]


# --- training helpers -----------------------------------------------------------------------------


def _fit(name, parameters, steps, lr, step_loss):
    """Minimise ``step_loss(step)`` by AdamW with a short warm-up and a cosine decay."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.98), weight_decay=0.01)
    warm = max(1, min(100, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * s / steps))
    )
    shown = None
    with tqdm(range(steps), name) as bar:
        for step in bar:
            with torch.autocast("cpu", torch.bfloat16):
                loss = step_loss(step)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            shown = loss.item() if shown is None else 0.98 * shown + 0.02 * loss.item()
            bar.set_postfix_str(f"loss {shown:.4f}", refresh=False)


def _unit(images):
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


# --- VAE ------------------------------------------------------------------------------------------


def train_vae(images, steps):
    """An autoencoder, 4 latent channels at a quarter of the resolution; MSE and a slight KL."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=scenes.BASE,
        mid_block_add_attention=False,
    )

    def step_loss(step):
        side = scenes.BASE // 2  # crops: four times as many steps in the same time
        pick = torch.randint(len(images), (16,))
        y, x = torch.randint(side + 1, (2,)).tolist()
        target = _unit(images[pick, :, y : y + side, x : x + side])
        latent = vae.encode(target).latent_dist
        reconstruction = vae.decode(latent.sample()).sample.float()
        return (
            F.mse_loss(reconstruction, target) + 1e-5 * latent.kl().mean() / latent.mean[0].numel()
        )

    _fit("VAE", vae.parameters(), steps, 2e-3, step_loss)
    vae.register_to_config(scaling_factor=float(1 / encode(vae, images[:256]).std()))
    return vae


@torch.no_grad()
def encode(vae, images):
    """Latent means ``(n, 4, h/4, w/4)`` float32 of uint8 images, not yet scaled."""
    return torch.cat([vae.encode(_unit(batch)).latent_dist.mean for batch in images.split(32)])


# --- CLIP -----------------------------------------------------------------------------------------


def train_clip(images, masks, tokenizer, caption_steps, patch_steps):
    """A CLIP from captions alone, then also from its patches' names through both read-outs."""
    text = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": CONTEXT,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    vision = {
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
    }
    clip = CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config=vision,
            projection_dim=64,
            logit_scale_init_value=math.log(LOGIT_SCALE),
        )
    )
    # The fused attention's backward pass in bf16 takes three times as long on a CPU.
    clip.set_attn_implementation("eager")
    processor = image_processor()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    vision, patch = clip.vision_model, clip.config.vision_config.patch_size

    def project(x):
        return F.normalize(clip.visual_projection(vision.post_layernorm(x)), dim=-1)

    def embed(texts):
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        return F.normalize(clip.text_projection(clip.text_model(**tokens).pooler_output), dim=-1)

    def step_loss(step):
        pick = torch.randint(len(images), (16,))
        grid, window, flip = _view()
        image, mask = images[pick][window], masks[pick][window].long()
        if flip:
            image, mask = image.flip(-1), mask.flip(-1)
        pixels = F.interpolate(
            image.float(), [patch * g for g in grid], mode="bilinear", antialias=True
        )
        x = penultimate(vision, (pixels / 255 - mean) / std)

        pooled = project(vision.encoder.layers[-1](x, None)[:, 0])
        logits = CAPTION_SCALE * pooled @ embed(captions(mask)).mT
        same = torch.arange(len(pick))
        contrast = (F.cross_entropy(logits, same) + F.cross_entropy(logits.mT, same)) / 2
        if step < caption_steps:
            return contrast

        few = random.sample(IMAGENET_TEMPLATES, 3)
        words = embed([t.format(n) for n in scenes.NAMES for t in few])
        words = F.normalize(words.unflatten(0, (-1, len(few))).mean(1), dim=-1)
        share = F.one_hot(mask, len(scenes.NAMES)).permute(0, 3, 1, 2).float()
        share = F.adaptive_avg_pool2d(share, grid).flatten(2).mT
        read_out = METHODS[("maskclip", "naclip")[step % 2]].read_out
        patches = project(read_out(vision.encoder.layers[-1:], x, grid, pixels).flatten(1, 2))
        logits = LOGIT_SCALE * patches @ words.mT
        return F.cross_entropy(logits.flatten(0, 1).float(), share.flatten(0, 1)) + 0.1 * contrast

    trained = [p for name, p in clip.named_parameters() if name != "logit_scale"]
    _fit("CLIP", trained, caption_steps + patch_steps, 8e-4, step_loss)
    return clip


def _view():
    """A patch grid, the crop of the scene that fills it, and whether to mirror it."""
    if random.random() < 0.5:
        grid, part = (12, 12), 1.0
    else:
        grid = random.choice([(12, 12), (12, 14), (14, 12), (12, 16), (16, 12), (14, 14)])
        part = random.uniform(0.75, 1)
    sides = [int(scenes.BASE * part * g / max(grid)) for g in grid]
    corner = [random.randint(0, scenes.BASE - s) for s in sides]
    window = (..., *(slice(c, c + s) for c, s in zip(corner, sides, strict=True)))
    return grid, window, random.random() < 0.5


def image_processor():
    """CLIP's own preprocessing at the tiny model's size."""
    return CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})


def penultimate(vision, pixels):
    """What enters the last layer: ``(n, 1 + patches, width)``, the class token first."""
    x = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))
    for layer in vision.encoder.layers[:-1]:
        x = layer(x, None)
    return x


# --- UNet -----------------------------------------------------------------------------------------


def train_unet(latents, masks, text_encoder, tokenizer, scheduler, steps):
    """A UNet that predicts the noise in scaled latents; mostly unprompted, as it will be used."""
    unet = UNet2DConditionModel(
        sample_size=latents.shape[-1],
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        # Two self-attentions a block: the walk averages their heads, and more of them agree better.
        transformer_layers_per_block=(2, 1),
        attention_head_dim=2,  # diffusers' name for the number of heads
        norm_num_groups=8,
        cross_attention_dim=text_encoder.config.hidden_size,
    )

    @torch.no_grad()
    def prompt_states(pick):
        texts = [c if random.random() < 0.25 else "" for c in captions(masks[pick])]
        tokens = tokenizer(texts, padding="max_length", max_length=CONTEXT, return_tensors="pt")
        return text_encoder(tokens.input_ids).last_hidden_state

    def step_loss(step):
        # Crops first: they teach the texture at a fifth of the price, whole scenes then the reach.
        side, batch = (16, 32) if step < 0.5 * steps else (latents.shape[-1], 16)
        pick = torch.randint(len(latents), (batch,))
        y, x = torch.randint(latents.shape[-1] - side + 1, (2,)).tolist()
        clean = latents[pick, :, y : y + side, x : x + side]
        noise = torch.randn_like(clean)
        # Four in five timesteps are small: there the noise hides texture but not yet objects.
        low = torch.rand(len(pick)) < 0.8
        t = torch.where(
            low, torch.randint(20, 400, (len(pick),)), torch.randint(0, 1000, (len(pick),))
        )
        predicted = unet(scheduler.add_noise(clean, noise, t), t, prompt_states(pick)).sample
        return F.mse_loss(predicted.float(), noise)

    _fit("UNet", unet.parameters(), steps, 2e-3, step_loss)
    return unet


# --- all of it ------------------------------------------------------------------------------------


def make_models(folder, budget, seed):
    """Train everything and save it under ``folder`` as ``clip/`` and ``diffusion/``, in fp16."""
    random.seed(seed)
    torch.manual_seed(seed)
    images, masks = draw_scenes(budget.scenes)
    tokenizer = build_tokenizer()
    vae = train_vae(images, budget.vae_steps)
    clip = train_clip(images, masks, tokenizer, budget.clip_caption_steps, budget.clip_patch_steps)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    latents = encode(vae, images) * vae.config.scaling_factor
    # Anew, so that the UNet can be trained again from a finished VAE and CLIP.
    random.seed(seed)
    torch.manual_seed(seed)
    unet = train_unet(latents, masks, clip.text_model, tokenizer, scheduler, budget.unet_steps)
    save(folder, clip, tokenizer, vae, unet, scheduler)


def save(folder, clip, tokenizer, vae, unet, scheduler):
    """Write the models in the layouts of transformers and diffusers, weights in fp16."""
    folder = Path(folder)
    for part in (clip.half(), tokenizer, image_processor()):
        part.save_pretrained(folder / "clip")
    StableDiffusionPipeline(
        vae.half(),
        clip.text_model,
        tokenizer,
        unet.half(),
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "diffusion")
    # Stable Diffusion's own files, and so every version of transformers, have this prefix.
    weights = folder / "diffusion" / "text_encoder" / "model.safetensors"
    states = {f"text_model.{k}": v for k, v in clip.text_model.state_dict().items()}
    save_file(states, weights, {"format": "pt"})


def train(out, budget=Budget(), seed=0):
    """Make the models and put them at ``out``, which must not exist: whole or not at all.

    Raises:
        InputError: ``out`` is there already.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists already; choose another folder or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        make_models(Path(folder) / "models", budget, seed)
        (Path(folder) / "models").rename(out)


def main(arguments=None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Trains the models that ship on invented scenes, on the CPU."
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write; must not exist"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    options = parser.parse_args(arguments)
    try:
        train(options.out, seed=options.seed)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

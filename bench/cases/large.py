"""Jobs on large images and on many: each gives what it found, for a process of its own."""

import copy
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from nerve_fast import NerveConfig, NervePipeline, PriorConfig
from nerve_fast.backbones.diffusion import DiffusionBackbone
from nerve_fast.bench.harness.full_size import WORDS, full_size_pipe
from nerve_fast.bench.harness.profiling import profiled, steps_of
from nerve_fast.imaging.visualize import overlay, save_picture
from nerve_fast.priors.patchwise import CLIPPrior
from nerve_fast.tiny.scenes import NAMES, generate

SEED = 1_200_000
"""Of the scenes: none of them was trained or tuned on."""

BUDGET = "6GB"
"""For what is to stay within 6 GB, the process itself included."""

ALL_KEYS = 1 << 40
"""More keys than any image has tokens: all of them, with head entropies of 1024 rows."""

LABELS = list(NAMES)


def timed(function: Callable):
    """The result of ``function()`` and the seconds it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def peak() -> int:
    """Peak of this process's resident bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tiny() -> NervePipeline:
    return NervePipeline.from_pretrained("tiny", device="cpu")


def drawn(path: str, side: int) -> None:
    """A scene as a file: drawing it takes more memory than segmenting it."""
    generate(SEED, side)[0].save(path)


def large(path: str, normalization: str, picture: str | None) -> dict:
    """The tiny models on a very large image."""
    pipe = tiny()
    config = NerveConfig(normalization=normalization)
    out, seconds = timed(
        lambda: pipe(path, LABELS, config=config, processing_resolution=0, max_memory=BUDGET)
    )
    found = {"seconds": seconds, "process": peak(), "plan": str(out.plan)}
    found["keys"] = out.plan.walk.problem.columns
    if picture:
        whole = overlay(out.image, out.label_map.numpy(), out.labels)
        box = (1536, 1536, 2048, 2048)
        part = overlay(
            out.image.crop(box), out.label_map[box[1] : box[3], box[0] : box[2]].numpy(), out.labels
        )
        half = (512, round(512 * whole.height / whole.width))
        shown = Image.new("RGB", (1536 + 16, max(half[1], part.height)), "white")
        shown.paste(out.image.resize((512, 512)), (0, 0))
        shown.paste(whole.resize(half), (512 + 8, 0))
        shown.paste(part, (1024 + 16, 0))
        save_picture(shown, picture)
    return found


def rows_of_entropy(path: str) -> dict:
    """Head entropies from a part of their rows against all of them."""
    pipe = tiny()
    config = NerveConfig(normalization="shift")
    most, every = (
        pipe(path, LABELS, config=config, processing_resolution=0, global_keys=keys)
        for keys in (ALL_KEYS, None)
    )
    same = (most.label_map == every.label_map).double().mean().item()
    return {"tokens": most.plan.grid[0] * most.plan.grid[1], "agreement": same}


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def parts_of(run: Callable) -> dict[str, float]:
    """Seconds of it all, and of the pipeline's own steps."""
    seconds = []
    trace = profiled(lambda: seconds.append(timed(run)[1]))
    return {"all": seconds[0], **steps_of(trace)}


def full_size(side: int, normalization: str) -> dict:
    """SD 2.1 and ViT-L/14 with random weights: memory, and where the time goes."""
    pipe = full_size_pipe()
    pipe.prior.clip.encode_words(WORDS)
    config = NerveConfig(normalization=normalization)
    image = noise(side)

    def run(side):
        return pipe(image[:side, :side], WORDS, config=config, processing_resolution=0)

    run(512)
    steps = parts_of(lambda: run(side))
    return {"steps": steps, "process": peak()}


def full_size_once(reference: bool) -> dict:
    """The same at 512 × 512, one call: its memory."""
    pipe = full_size_pipe()
    if reference:
        pipe.backend = "reference"
    pipe.prior.clip.encode_words(WORDS)
    pipe(noise(512), WORDS)
    return {"process": peak()}


def as_it_comes(pipe: NervePipeline) -> NervePipeline:
    """The reference: the dense graph stage, after networks laid out as diffusers gives them."""
    reference, ours = copy.copy(pipe), pipe.graph
    # Made anew, as what is watched for queries and keys belongs to a network.
    diffusion = DiffusionBackbone(
        copy.deepcopy(ours.vae),
        copy.deepcopy(ours.unet),
        alphas_cumprod=ours.alphas_cumprod,
        empty_prompt=ours.empty_prompt,
    )
    diffusion.memory_format = torch.contiguous_format
    for network in (diffusion.vae, diffusion.unet):
        network.to(memory_format=diffusion.memory_format)
    reference.graph, reference.backend = diffusion, "reference"
    return reference


def fast_against_reference() -> dict:
    """The same at 512 × 512, in turns, warm."""
    pipe, image = full_size_pipe(), noise(512)
    pipe.prior.clip.encode_words(WORDS)
    same_networks = copy.copy(pipe)
    same_networks.backend = "reference"
    reference = as_it_comes(pipe)
    contenders = {
        "fast": lambda: pipe(image, WORDS),
        "reference": lambda: reference(image, WORDS),
        "reference, our networks": lambda: same_networks(image, WORDS),
        "networks alone": lambda: pipe.encode(image),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found = {}
    for turn in range(4):
        for name, run in contenders.items():
            found[name], once = timed(run)
            if turn:
                seconds[name].append(once)
    same = (found["fast"].label_map == found["reference"].label_map).double().mean().item()
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {"seconds": medians, "agreement": same}


def hundred() -> dict:
    """100 images of 512 × 512, one by one and 16 at a time, in turns."""
    pipe = tiny()
    images = [generate(SEED + i, 512)[0] for i in range(100)]
    pipe(images[:16], LABELS, batch_size=16)
    alone, together = [], []
    for _ in range(3):
        one_by_one, seconds = timed(lambda: [pipe(image, LABELS) for image in images])
        alone.append(seconds)
        at_once, seconds = timed(lambda: pipe(images, LABELS, batch_size=16))
        together.append(seconds)
    same = [
        (a.label_map == b.label_map).double().mean().item()
        for a, b in zip(one_by_one, at_once, strict=True)
    ]
    ways = {
        "alone": lambda: [pipe(image, LABELS) for image in images],
        "together": lambda: pipe(images, LABELS, batch_size=16),
    }
    return {
        "steps": {name: parts_of(run) for name, run in ways.items()},
        "alone": statistics.median(alone),
        "together": statistics.median(together),
        "agreement": sum(same) / len(same),
    }


def seams(picture: str, scenes: int = 12, side: int = 1024, near: int = 16) -> dict:
    """Where labels of tiled and untiled runs differ: near the tiles' borders, and elsewhere.

    Most scenes have next to no difference and a few have a region of it, so there must be many.
    """
    # CLIP sees the same in both, so that only the tiles differ.
    pipe = tiny()
    clip = pipe.prior.clip
    usual = clip.image_size * 3 // 2
    config = PriorConfig(resolution=side * usual // 128, window=usual)
    pipe.prior = CLIPPrior(clip, config)
    differ = {"near": 0, "elsewhere": 0}
    count = {"near": 0, "elsewhere": 0}
    for scene in range(scenes):
        image, _, names = generate(SEED + scene, side)
        config = NerveConfig(normalization="shift")
        tiled, whole = (
            pipe(image, names, config=config, processing_resolution=0, tile=longest)
            for longest in (None, side)
        )
        border = torch.zeros(side, side, dtype=torch.bool)
        tiling = tiled.plan.tiling
        for starts, length, lines in (
            (tiling.tops, tiling.tile[0], border),
            (tiling.lefts, tiling.tile[1], border.T),
        ):
            for edge in {*starts[1:], *(start + length for start in starts[:-1])}:
                lines[max(edge - near, 0) : edge + near] = True
        wrong = tiled.label_map != whole.label_map
        for where, mask in (("near", border), ("elsewhere", ~border)):
            differ[where] += int(wrong[mask].sum())
            count[where] += int(mask.sum())
        if scene == 0:
            panels = [
                overlay(image, out.label_map.numpy(), names).resize((512, 560))
                for out in (whole, tiled)
            ]
            shown = np.zeros((side, side, 3), np.uint8) + 255
            shown[border.numpy()] = (220, 220, 220)
            shown[wrong.numpy()] = (200, 0, 0)
            panels.append(Image.fromarray(shown).resize((512, 512)))
            strip = Image.new("RGB", (3 * 512 + 16, 560), "white")
            for i, panel in enumerate(panels):
                strip.paste(panel, (i * 520, 0))
            save_picture(strip, picture)
    return {"scenes": scenes} | {where: differ[where] / count[where] for where in differ}

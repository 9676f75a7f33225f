"""Networks in bfloat16 against float32: whether labels stay, and what it saves."""

import statistics
from pathlib import Path

import torch

from nerve_fast import NervePipeline
from nerve_fast.bench.cases.keys import CLICKS
from nerve_fast.bench.cases.large import SEED, noise, timed
from nerve_fast.bench.harness.full_size import WORDS, full_size_pipe
from nerve_fast.tiny import MODELS
from nerve_fast.tiny.scenes import generate

SCENES = 50
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def shares(pairs) -> dict:
    """Of pairs of label maps: the share of equal pixels of all images, and of each."""
    equal = [(a == b).double().mean().item() for a, b in pairs]
    return {"all": statistics.mean(equal), "least": min(equal), "each": equal}


def on_scenes() -> dict:
    """Scenes of the tiny world, its words and models."""
    pipes = [NervePipeline.from_pretrained(MODELS, device="cpu", dtype=x) for x in DTYPES.values()]
    pairs = []
    for scene in range(SCENES):
        image, _, names = generate(SEED + scene, 256)
        pairs.append([pipe(image, names).label_map for pipe in pipes])
    return shares(pairs)


def on_photographs(folder: str, graph: str) -> dict:
    """Photographs with the features of a DINO, clicks in place of words."""
    pipes = [
        NervePipeline.from_pretrained(clip=False, graph=graph, device="cpu", dtype=x)
        for x in DTYPES.values()
    ]
    pairs = []
    for path in sorted(path for path in Path(folder).iterdir() if path.suffix != ".dat"):
        features = [pipe.encode(path) for pipe in pipes]
        width, height = features[0].image.size
        points = {
            name: [(round(x * width), round(y * height)) for x, y in some]
            for name, some in CLICKS.items()
        }
        pairs.append(
            [
                pipe(seen, points=points).label_map
                for pipe, seen in zip(pipes, features, strict=True)
            ]
        )
    return shares(pairs)


def seconds() -> dict:
    """Encoding an image of 512² pixels by SD 2.1 and ViT-L/14, in turns, warm."""
    pipe, image = full_size_pipe(), noise(512)
    pipe.prior.clip.encode_words(WORDS)
    found: dict[str, list[float]] = {name: [] for name in DTYPES}
    for turn in range(3):
        for name, dtype in DTYPES.items():
            for network in (pipe.prior.clip.model, pipe.graph.vae, pipe.graph.unet):
                # Of torch: that of diffusers warns of 16 bits.
                torch.nn.Module.to(network, dtype)
            pipe.graph.empty_prompt = pipe.graph.empty_prompt.to(dtype)
            _, once = timed(lambda: pipe.encode(image))
            if turn:
                found[name].append(once)
    return {name: statistics.median(each) for name, each in found.items()}

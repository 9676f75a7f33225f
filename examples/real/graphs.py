"""What says which tokens of a photograph belong together: queries and keys to walk on."""

import dataclasses

import numpy as np
import torch
import weights
from packages import real_folder
from photographs import Photograph
from PIL import Image
from torch import Tensor
from transformers import Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from nerve_fast.imaging.images import to_tensor
from nerve_fast.utils.files import written_whole

SHORT_SIDE = 518
PATCH = 14
COLOUR_FEATURES = 512
"""Random Fourier features; the cosine is then within about 0.05 of the Gaussian kernel."""


@dataclasses.dataclass(frozen=True)
class Graph:
    """Queries and keys ``(H, N, D)`` of a photograph's tokens, and their grid ``(h, w)``."""

    q: Tensor
    k: Tensor
    grid: tuple[int, int]


GRAPHS = {
    "qk": "DINOv2, queries and keys",
    "kk": "DINOv2, keys and keys",
    "features": "DINOv2, its features",
    "random": "random weights, queries and keys",
    "colour": "raw colour",
}


def graph(name: str, photograph: Photograph) -> Graph:
    """One of ``GRAPHS``. What networks give is kept in the cache."""
    if name == "colour":
        return colour_graph(photograph.image)
    kept = encoded(photograph, "random" if name == "random" else "trained")
    q, k = {
        "qk": ("q", "k"),
        "random": ("q", "k"),
        "kk": ("k", "k"),
        "features": ("features", "features"),
    }[name]
    return Graph(kept[q], kept[k], tuple(kept["grid"]))


def token_grid(size: tuple[int, int]) -> tuple[int, int]:
    """Of an image of ``(width, height)`` pixels, brought to :data:`SHORT_SIDE`."""
    width, height = size
    factor = SHORT_SIDE / min(size) / PATCH
    return max(round(height * factor), 1), max(round(width * factor), 1)


def encoded(photograph: Photograph, weights_name: str) -> dict:
    """``q`` and ``k`` ``(6, N, 64)`` of the last layer, and ``features`` ``(1, N, 384)``."""
    path = real_folder() / "features" / f"{photograph.name}-{photograph.digest}-{weights_name}.pt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        if weights_name == "random":
            torch.manual_seed(0)
            model = Dinov2Model(weights.configuration()).eval().requires_grad_(False)
        else:
            model = weights.load(weights.dinov2())
        with written_whole(path) as temporary:
            torch.save(encode(model, photograph.image), temporary)
    return torch.load(path)


def encode(model: Dinov2Model, image: Image.Image) -> dict:
    """One pass of the network over the image at :data:`SHORT_SIDE`."""
    grid = token_grid(image.size)
    resized = image.resize((grid[1] * PATCH, grid[0] * PATCH), Image.Resampling.BICUBIC)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    pixels = ((to_tensor(resized) - mean) / std)[None]
    heads = model.config.num_attention_heads
    found = {}

    def keep(name):
        def hook(module, inputs, output):
            # The class token comes first.
            found[name] = output[0, 1:].unflatten(-1, (heads, -1)).transpose(0, 1).contiguous()

        return hook

    attention = model.encoder.layer[-1].attention
    hooks = [
        attention.q_proj.register_forward_hook(keep("q")),
        attention.k_proj.register_forward_hook(keep("k")),
    ]
    with torch.no_grad():
        features = model(pixels).last_hidden_state[:, 1:].clone()
    for hook in hooks:
        hook.remove()
    return {**found, "features": features, "grid": grid}


def colour_graph(image: Image.Image) -> Graph:
    """Tokens with their mean colour, in standard deviations of the image's colours.

    Random Fourier features make ``exp(-d² / 2)`` of a distance ``d`` the cosine that the walk takes
    (Rahimi, Recht: Random Features for Large-Scale Kernel Machines, NeurIPS 2007); the temperature
    of ``softmax`` then scales colours as it scales DINOv2's cosines.
    """
    grid = token_grid(image.size)
    small = np.asarray(image.resize(grid[::-1], Image.Resampling.BOX), np.float32)
    colours = torch.from_numpy(small).flatten(0, 1)
    colours = (colours - colours.mean(0)) / colours.std()
    generator = torch.Generator().manual_seed(0)
    frequencies = torch.randn(3, COLOUR_FEATURES // 2, generator=generator)
    phases = colours @ frequencies
    features = torch.cat([phases.cos(), phases.sin()], 1)[None]
    return Graph(features, features, grid)

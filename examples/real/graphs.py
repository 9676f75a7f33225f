"""What says which tokens of a photograph belong together: queries and keys to walk on."""

import dataclasses
import functools

import numpy as np
import torch
import weights
from packages import real_folder
from photographs import Photograph
from PIL import Image
from torch import Tensor
from transformers import Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import nerve_fast as nf
from nerve_fast.backbones.dino import DINOBackbone
from nerve_fast.imaging.images import to_tensor
from nerve_fast.pipeline.stages import graph_of, graph_view
from nerve_fast.utils.files import written_whole

SHORT_SIDE = 518
COLOUR_FEATURES = 512
"""Random Fourier features; the cosine is then within about 0.05 of the Gaussian kernel."""


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Queries and keys ``(H, N, D)`` of a photograph's tokens, and their grid ``(h, w)``."""

    q: Tensor
    k: Tensor
    grid: tuple[int, int]

    @functools.cached_property
    def entropy(self) -> Tensor:
        """``(H,)`` of :func:`nerve_fast.head_entropy`."""
        return nf.head_entropy(self.q, self.k)


GRAPHS = {
    "qk": "DINOv2's queries and keys",
    "kk": "DINOv2's keys and keys",
    "features": "DINOv2's features",
    "random": "queries and keys of random weights",
    "colour": "raw colour",
}


@functools.lru_cache(maxsize=64)
def graph(name: str, photograph: Photograph) -> Graph:
    """One of ``GRAPHS``. What networks give is kept in the cache."""
    if name == "colour":
        grid = encoded(photograph, "trained")["grid"]
        features = colour_features(photograph.image, grid)
        return Graph(features, features, grid)
    kept = encoded(photograph, "random" if name == "random" else "trained")
    q, k = {"kk": ("k", "k"), "features": ("features", "features")}.get(name, ("q", "k"))
    return Graph(kept[q], kept[k], kept["grid"])


def encoded(photograph: Photograph, weights_name: str) -> dict:
    """``q`` and ``k`` ``(6, N, 64)`` of the last layer, ``features`` ``(1, N, 384)``, ``grid``."""
    name = f"{photograph.name}-{photograph.digest}-{weights_name}-{SHORT_SIDE}.pt"
    path = real_folder() / "features" / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        found = encode(backbone(weights_name), photograph.image)
        with written_whole(path) as temporary:
            torch.save(found, temporary)
    return torch.load(path)


@functools.cache
def backbone(weights_name: str) -> DINOBackbone:
    """The network as the package has it, with the ``trained`` weights or with ``random`` ones."""
    if weights_name == "trained":
        model = weights.load(weights.dinov2())
    else:
        torch.manual_seed(0)
        model = Dinov2Model(weights.configuration())
    return DINOBackbone(model, image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD)


def encode(source: DINOBackbone, image: Image.Image) -> dict:
    """What the pipeline takes from an image, and the last layer's features besides."""
    view = graph_view(source, image.size, SHORT_SIDE)
    found = graph_of(source, [image], view, [torch.Generator()])
    resized = to_tensor(image.resize(view.size, Image.Resampling.BICUBIC))
    features = source.features(((resized - source.image_mean) / source.image_std)[None])
    return {
        "q": found.q[0].clone(),
        "k": found.k[0].clone(),
        "features": features.flatten(1, 2).clone(),
        "grid": view.grid,
    }


def colour_features(image: Image.Image, grid: tuple[int, int]) -> Tensor:
    """``(1, N, C)`` of tokens' mean colours, in standard deviations of the image's colours.

    Random Fourier features make ``exp(-d² / 2)`` of a distance ``d`` the cosine that the walk takes
    (Rahimi, Recht: Random Features for Large-Scale Kernel Machines, NeurIPS 2007); the temperature
    of ``softmax`` then scales colours as it scales DINOv2's cosines.
    """
    small = np.asarray(image.resize(grid[::-1], Image.Resampling.BOX), np.float32)
    colours = torch.from_numpy(small).flatten(0, 1)
    colours = (colours - colours.mean(0)) / colours.std()
    generator = torch.Generator().manual_seed(0)
    frequencies = torch.randn(3, COLOUR_FEATURES // 2, generator=generator)
    phases = colours @ frequencies
    return torch.cat([phases.cos(), phases.sin()], 1)[None]

"""What a call of the pipeline takes of memory, and how it is cut up so that it fits."""

import dataclasses
import math
import sys
from collections.abc import Iterator

import torch

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.diffusion import DiffusionBackbone
from nerve_fast.config import NerveConfig
from nerve_fast.dispatch import Plan, plan
from nerve_fast.dispatch.machine import free_memory
from nerve_fast.dispatch.planning import format_bytes, parse_bytes
from nerve_fast.errors import InputError
from nerve_fast.images import model_size
from nerve_fast.priors import WINDOW_BATCH, PriorConfig, View, view_of
from nerve_fast.resampling import STRIPE_BYTES
from nerve_fast.tiling import Tiling

ENTROPY_ROWS = 4096
"""Rows that head entropies are the mean of, at most, unless everything is to be exact."""

FREE_SHARE = 0.9
"""The part of the free memory that is planned with where no budget is named."""

CPU_PIXELS = 1 << 18
"""Pixels of tiles that go through the networks together: on a CPU more gain nothing."""

GPU_PIXELS = 1 << 22
"""The same on a GPU."""

ENCODER_ACTIVATIONS = 7
"""Of the VAE's first, largest layer, that are alive at a time; measured, rounded up."""

UNET_ACTIVATIONS = 40
"""Of the UNet's first layer, those that it keeps for its way up among them."""

WINDOW_ACTIVATIONS = 16
"""Of CLIP's hidden states, those of its MLP among them."""


@dataclasses.dataclass(frozen=True)
class CallPlan:
    """How the pipeline will carry out a call on images of one size.

    Attributes:
        size: ``(width, height)`` in pixels at which the UNet sees an image.
        grid: ``(h, w)`` of the tokens.
        tiling: of the UNet's view, in pixels.
        tile_batch: tiles that go through the networks at a time.
        view: how CLIP sees an image.
        feature_dtype: in which queries and keys of the whole image are kept.
        config: of the graph stage, with the stride that the token budget asks for.
        entropy_rows: rows that head entropies are the mean of; ``None`` is all.
        walk: how the walk will be carried out.
        walk_memory: bytes that it is given.
        peak_memory: bytes beyond the models and the images, a bound.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    tiling: Tiling
    tile_batch: int
    view: View
    feature_dtype: torch.dtype
    config: NerveConfig
    entropy_rows: int | None
    walk: Plan
    walk_memory: int
    peak_memory: int

    def __str__(self) -> str:
        width, height = self.size
        h, w = self.grid
        stride = self.config.global_stride
        pooled = f" (global part from every {stride} × {stride})" if stride > 1 else ""
        return (
            f"{width} × {height} pixels in {len(self.tiling)} tiles, {self.tile_batch} at a time; "
            f"CLIP at {self.view.size[0]} × {self.view.size[1]} in {len(self.view)} windows; "
            f"{h * w:,} tokens{pooled}, {self.walk.backend} / {self.walk.route}; at most "
            f"{format_bytes(self.peak_memory)} beyond the models"
        )


@dataclasses.dataclass(frozen=True)
class Request:
    """A call, as far as its cost goes.

    Attributes:
        clip, diffusion: the networks.
        prior: how CLIP's patches become the prior.
        backend: of the graph stage.
        images: how many at a time.
        image_size: ``(width, height)`` of each.
        words, labels: how many.
        config: as the caller gave it.
        short_side: at which the UNet sees an image; ``None`` is the image's own.
        tile, overlap: in pixels.
        token_budget: cells of the global part at most; ``None`` is no limit.
    """

    clip: CLIPBackbone
    diffusion: DiffusionBackbone
    prior: PriorConfig
    backend: str
    images: int
    image_size: tuple[int, int]
    words: int
    labels: int
    config: NerveConfig
    short_side: int | None
    tile: int
    overlap: int
    token_budget: int | None

    def planned(self, max_memory: int | str | None) -> CallPlan:
        """The plan within ``max_memory`` bytes; ``None`` is what is free, less a margin.

        Raises:
            InputError: it cannot fit; the message says what would.
        """
        named = max_memory is not None
        if named:
            budget = parse_bytes(max_memory)
        else:
            budget = int(FREE_SHARE * free_memory(self.diffusion.unet.device))
        plans = list(self._plans(budget))
        for candidate in plans:
            if candidate.peak_memory <= budget:
                return candidate
        have = f"max_memory is {max_memory}" if named else f"{format_bytes(budget)} are free"
        width, height = self.image_size
        least = min(candidate.peak_memory for candidate in plans)
        raise InputError(
            f"{have}; segmenting {width} × {height} pixels with {self.labels} labels takes up to "
            f"{format_bytes(least)} beyond the models: {self._what_would(budget)}"
        )

    def _what_would(self, budget: int) -> str:
        side = self.short_side or min(self.image_size)
        while (side := int(side * 0.8)) >= self.diffusion.multiple:
            smaller = dataclasses.replace(self, short_side=side)
            if any(plan.peak_memory <= budget for plan in smaller._plans(budget)):
                return f"a processing resolution of {side} would fit"
        return "give it more memory, or fewer labels"

    def _plans(self, budget: int) -> Iterator[CallPlan]:
        """From the fastest to the one that takes least."""
        diffusion, device = self.diffusion, self.diffusion.unet.device
        size = model_size(self.image_size, self.short_side, diffusion.multiple)
        tiling = Tiling.of(size[::-1], self.tile, self.overlap, diffusion.multiple)
        magnified = None
        if len(tiling) > 1:
            ratio = 1.5 * self.clip.image_size / diffusion.native_size
            magnified = (size[0] * ratio, size[1] * ratio)
        view = view_of(self.clip, self.image_size, self.prior, magnified)
        grid = (size[1] // diffusion.unit, size[0] // diffusion.unit)
        tokens = self.images * grid[0] * grid[1]
        config = self._pooled(grid)
        shape = (
            self.images,
            diffusion.heads,
            tokens // self.images,
            diffusion.channels // diffusion.heads,
        )

        def walk(dtype, memory):
            return plan(
                shape,
                self.labels,
                config=config,
                device=device,
                dtype=dtype,
                backend=self.backend,
                max_memory=memory,
                weights_given=True,
            )

        at_once = CPU_PIXELS if device.type == "cpu" else GPU_PIXELS
        most = min(max(at_once // math.prod(tiling.tile), 1), self.images * len(tiling))
        # The prior, what the walk makes of it, and both in another layout; the images resized.
        maps = 4 * 4 * tokens * self.labels + 3 * self.images * math.prod(size)
        dtypes = [diffusion.unet.dtype]
        if dtypes[0] == torch.float32:
            # Half the bytes, where nothing else makes it fit.
            dtypes.append(torch.bfloat16)
        for dtype in dtypes:
            features = 2 * tokens * diffusion.channels * dtype.itemsize
            ways = walk(dtype, sys.maxsize).options
            least = min(way.peak_memory for way in ways if way.refused is None)
            given = max(budget - features - maps, least)
            walked = walk(dtype, given)
            for halved in range(most.bit_length()):
                tile_batch = most >> halved
                networks = max(
                    self._window_memory(view),
                    features + tile_batch * self._tile_memory(tiling.tile),
                )
                yield CallPlan(
                    size=size,
                    grid=grid,
                    tiling=tiling,
                    tile_batch=tile_batch,
                    view=view,
                    feature_dtype=dtype,
                    config=config,
                    entropy_rows=None if self.token_budget is None else ENTROPY_ROWS,
                    walk=walked,
                    walk_memory=given,
                    peak_memory=maps
                    + max(networks, features + walked.peak_memory, self._pixel_memory()),
                )

    def _pooled(self, grid: tuple[int, int]) -> NerveConfig:
        """The settings with the smallest stride that keeps the global part within its tokens."""
        config = self.config
        # `shift` is linear in the affinity: its cost does not grow with the number of keys.
        if self.token_budget is None or config.normalization == "shift" or config.beta == 0:
            return config
        stride = config.global_stride
        while math.prod(-(-side // stride) for side in grid) > self.token_budget:
            stride += 1
        return config.replace(global_stride=stride)

    def _tile_memory(self, tile: tuple[int, int]) -> int:
        """Of the VAE's encoder or of the UNet, whichever takes more: they come in turn."""
        vae, unet = self.diffusion.vae.config, self.diffusion.unet
        encoder = ENCODER_ACTIVATIONS * vae.block_out_channels[0]
        denoiser = UNET_ACTIVATIONS * unet.config.block_out_channels[0] / self.diffusion.scale**2
        return int(max(encoder, denoiser) * math.prod(tile) * unet.dtype.itemsize)

    def _window_memory(self, view: View) -> int:
        vision = self.clip.model.config.vision_config
        patches = math.prod(view.window) // self.clip.patch**2
        windows = min(WINDOW_BATCH, self.images * len(view))
        hidden = windows * patches * vision.hidden_size * self.clip.model.dtype.itemsize
        cells = math.prod(view.size) // view.unit**2
        return WINDOW_ACTIVATIONS * hidden + 3 * 4 * self.images * self.words * cells

    def _pixel_memory(self) -> int:
        """The label map in int64, and what one stripe takes."""
        return 8 * self.images * math.prod(self.image_size) + 6 * STRIPE_BYTES

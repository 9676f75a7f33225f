"""What a call of the pipeline takes of memory, and how it is cut up so that it fits."""

import dataclasses
import math
import os
import sys
from collections.abc import Iterator

import torch

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.diffusion import DiffusionBackbone
from nerve_fast.config import NerveConfig
from nerve_fast.dispatch import Plan, plan, resolve
from nerve_fast.dispatch.machine import free_memory
from nerve_fast.errors import InputError
from nerve_fast.imaging.images import model_size
from nerve_fast.imaging.resampling import STRIPE_BYTES
from nerve_fast.imaging.tiling import Tiling
from nerve_fast.priors import WINDOW_BATCH, PriorConfig, View, read_out_of, view_of
from nerve_fast.utils.tiles import GPU_TILE_BYTES
from nerve_fast.utils.units import format_bytes, parse_bytes

ENTROPY_ROWS = 1024
"""Rows that head entropies are the mean of, at most, unless everything is to be exact."""

FREE_SHARE = 0.9
"""The part of the free memory that is planned with where no budget is named."""

CPU_PIXELS = 1 << 18
"""Pixels of tiles that go through the networks together: on a CPU more gain nothing."""

GPU_PIXELS = 1 << 22
"""The same on a GPU."""

ENCODER_ACTIVATIONS = 6
"""Of the VAE's first, largest layer, that are alive at a time. This and the two that follow were
measured on the tiny models and on those of SD 2.1 and ViT-L/14, and rounded up."""

UNET_ACTIVATIONS = 55
"""Of the UNet's first layer, those that it keeps for its way up among them."""

WINDOW_ACTIVATIONS = 40
"""Of CLIP's hidden states, those of its MLP and the pixels among them."""

SLACK = 128 << 20
"""What the allocator keeps of one part while the next one runs: glibc gives the end of a heap back
only beyond 64 MiB, threads have heaps of their own, and up to 127 MB more than without them was
measured."""

PIXEL_BYTES = 40
"""A pixel of a tile, from 8 bits to the VAE's input."""


class DoesNotFitError(InputError):
    """A call takes more memory than there is."""


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
        notes = [f"global part pooled {stride} × {stride}"] * (stride > 1)
        if self.entropy_rows is not None and self.entropy_rows < h * w:
            notes.append(f"entropies of {self.entropy_rows} rows")
        notes = f" ({', '.join(notes)})" if notes else ""
        return (
            f"{width} × {height} pixels in {len(self.tiling)} tiles, {self.tile_batch} at a time; "
            f"CLIP at {self.view.size[0]} × {self.view.size[1]} in {len(self.view)} windows; "
            f"{h * w:,} tokens{notes}, {self.walk.backend} / {self.walk.route}; at most "
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
        tile, overlap: in pixels; ``None`` are 1.5 times the UNet's own size, and a sixth of a tile.
        token_budget: cells of the global part at most; ``None`` is no limit.
        further_steps: numbers of steps after which the walk is wanted too.
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
    tile: int | None
    overlap: int | None
    token_budget: int | None
    further_steps: int

    def planned(self, max_memory: int | str | None) -> CallPlan:
        """The plan within ``max_memory`` bytes; ``None`` is what is free, less a margin.

        Raises:
            DoesNotFitError: the message says what would.
            InputError: tiles, windows or the backend cannot be as they were asked for.
        """
        named = max_memory is not None
        if named:
            budget = parse_bytes(max_memory)
        else:
            budget = int(FREE_SHARE * free_memory(self.diffusion.unet.device) / self._sharers())
        plans = list(self._plans(budget, narrow=named))
        for candidate in plans:
            if candidate.peak_memory <= budget:
                return candidate
        have = f"max_memory is {max_memory}" if named else f"{format_bytes(budget)} are free"
        width, height = self.image_size
        least = min(candidate.peak_memory for candidate in plans)
        raise DoesNotFitError(
            f"{have}; segmenting {width} × {height} pixels with {self.labels} labels takes up to "
            f"{format_bytes(least)} beyond the models: {self._what_would(budget, named)}"
        )

    def _sharers(self) -> int:
        """Processes, started together, that share the memory: each GPU is one's own."""
        on_cpu = self.diffusion.unet.device.type == "cpu"
        return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if on_cpu else 1

    def _what_would(self, budget: int, narrow: bool) -> str:
        side = self.short_side or min(self.image_size)
        while (side := int(side * 0.8)) >= self.diffusion.multiple:
            smaller = dataclasses.replace(self, short_side=side)
            if any(plan.peak_memory <= budget for plan in smaller._plans(budget, narrow)):
                return f"a processing resolution of {side} would fit"
        return "give it more memory, or fewer labels"

    def _plans(self, budget: int, narrow: bool) -> Iterator[CallPlan]:
        """From the fastest to the one that takes least.

        Only where ``narrow`` may features be kept in fewer bits than the networks': what comes out
        should not depend on the memory that happens to be free.
        """
        diffusion, device = self.diffusion, self.diffusion.unet.device
        size = model_size(self.image_size, self.short_side, diffusion.multiple)
        tile = diffusion.native_size * 3 // 2 if self.tile is None else self.tile
        overlap = tile // 6 if self.overlap is None else self.overlap
        tiling = Tiling.of(size[::-1], tile, overlap, diffusion.multiple)
        magnified = None
        if min(size) > diffusion.native_size and len(tiling) > 1:
            # As many of CLIP's pixels to one of the UNet's as where both see what they know best.
            ratio = 1.5 * self.clip.image_size / diffusion.native_size
            magnified = (size[0] * ratio, size[1] * ratio)
        view = view_of(self.clip, self.image_size, self.prior, magnified)
        grid = (size[1] // diffusion.unit, size[0] // diffusion.unit)
        tokens = self.images * grid[0] * grid[1]
        config = self._pooled(grid)
        # The reference is the measure of the others: nothing of it is estimated.
        exact = self.token_budget is None or resolve(self.backend) == "reference"
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
                # The entropies come first; only the reference's take more than its walk.
                weights_given=config.sharpness == 0,
                grid=grid,
            )

        at_once = CPU_PIXELS if device.type == "cpu" else GPU_PIXELS
        most = min(max(at_once // math.prod(tiling.tile), 1), self.images * len(tiling))
        # The prior, what the walk makes of it, after how many steps ever, and both in another
        # layout; the images resized for the UNet and for CLIP.
        maps = 4 * (4 + self.further_steps) * tokens * self.labels
        maps += 4 * self.images * (math.prod(size) + math.prod(view.size))
        dtypes = [diffusion.unet.dtype]
        if narrow and dtypes[0] == torch.float32:
            dtypes.append(torch.bfloat16)
        for dtype in dtypes:
            features = 2 * tokens * diffusion.channels * dtype.itemsize
            ways = walk(dtype, sys.maxsize).options
            least = min(way.peak_memory for way in ways if way.refused is None)
            given = max(budget - features - maps - SLACK, least)
            walked = walk(dtype, given)
            for halved in range(most.bit_length()):
                tile_batch = most >> halved
                parts = (
                    self._window_memory(view),
                    features + tile_batch * self._tile_memory(tiling.tile),
                )
                # On a GPU CLIP and the UNet run at the same time.
                networks = sum(parts) if device.type == "cuda" else max(parts)
                yield CallPlan(
                    size=size,
                    grid=grid,
                    tiling=tiling,
                    tile_batch=tile_batch,
                    view=view,
                    feature_dtype=dtype,
                    config=config,
                    entropy_rows=None if exact else ENTROPY_ROWS,
                    walk=walked,
                    walk_memory=given,
                    peak_memory=SLACK
                    + maps
                    + max(networks, features + walked.peak_memory, self._pixel_memory(size)),
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
        widest = max(encoder, denoiser) * unet.dtype.itemsize
        return int((widest + PIXEL_BYTES) * math.prod(tile))

    def _window_memory(self, view: View) -> int:
        vision = self.clip.model.config.vision_config
        itemsize = self.clip.model.dtype.itemsize
        patches = math.prod(view.window) // self.clip.patch**2
        windows = min(WINDOW_BATCH, self.images * len(view))
        hidden = windows * patches * vision.hidden_size * itemsize
        cells = math.prod(view.size) // view.unit**2
        further = 0
        if self.prior.name == "cliper":
            # What every layer takes, and five maps of all heads at a time.
            further += 2 * vision.num_hidden_layers * hidden
            further += 20 * windows * vision.num_attention_heads * (1 + patches) ** 2
        elif self.prior.name == "proxyclip":
            proxy = read_out_of(self.prior, self.clip).proxy
            finer = math.prod(view.window) // proxy.patch**2
            width = proxy.model.config.hidden_size + vision.hidden_size
            further += WINDOW_ACTIVATIONS * windows * finer * width * itemsize
            # Similarities of an image seen whole lie on the proxy's grid.
            cells = max(cells, finer)
        similarities = 4 * self.images * cells + math.prod(view.window) // view.unit**2
        similarities += windows * patches
        # NACLIP's neighbourhood, made in float32.
        neighbourhood = (1 + patches) ** 2 * (4 + 4 + itemsize)
        likenesses = 4 * self.words * similarities
        return WINDOW_ACTIVATIONS * hidden + further + likenesses + neighbourhood

    def _pixel_memory(self, size: tuple[int, int]) -> int:
        """The label map in int64, and what one stripe takes."""
        pixels = max(math.prod(self.image_size), math.prod(size))
        widest = max(self.image_size[0], size[0])
        on_cpu = self.diffusion.unet.device.type == "cpu"
        stripe = STRIPE_BYTES if on_cpu else GPU_TILE_BYTES
        return 8 * self.images * pixels + 6 * max(stripe, 4 * self.labels * widest)

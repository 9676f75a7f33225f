"""What a call of the pipeline takes of memory, and how it is cut up so that it fits."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch

from nerve_fast.backbones.source import AffinitySource, feature_dtype, heads_of
from nerve_fast.blocked.cluster_error import error_memory
from nerve_fast.clusters import ClusterError
from nerve_fast.config import EXACT_TOKENS, GLOBAL_KEYS, NerveConfig
from nerve_fast.dispatch import Plan, plan, resolve
from nerve_fast.dispatch.costs import cluster_memory
from nerve_fast.dispatch.machine import free_memory
from nerve_fast.errors import InputError
from nerve_fast.imaging import visualize
from nerve_fast.imaging.resampling import STRIPE_BYTES
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.pipeline.stages import GraphView, graph_view
from nerve_fast.priors import Prior
from nerve_fast.shares import heights
from nerve_fast.utils.cores import at_once
from nerve_fast.utils.processes import process_count
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

UNLIMITED = 1 << 60
"""Bytes that no walk reaches."""

WIDEST_NAME = 4_000
"""Pixels of a legend's entry, at most about."""

SLACK = 128 << 20
"""What the allocator keeps of one part while the next one runs: glibc gives the end of a heap back
only beyond 64 MiB, threads have heaps of their own, and up to 127 MB more than without them was
measured."""


class DoesNotFitError(InputError):
    """A call takes more memory than there is."""


@dataclasses.dataclass(frozen=True)
class EncodePlan:
    """How the networks see images of one size.

    Attributes:
        size: ``(width, height)`` in pixels at which the graph's network sees an image.
        grid: ``(h, w)`` of the tokens.
        tiling: of the graph's view, in pixels.
        tile_batch: tiles that go through the network at a time.
        view: how the prior sees an image; ``None`` without a prior.
        feature_dtype: in which queries and keys of the whole image are kept.
        peak_memory: bytes beyond the models and the images, a bound.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    tiling: Any
    tile_batch: int
    view: Any
    feature_dtype: torch.dtype
    peak_memory: int

    def __str__(self) -> str:
        return (
            f"{self._seen()}; {math.prod(self.grid):,} tokens; at most "
            f"{format_bytes(self.peak_memory)} beyond the models"
        )

    @property
    def graph_view(self) -> GraphView:
        """The part that :func:`~nerve_fast.pipeline.stages.graph_of` takes."""
        return GraphView(self.size, self.tiling, self.grid)

    def _seen(self) -> str:
        width, height = self.size
        seen = f"{width} × {height} pixels in {len(self.tiling)} tiles, {self.tile_batch} at a time"
        if self.view is not None:
            prior = f"{self.view.size[0]} × {self.view.size[1]} in {len(self.view)} windows"
            seen += f"; the prior at {prior}"
        return seen


@dataclasses.dataclass(frozen=True)
class CallPlan(EncodePlan):
    """How the pipeline will carry out a call on images of one size.

    Attributes:
        config: of the graph stage, with the clusters that it takes keys in.
        entropy_rows: rows that head entropies are the mean of; ``None`` is all.
        walk: how the walk will be carried out.
        cluster_error: how far the clusters were found to be off, once they are there.
        entropy_error: the standard error of the head entropies, in nats, the largest of all heads,
            once they are there; ``None`` where they are those of all rows.
    """

    config: NerveConfig
    entropy_rows: int | None
    walk: Plan
    cluster_error: ClusterError | None = None
    entropy_error: float | None = None

    def __str__(self) -> str:
        h, w = self.grid
        notes = [f"keys in {self.walk.problem.columns:,} clusters"] * self.walk.problem.clustered
        if self.cluster_error is not None:
            notes.append(str(self.cluster_error))
        if self.entropy_rows is not None and self.entropy_rows < h * w:
            said = f"entropies of {self.entropy_rows} rows"
            if self.entropy_error is not None:
                said += f", standard error {self.entropy_error:.1e} nats"
            notes.append(said)
        said = f" ({', '.join(notes)})" if notes else ""
        return (
            f"{self._seen()}; {h * w:,} tokens{said}, {self.walk.backend} / {self.walk.route}; "
            f"at most {format_bytes(self.peak_memory)} beyond the models"
        )


@dataclasses.dataclass(frozen=True)
class Request:
    """A call, as far as its cost goes.

    Attributes:
        prior: what gives the prior; ``None`` where there are seeds alone.
        source: what gives the graph.
        backend: of the graph stage.
        images: how many at a time.
        image_size: ``(width, height)`` of each.
        words, labels: how many; without labels the call only encodes.
        config: as the caller gave it.
        processing_resolution: short side at which the graph's network sees an image; ``None`` is
            its own, 0 the image's.
        tile, overlap: in pixels; ``None`` are 1.5 times the network's own size, and a sixth of it.
        global_keys: clusters of the global part's keys; ``"auto"`` takes some where there are many
            tokens, and ``None`` computes everything exactly.
        further_steps: numbers of steps after which the walk is wanted too.
        encoded: the plan by which the networks have run, where they have.
        held: bytes of what they gave, where it was made for this call; without labels, of what is
            held beside.
        processes: how many share each image.
    """

    prior: Prior | None
    source: AffinitySource
    backend: str
    images: int
    image_size: tuple[int, int]
    config: NerveConfig
    words: int = 0
    labels: int = 0
    processing_resolution: int | None = None
    tile: int | None = None
    overlap: int | None = None
    global_keys: int | Literal["auto"] | None = None
    further_steps: int = 0
    encoded: EncodePlan | None = None
    held: int = 0
    processes: int = 1

    def planned(self, max_memory: int | str | None) -> EncodePlan | CallPlan:
        """The plan within ``max_memory`` bytes; ``None`` is what is free, less a margin.

        Returns:
            A :class:`CallPlan`, or without labels an :class:`EncodePlan`.

        Raises:
            DoesNotFitError: the message says what would.
            InputError: tiles, windows or the backend cannot be as they were asked for.
        """
        named = max_memory is not None
        if max_memory is not None:
            budget = parse_bytes(max_memory)
        else:
            budget = int(FREE_SHARE * free_memory(self.source.device) / self._sharers())
        plans = list(self._plans(budget, narrow=named))
        for candidate in plans:
            if candidate.peak_memory <= budget:
                return candidate
        have = f"max_memory is {max_memory}" if named else f"{format_bytes(budget)} are free"
        width, height = self.image_size
        least = min(candidate.peak_memory for candidate in plans)
        with_labels = f" with {self.labels} labels" if self.labels else ""
        raise DoesNotFitError(
            f"{have}; segmenting {width} × {height} pixels{with_labels} takes up to "
            f"{format_bytes(least)} beyond the models: {self._what_would(budget, named)}"
        )

    def _sharers(self) -> int:
        """Processes, started together, that share the memory: each GPU is one's own."""
        on_cpu = self.source.device.type == "cpu"
        return process_count("LOCAL_WORLD_SIZE") if on_cpu else 1

    def _what_would(self, budget: int, narrow: bool) -> str:
        side = self.processing_resolution
        if side is None:
            side = self.source.native_size
        side = side or min(self.image_size)
        while self.encoded is None and (side := int(side * 0.8)) >= self.source.multiple:
            smaller = dataclasses.replace(self, processing_resolution=side)
            rows = graph_view(self.source, self.image_size, side).grid[0]
            if rows < self.processes:
                break
            if any(plan.peak_memory <= budget for plan in smaller._plans(budget, narrow)):
                return f"a processing resolution of {side} would fit"
        return "give it more memory, or fewer labels"

    def _plans(self, budget: int, narrow: bool) -> Iterator[EncodePlan | CallPlan]:
        """Iterate over plans, from the fastest to the one with the least memory.

        Only where ``narrow`` may features be kept in fewer bits than the networks': what comes out
        should not depend on the memory that happens to be free.
        """
        source = self.source
        if self.encoded is not None:
            # The networks have run.
            yield self._with_walk(self.encoded, budget, networks=0, features=self.held, resized=0)
            return
        seen = graph_view(
            source,
            self.image_size,
            self.processing_resolution,
            tile=self.tile,
            overlap=self.overlap,
        )
        view, looking, kept = None, 0, 0
        # A copy of the images, and each at the sizes at which it is seen, on the way to which it
        # has its own height.
        resized = 4 * self.images * (math.prod(self.image_size) + math.prod(seen.size))
        resized += 4 * seen.size[0] * self.image_size[1]
        if self.prior is not None:
            tiled = min(seen.size) > source.native_size and len(seen.tiling) > 1
            view = self.prior.view(
                self.image_size, seen.size if tiled else None, source.native_size
            )
            looking = self.prior.memory(view, self.images, self.words)
            kept = self.prior.encoded_memory(view, self.images)
            resized += 4 * self.images * math.prod(view.size)
            resized += 4 * view.size[0] * self.image_size[1]
        heads, head_dim = heads_of(source)
        tokens = self.images * self._own(seen.grid)
        # What runs of tiles cover, beside what they are joined to.
        parts = [
            seen.tiling.part(index, self.processes).in_units(source.unit)
            for index in range(self.processes)
        ]
        covered = max(part.rows[1] - part.rows[0] for part in parts) * seen.grid[1]
        on_gpu = source.device.type == "cuda"
        at_once = GPU_PIXELS if on_gpu else CPU_PIXELS
        most = max(at_once // math.prod(seen.tiling.tile), 1)
        most = min(most, self.images * max(map(len, parts)))
        dtypes = [feature_dtype(source)]
        if narrow and dtypes[0] == torch.float32:
            dtypes.append(torch.bfloat16)
        for dtype in dtypes:
            features = 2 * tokens * heads * head_dim * dtype.itemsize
            joined = features
            if self.processes > 1:
                joined = 2 * (covered + tokens) * heads * head_dim * dtype.itemsize
            for halved in range(most.bit_length()):
                tile_batch = most >> halved
                each = (looking, joined + tile_batch * source.tile_memory(seen.tiling.tile))
                # On a GPU the two networks run at the same time.
                networks = sum(each) if on_gpu else max(each)
                encode = EncodePlan(
                    size=seen.size,
                    grid=seen.grid,
                    tiling=seen.tiling,
                    tile_batch=tile_batch,
                    view=view,
                    feature_dtype=dtype,
                    peak_memory=SLACK + self.held + resized + kept + networks,
                )
                if self.labels:
                    yield self._with_walk(encode, budget, networks, features, resized)
                else:
                    yield encode

    def _with_walk(
        self, encode: EncodePlan, budget: int, networks: int, features: int, resized: int
    ) -> CallPlan:
        """The rest of a call.

        Args:
            networks: bytes that they take.
            features: bytes of what they leave.
            resized: bytes of the images at the sizes at which they are seen.
        """
        config = self._clustered(encode.grid)
        # The reference is the measure of the others: nothing of it is estimated.
        exact = self.global_keys is None or resolve(self.backend) == "reference"
        heads, head_dim = heads_of(self.source)
        tokens = math.prod(encode.grid)

        def walk(memory):
            return plan(
                (self.images, heads, tokens, head_dim),
                self.labels,
                config=config,
                device=self.source.device,
                dtype=encode.feature_dtype,
                backend=self.backend,
                max_memory=memory,
                # The entropies come first; only the reference's take more than its walk.
                weights_given=config.sharpness == 0,
                grid=encode.grid,
                processes=self.processes,
            )

        # The prior, what the walk makes of it, after how many steps ever, and both in another
        # layout.
        own = self._own(encode.grid)
        kept = resized + 4 * (4 + self.further_steps) * self.images * own * self.labels
        if self.processes > 1:
            # What the first process puts together, and the prior before each has its own rows.
            kept += 4 * (4 + self.further_steps) * tokens * self.labels
        least = min(way.peak_memory for way in walk(UNLIMITED).options if way.refused is None)
        walked = walk(max(budget - features - kept - SLACK, least))
        graph_stage = walked.peak_memory
        if walked.problem.clustered:
            sums = walked.problem.itemsize
            compared = error_memory(heads, own, head_dim, self.labels, sums)
            graph_stage = max(graph_stage, cluster_memory(walked.problem) + compared)
        largest = max(networks, features + graph_stage, self._pixel_memory(encode))
        return CallPlan(
            **{
                field.name: getattr(encode, field.name)
                for field in dataclasses.fields(EncodePlan)
                if field.name != "peak_memory"
            },
            peak_memory=SLACK + kept + largest,
            config=config,
            entropy_rows=None if exact else ENTROPY_ROWS,
            walk=walked,
        )

    def _own(self, grid: tuple[int, int]) -> int:
        """Tokens of an image that this process holds, at most."""
        return heights(grid[0], self.processes)[0] * grid[1]

    def _clustered(self, grid: tuple[int, int]) -> NerveConfig:
        """The settings with as many clusters as the call asks for, on a grid of tokens."""
        config, tokens = self.config, math.prod(grid)
        if self.global_keys != "auto":
            exact = self.global_keys is None or self.global_keys >= tokens
            return config.replace(global_keys=None if exact else self.global_keys)
        rule = NORMALIZATIONS[config.normalization]
        # Linear and without a sign: the cost does not grow with the number of keys.
        constant = rule.linear and not rule.signed
        if config.global_keys is not None or constant or tokens <= EXACT_TOKENS:
            return config
        return config.replace(global_keys=GLOBAL_KEYS)

    def _pixel_memory(self, encode: EncodePlan) -> int:
        """The label map in int64, and what one stripe takes."""
        pixels = max(math.prod(self.image_size), math.prod(encode.size))
        widest = max(self.image_size[0], encode.size[0])
        on_cpu = self.source.device.type == "cpu"
        stripe = STRIPE_BYTES if on_cpu else GPU_TILE_BYTES
        together = at_once(self.images, math.prod(encode.grid), self.source.device)
        return 8 * self.images * pixels + 6 * together * max(stripe, 4 * self.labels * widest)


def drawing_memory(
    size: tuple[int, int], labels: int, *, heat_maps: bool, steps: int, probabilities: bool
) -> int:
    """Bytes beyond the image that it takes to hold a label map, and to draw and write the results.

    Args:
        size: ``(width, height)`` of the image.
        labels: how many.
        heat_maps: whether they are drawn.
        steps: numbers of steps that are drawn.
        probabilities: whether they are written, of one label at a time.
    """
    pixels = math.prod(size)
    width = max(size[0], WIDEST_NAME)
    widened = min(width * size[1], max(pixels, visualize.MAX_WIDENED))
    legend = (visualize.FONT_SIZE + visualize.MARGIN) * width * (labels + 2)
    overlay = 4 * (widened + 2 * legend) + 32 * min(pixels, visualize.STRIPE_PIXELS)
    # The label map as a picture and as a file.
    file = 5 * pixels
    if probabilities:
        # One label's, and compressed.
        file = max(file, 8 * pixels + 6 * STRIPE_BYTES)
    panel = visualize.PANEL_WIDTH**2 * min(size[1] / size[0], visualize.MAX_PANEL_ASPECT)
    panels = labels * heat_maps + (steps + 2) * (steps > 0)
    # Each panel by itself and on the sheet; one in floating point; the image in grey.
    panels = math.ceil(panel * (12 * panels + 64)) + pixels * (panels > 0)
    return SLACK + 8 * pixels + overlay + max(file, panels)

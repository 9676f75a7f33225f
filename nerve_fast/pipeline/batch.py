"""Segment images and folders of images and write the results: the work behind ``segment``."""

import contextlib
import copy
import dataclasses
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from nerve_fast.backbones.loading import hide_loading_bars
from nerve_fast.config import NerveConfig, default_config
from nerve_fast.errors import InputError, SettingError, quoted
from nerve_fast.imaging import visualize
from nerve_fast.imaging.tiling import Tiling
from nerve_fast.pipeline import NervePipeline, SegmentationOutput
from nerve_fast.pipeline.budget import DoesNotFitError, drawing_memory
from nerve_fast.pipeline.inputs import (
    ENDINGS,
    Opened,
    batches,
    check_names,
    fail,
    listed,
    readable,
)
from nerve_fast.pipeline.jobs import check_keys
from nerve_fast.pipeline.marks import is_whole, settings_digest, stamped
from nerve_fast.pipeline.output import NPZ_MARK
from nerve_fast.pipeline.seeding import SeedSettings
from nerve_fast.pipeline.settings import ModelSettings, check_count
from nerve_fast.priors import PriorConfig
from nerve_fast.shares import ExchangeError, agreed, check_same
from nerve_fast.utils.files import prepare_folder, refuse_foreign, written_whole
from nerve_fast.utils.labels import parse_labels
from nerve_fast.utils.processes import process_group, shared_group
from nerve_fast.utils.provenance import file_digest
from nerve_fast.utils.units import format_bytes, parse_bytes

CLASSES = {
    "seeds": SeedSettings,
    "prior": PriorConfig,
    "config": NerveConfig,
    "models": ModelSettings,
}
"""Of those settings that are groups of settings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """Images, and what is made of them: immutable, checked when made.

    Attributes:
        images: files and folders of images.
        labels: one string a class; commas separate synonyms of one class; none where seeds say all.
        seeds: clicks, boxes and scribbles.
        output: the folder that results are written to.
        save_heatmaps, save_probabilities, save_steps: also write ``NAME.heatmaps.png``,
            ``NAME.npz``, ``NAME.steps.png``.
        resume: leave out images whose results are there.
        batch_size: number of images that are worked on together.
        verify: also run the reference backend and report the difference.
        resolution: the short side that the graph's network sees, in pixels; 0 is the image's own,
            ``None`` the model's.
        max_memory: bytes that may be taken beyond the models, a number or such as ``"6GB"``, by the
            networks, the walk and the drawing and writing of results, but not by the images
            themselves, their decoding and reading ahead; ``None`` is nine tenths of what is free.
        global_keys: clusters that the global part takes its keys in, ``"auto"``, or ``None`` for
            everything exactly.
        max_key_error: that the clusters may have, relative; ``None`` takes it as it is.
        tile, overlap: of large images, in pixels; ``None`` follows from the model.
        prior: how CLIP's patches become the prior.
        config: of the graph stage; ``None`` is the default, which with seeds alone is another.
        models: the networks.
        share_images: whether processes that are started together share each image, its tiles,
            windows and walk, rather than the list of images.

    Raises:
        SettingError, InputError: a value is out of its range.
        TypeError: a value is of the wrong type.
    """

    images: Sequence[str | os.PathLike]
    labels: Sequence[str]
    output: str | os.PathLike
    seeds: SeedSettings = dataclasses.field(default_factory=SeedSettings)
    save_heatmaps: bool = False
    save_probabilities: bool = False
    save_steps: bool = False
    resume: bool = False
    batch_size: int = 1
    verify: bool = False
    resolution: int | None = None
    max_memory: int | str | None = None
    global_keys: int | Literal["auto"] | None = "auto"
    max_key_error: float | None = None
    tile: int | None = None
    overlap: int | None = None
    prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    config: NerveConfig | None = None
    models: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    share_images: bool = False

    def __post_init__(self):
        for name, kind in CLASSES.items():
            if name == "config" and self.config is None:
                continue
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"{name} is {quoted(getattr(self, name))}; expected {kind.__name__}(…)"
                )
        for name in ("images", "labels"):
            if not isinstance(getattr(self, name), (list, tuple)):
                raise TypeError(f"{name} is {quoted(getattr(self, name))}; expected a list")
        if self.labels or not self.seeds:
            parse_labels(self.labels)
        check_count("batch_size", self.batch_size, 1)
        if self.share_images and self.verify:
            raise SettingError(
                "{share_images} and {verify} are both set; expected one of them, as the reference "
                "takes images whole"
            )
        check_keys(self.global_keys, self.max_key_error)
        if self.max_memory is not None:
            parse_bytes(self.max_memory)
        if self.tile is not None:
            overlap = 0 if self.overlap is None else self.overlap
            Tiling.of((1, 1), self.tile, overlap, 1)
        object.__setattr__(self, "images", tuple(map(Path, self.images)))
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "output", Path(self.output))

    @property
    def taken_config(self) -> NerveConfig:
        """The settings of the graph stage that were given, or the default ones."""
        return self.config or default_config(bool(self.labels))


@dataclasses.dataclass(frozen=True)
class SegmentResults:
    """The outcome for the images of this process.

    Attributes:
        written: number of images whose results were written.
        known: number of images whose results were there already.
        failed: the images that could not be segmented, with the reason.
    """

    written: int
    known: int
    failed: Mapping[Path, str]


def segment(
    asked: SegmentSettings,
    *,
    say: Callable[[str], None] | None = None,
    progress: bool = False,
) -> SegmentResults:
    """Segment images and write the results.

    Under ``accelerate launch`` each process takes its share of the images, on its device; with
    ``asked.share_images`` its share of each image, and the first one writes the results. An image
    that cannot be segmented is logged as an error, and the others are segmented all the same.

    Args:
        asked: what is done.
        say: called with a line for each image that ``asked.verify`` compares with the reference.
        progress: whether bars on stderr show how far it is.

    Raises:
        InputError: a mistake that concerns all images.
    """
    output = Path(asked.output)
    paths = listed([Path(path) for path in asked.images])
    check_names(paths, output)
    asked.seeds.check(len(paths))
    with process_group(asked.models.device) as (index, processes, device):
        sharing = shared_group(processes) if asked.share_images else None
        mine = paths if sharing is not None else paths[index::processes]
        made_with = settings_digest(asked, device)
        known: set[Path] = set()
        if asked.resume:
            known = {
                path
                for path in mine
                if is_whole(output / path.stem, wanted(asked), settings=made_with, source=path)
            }
        missing = [path for path in mine if path not in known]
        check_same(sharing, "the images that they see, or have results of", repr(missing))
        written = 0
        failed: dict[Path, str] = {}
        with contextlib.closing(readable(missing, asked.batch_size, failed)) as images:
            # The first images before the networks, which take long to load.
            groups = batches(images, asked.batch_size)
            group = next(groups, None)
            if group:
                prepare_folder(output)
                pipe = load_pipeline(asked, device)
                if asked.labels and pipe.prior is not None:
                    pipe.prior.check_labels(parse_labels(list(asked.labels)), progress=progress)
                    pipe.prior.view((1, 1))
            # Of one image that all work on one process tells.
            progress = progress and (sharing is None or index == 0)
            run = Run(asked, made_with, say, progress, sharing)
            hidden = None if progress else True
            bar = tqdm(total=len(missing), desc="images", unit="image", disable=hidden)
            with bar:
                while group:
                    written += segment_group(pipe, group, run, failed)
                    bar.update(written + len(failed) - bar.n)
                    group = next(groups, None)
        if sharing is not None and index:
            # What is written, the first one writes.
            return SegmentResults(0, 0, failed)
    return SegmentResults(written, len(known), failed)


@dataclasses.dataclass(frozen=True)
class Run:
    """What all images of a run have in common.

    Attributes:
        asked: what is done.
        made_with: the digest of all that results depend on but the image.
        say, progress: as for :func:`segment`.
        group: of the processes that share each image; ``None`` where they do not.
    """

    asked: SegmentSettings
    made_with: str
    say: Callable[[str], None] | None
    progress: bool
    group: Any = None


def segment_group(
    pipe: NervePipeline, group: Sequence[Opened], run: Run, failed: MutableMapping[Path, str]
) -> int:
    """Segment some images and write the results; what cannot be segmented is put in ``failed``.

    Returns:
        The number of images that were written.
    """
    try:
        segment_images(pipe, group, run)
        return len(group)
    except ExchangeError:
        # Nothing that comes can be shared any more.
        raise
    except InputError as error:
        if len(group) > 1:
            return sum(segment_group(pipe, [one], run, failed) for one in group)
        path = group[0].path
        fail(failed, path, f"{path}: {error}")
        return 0


def segment_images(pipe: NervePipeline, group: Sequence[Opened], run: Run) -> None:
    """Segment some images and write the results.

    Raises:
        InputError: an image cannot be segmented, a result cannot be written, or a file of its name
            is there that was not made by ``segment``.
    """
    asked = run.asked

    def checked():
        for one in group:
            for ending in wanted(asked):
                mark = NPZ_MARK if ending == "npz" else visualize.PNG_MARK
                refuse_foreign(Path(asked.output, f"{one.path.stem}.{ending}"), mark)
        check_drawing(asked, [one.image.size for one in group])
        return [asked.seeds.of(one.path) for one in group]

    check_same(run.group, "the image that they have read", repr([one.digest for one in group]))
    seeds = agreed(run.group, checked)

    def call(pipe):
        return pipe(
            [one.image for one in group],
            list(asked.labels) or None,
            points=[one["points"] for one in seeds],
            boxes=[one["boxes"] for one in seeds],
            scribbles=[one["scribbles"] for one in seeds],
            processing_resolution=asked.resolution,
            # Each image as if it were the only one.
            generator=[torch.Generator().manual_seed(asked.models.seed) for _ in group],
            return_steps=visualize.strip_stages(asked.taken_config.steps)
            if asked.save_steps
            else (),
            batch_size=asked.batch_size,
            max_memory=asked.max_memory,
            global_keys=asked.global_keys,
            max_key_error=asked.max_key_error,
            tile=asked.tile,
            overlap=asked.overlap,
            progress=run.progress,
            group=run.group,
        )

    results = call(pipe)
    if None in results:
        # The first process has them.
        return
    if asked.verify:
        reference = copy.copy(pipe)
        reference.backend = "reference"
        for one, out, expected in zip(group, results, call(reference), strict=True):
            if run.say:
                run.say(f"{one.path.name}: {difference(out, expected)}")
    results.reverse()
    for one in group:
        # One at a time: probabilities of all pixels are made, and kept, where they are asked for.
        made = {"settings": run.made_with, "source": one.digest, "revisions": revisions(pipe)}
        write(results.pop(), Path(asked.output) / one.path.stem, asked, made)


def check_drawing(asked: SegmentSettings, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise where results of images of these sizes cannot be drawn and written within the memory.

    Raises:
        DoesNotFitError: the message says what would help.
    """
    if asked.max_memory is None:
        return
    pixels = [width * height for width, height in sizes]
    size = sizes[pixels.index(max(pixels))]
    needed = drawing_memory(
        size,
        len(asked.labels),
        heat_maps=asked.save_heatmaps,
        steps=len(visualize.strip_stages(asked.taken_config.steps)) if asked.save_steps else 0,
        probabilities=asked.save_probabilities,
    )
    # The label maps of the others.
    needed += 8 * (sum(pixels) - max(pixels))
    if needed > parse_bytes(asked.max_memory):
        raise DoesNotFitError(
            f"max_memory is {asked.max_memory}; drawing and writing the results of "
            f"{size[0]} × {size[1]} pixels takes up to {format_bytes(needed)}: give it more "
            "memory, or make the image smaller"
        )


def revisions(pipe: NervePipeline) -> dict[str, str | None]:
    """The commits of the hub's repositories that the networks come from, where they do."""
    networks = {"clip": getattr(pipe.prior, "clip", None), "graph": pipe.graph}
    return {name: getattr(network, "revision", None) for name, network in networks.items()}


def difference(out: SegmentationOutput, expected: SegmentationOutput) -> str:
    """Say how far a result is from the reference's."""
    error = (out.walked - expected.walked).norm() / expected.walked.norm()
    equal = (out.label_map == expected.label_map).double().mean()
    said = f"probabilities within {error:.1e} of the reference's, {equal:.2%} of labels equal"
    if out.plan.cluster_error is not None:
        clusters = out.plan.walk.problem.columns
        said += f"; both with keys in {clusters} clusters: {out.plan.cluster_error}"
    return said


def wanted(asked: SegmentSettings) -> list[str]:
    """Return the endings of the results that were asked for."""
    optional = {
        "heatmaps.png": asked.save_heatmaps,
        "steps.png": asked.save_steps,
        "npz": asked.save_probabilities,
    }
    return [ending for ending in ENDINGS if optional.get(ending, True)]


def load_pipeline(asked: SegmentSettings, device: torch.device | str | None) -> NervePipeline:
    """Load the pipeline that the settings describe."""
    hide_loading_bars()
    models = asked.models
    return NervePipeline.from_pretrained(
        models.models,
        clip=models.clip if asked.labels else False,
        diffusion=models.diffusion,
        graph=models.graph,
        device=device,
        dtype=models.dtype,
        prior=asked.prior,
        config=asked.taken_config,
        backend=models.backend,
        layers=models.layers,
        timestep=models.timestep,
        compile=models.compile,
    )


def write(out: SegmentationOutput, stem: Path, asked: SegmentSettings, made: dict) -> None:
    """Write the pictures and the probabilities that were asked for; the label map last.

    Args:
        out: of an image.
        stem: of the files, the folder included.
        asked: says which files.
        made: what the label map says it was made of, see :mod:`nerve_fast.pipeline.marks`.
    """
    pictures = {"overlay": out.overlay()}
    if asked.save_heatmaps:
        pictures["heatmaps"] = visualize.heat_maps(out.image, out.walked.numpy(), out.labels)
    if asked.save_steps:
        steps = {count: maps.numpy() for count, maps in out.steps.items()}
        pictures["steps"] = visualize.steps_strip(out.image, out.prior.numpy(), steps, out.labels)
    label_map = Path(f"{stem}.labels.png")
    try:
        # What is there of an earlier run is no longer whole from here on.
        label_map.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{label_map}: cannot be replaced: {error.strerror or error}") from error
    for kind, picture in pictures.items():
        visualize.save_picture(picture, Path(f"{stem}.{kind}.png"))
    if asked.save_probabilities:
        out.save(Path(f"{stem}.npz"))
    results = {
        ending: file_digest(Path(f"{stem}.{ending}"))
        for ending in wanted(asked)
        if ending != "labels.png"
    }
    with written_whole(label_map) as file:
        visualize.save_label_map(file, out.label_map.numpy(), out.labels)
        file.write_bytes(stamped(file.read_bytes(), {**made, "results": results}))

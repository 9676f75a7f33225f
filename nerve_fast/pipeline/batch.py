"""Images and folders of images in, files of results out: the work behind ``segment``."""

import collections
import contextlib
import copy
import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from nerve_fast.backbones.loading import hide_loading_bars
from nerve_fast.config import TOKEN_BUDGET, NerveConfig
from nerve_fast.errors import InputError
from nerve_fast.imaging import visualize
from nerve_fast.imaging.images import load_image
from nerve_fast.imaging.tiling import Tiling
from nerve_fast.pipeline import NervePipeline, SegmentationOutput
from nerve_fast.pipeline.settings import ModelSettings, check_count
from nerve_fast.priors import PriorConfig
from nerve_fast.utils.files import prepare_folder
from nerve_fast.utils.labels import parse_labels
from nerve_fast.utils.processes import process_group
from nerve_fast.utils.units import parse_bytes

logger = logging.getLogger(__name__)

PHOTOGRAPHS = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif"}
PHOTOGRAPHS |= {".tiff", ".webp"}
"""Endings of what is taken from a folder."""

ENDINGS = ("overlay.png", "heatmaps.png", "steps.png", "npz", "labels.png")
"""Of results, in the order in which they are written: the last one says that all are there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """Images, and what is made of them: immutable, checked when made.

    Attributes:
        images: files and folders of images.
        labels: one string a class; commas separate synonyms of one class.
        output: the folder that results are written to.
        save_heatmaps, save_probabilities, save_steps: also write ``NAME.heatmaps.png``,
            ``NAME.npz``, ``NAME.steps.png``.
        resume: leave out images whose results are there.
        batch_size: number of images that are worked on together.
        verify: also run the reference, and say how far the results are from its.
        resolution: the short side that the graph's network sees, in pixels; 0 is the image's own,
            ``None`` the model's.
        max_memory: bytes that may be taken beyond the models, a number or such as ``"6GB"``;
            ``None`` is nine tenths of what is free.
        token_budget: tokens that the global part takes keys from; 0 is no bound.
        tile, overlap: of large images, in pixels; ``None`` follows from the model.
        prior: how CLIP's patches become the prior.
        config: of the graph stage.
        models: the networks.

    Raises:
        SettingError, InputError: a value is out of its range.
        TypeError: a value is of the wrong type.
    """

    images: Sequence[str | os.PathLike]
    labels: Sequence[str]
    output: str | os.PathLike
    save_heatmaps: bool = False
    save_probabilities: bool = False
    save_steps: bool = False
    resume: bool = False
    batch_size: int = 1
    verify: bool = False
    resolution: int | None = None
    max_memory: int | str | None = None
    token_budget: int = TOKEN_BUDGET
    tile: int | None = None
    overlap: int | None = None
    prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    config: NerveConfig = dataclasses.field(default_factory=NerveConfig)
    models: ModelSettings = dataclasses.field(default_factory=ModelSettings)

    def __post_init__(self):
        parse_labels(list(self.labels))
        check_count("batch_size", self.batch_size, 1)
        check_count("token_budget", self.token_budget, 0)
        if self.max_memory is not None:
            parse_bytes(self.max_memory)
        if self.tile is not None:
            overlap = 0 if self.overlap is None else self.overlap
            Tiling.of((1, 1), self.tile, overlap, 1)
        object.__setattr__(self, "images", tuple(map(Path, self.images)))
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "output", Path(self.output))


@dataclasses.dataclass(frozen=True)
class SegmentResults:
    """What came of the images, those of this process alone.

    Attributes:
        written: number of images whose results were written.
        known: number of images whose results were there already.
        failed: what could not be segmented, and why.
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

    Under ``accelerate launch`` each process takes its share of the images, on its device. An image
    that cannot be segmented is logged as an error, and the others are segmented all the same.

    Args:
        asked: what is done.
        say: called with a line for each image that ``asked.verify`` compares with the reference.
        progress: whether bars on stderr show how far it is.

    Raises:
        InputError: a mistake that concerns all images.
    """
    paths = listed(asked.images)
    check_names(paths, asked.output)
    with process_group(asked.models.device) as (index, processes, device):
        mine = paths[index::processes]
        known = {path for path in mine if asked.resume and is_done(path, asked)}
        missing = [path for path in mine if path not in known]
        written, failed = 0, {}
        with contextlib.closing(readable(missing, asked.batch_size, failed)) as images:
            # The first images before the networks, which take long to load.
            groups = batches(images, asked.batch_size)
            group = next(groups, None)
            if group:
                prepare_folder(asked.output)
                pipe = load_pipeline(asked, device)
                pipe.prior.check_labels(parse_labels(list(asked.labels)), progress=progress)
                pipe.prior.view((1, 1))
            hidden = None if progress else True
            bar = tqdm(total=len(missing), desc="images", unit="image", disable=hidden)
            with bar:
                while group:
                    written += segment_group(pipe, group, asked, failed, say, progress)
                    bar.update(written + len(failed) - bar.n)
                    group = next(groups, None)
    return SegmentResults(written, len(known), failed)


Failed = MutableMapping[Path, str]
"""What could not be segmented, and why."""


def fail(failed: Failed, path: Path, reason: str) -> None:
    """Put an image in ``failed`` and log why."""
    failed[path] = reason
    logger.error("%s", reason)


def segment_group(
    pipe: NervePipeline,
    group: Sequence[tuple[Path, Image.Image]],
    asked: SegmentSettings,
    failed: Failed,
    say: Callable[[str], None] | None,
    progress: bool,
) -> int:
    """Segment some images and write the results; what cannot be segmented is put in ``failed``.

    Returns:
        The number of images that were written.
    """
    try:
        segment_images(pipe, group, asked, say, progress)
        return len(group)
    except InputError as error:
        if len(group) > 1:
            return sum(segment_group(pipe, [one], asked, failed, say, progress) for one in group)
        ((path, _),) = group
        fail(failed, path, f"{path}: {error}")
        return 0


def segment_images(
    pipe: NervePipeline,
    group: Sequence[tuple[Path, Image.Image]],
    asked: SegmentSettings,
    say: Callable[[str], None] | None,
    progress: bool,
) -> None:
    """Segment some images and write the results."""

    def run(pipe):
        return pipe(
            [image for _, image in group],
            list(asked.labels),
            processing_resolution=asked.resolution,
            # Each image as if it were the only one.
            generator=[torch.Generator().manual_seed(asked.models.seed) for _ in group],
            return_steps=visualize.strip_stages(pipe.config.steps) if asked.save_steps else (),
            batch_size=asked.batch_size,
            max_memory=asked.max_memory,
            token_budget=asked.token_budget or None,
            tile=asked.tile,
            overlap=asked.overlap,
            progress=progress,
        )

    results = run(pipe)
    if asked.verify:
        reference = copy.copy(pipe)
        reference.backend = "reference"
        for (path, _), out, expected in zip(group, results, run(reference), strict=True):
            if say:
                say(f"{path.name}: {difference(out, expected)}")
    results.reverse()
    for path, _ in group:
        # One at a time: probabilities of all pixels are made, and kept, where they are asked for.
        write(results.pop(), asked.output / path.stem, asked)


def difference(out: SegmentationOutput, expected: SegmentationOutput) -> str:
    """How far a result is from the reference's, in words."""
    error = (out.walked - expected.walked).norm() / expected.walked.norm()
    equal = (out.label_map == expected.label_map).double().mean()
    return f"probabilities within {error:.1e} of the reference's, {equal:.2%} of labels equal"


def listed(places: Sequence[Path]) -> list[Path]:
    """The images named, and those in the folders named, by name; results among them left out.

    Raises:
        InputError: a file is not there, or a folder holds no image.
    """
    results = tuple(f".{ending}" for ending in ENDINGS)
    paths = []
    for place in places:
        try:
            inside = sorted(place.iterdir()) if place.is_dir() else [place]
        except OSError as error:
            raise InputError(f"{place}: cannot be read: {error.strerror}") from error
        if place.is_dir():
            inside = [
                path
                for path in inside
                if path.suffix.lower() in PHOTOGRAPHS
                and not path.name.startswith(".")
                and not path.name.endswith(results)
            ]
            if not inside:
                raise InputError(f"{place}: holds no image, {' '.join(sorted(PHOTOGRAPHS))}")
        elif not place.exists():
            raise InputError(f"{place}: no such file")
        paths += inside
    return paths


def check_names(images: Sequence[Path], folder: Path) -> None:
    """Results are named after the image's stem: they may overwrite no image and no other result."""
    inputs = {path.resolve(): path for path in images}
    first = {}
    for path in images:
        if path.stem in first:
            raise InputError(
                f"{first[path.stem]} and {path} would both be written as {path.stem}.*; rename "
                "one, or write them to different folders"
            )
        first[path.stem] = path
        for ending in ENDINGS:
            target = (folder / f"{path.stem}.{ending}").resolve()
            if target in inputs:
                raise InputError(
                    f"the result {target.name} of {path} would overwrite the image "
                    f"{inputs[target]}; write to another folder"
                )


def is_done(path: Path, asked: SegmentSettings) -> bool:
    """Whether all results of an image are there, and are of these labels."""
    stem = asked.output / path.stem
    if not all(Path(f"{stem}.{ending}").is_file() for ending in wanted(asked)):
        return False
    try:
        with Image.open(f"{stem}.labels.png") as result:
            return result.info.get("labels", "").split("\n") == list(asked.labels)
    except OSError:
        return False


def wanted(asked: SegmentSettings) -> list[str]:
    """Endings of the results that were asked for."""
    optional = {
        "heatmaps.png": asked.save_heatmaps,
        "steps.png": asked.save_steps,
        "npz": asked.save_probabilities,
    }
    return [ending for ending in ENDINGS if optional.get(ending, True)]


def readable(
    paths: Iterable[Path], ahead: int, failed: Failed
) -> Iterator[tuple[Path, Image.Image]]:
    """Images in order, read ahead; one that cannot be read is put in ``failed``."""
    waiting = collections.deque()
    paths = iter(paths)
    # One thread: decoding is quicker than all that follows.
    reader = ThreadPoolExecutor(1)
    try:
        while True:
            for path in itertools.islice(paths, ahead - len(waiting)):
                waiting.append((path, reader.submit(load_image, path)))
            if not waiting:
                return
            path, image = waiting.popleft()
            try:
                yield path, image.result()
            except InputError as error:
                fail(failed, path, str(error))
            del image
    finally:
        reader.shutdown(cancel_futures=True)


def batches(items: Iterable, size: int) -> Iterator[list]:
    """``size`` items at a time, the last ones fewer."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def load_pipeline(asked: SegmentSettings, device: torch.device | str | None) -> NervePipeline:
    """The pipeline that the settings describe."""
    hide_loading_bars()
    models = asked.models
    return NervePipeline.from_pretrained(
        models.models,
        clip=models.clip,
        diffusion=models.diffusion,
        graph=models.graph,
        device=device,
        dtype=models.dtype,
        prior=asked.prior,
        config=asked.config,
        backend=models.backend,
        layers=models.layers,
        timestep=models.timestep,
        compile=models.compile,
    )


def write(out: SegmentationOutput, stem: Path, asked: SegmentSettings) -> None:
    """Write the pictures and the probabilities that were asked for; the label map last."""
    pictures = {"overlay": out.overlay()}
    if asked.save_heatmaps:
        pictures["heatmaps"] = visualize.heat_maps(out.image, out.walked.numpy(), out.labels)
    if asked.save_steps:
        steps = {count: maps.numpy() for count, maps in out.steps.items()}
        pictures["steps"] = visualize.steps_strip(out.image, out.prior.numpy(), steps, out.labels)
    label_map = Path(f"{stem}.labels.png")
    # What is there of an earlier run is no longer whole from here on.
    label_map.unlink(missing_ok=True)
    for kind, picture in pictures.items():
        visualize.save_picture(picture, Path(f"{stem}.{kind}.png"))
    if asked.save_probabilities:
        out.save(Path(f"{stem}.npz"))
    out.save(label_map)

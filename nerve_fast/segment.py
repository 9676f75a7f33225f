"""The command ``segment``: images and folders of images in, pictures of the result out."""

import collections
import contextlib
import copy
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from nerve_fast import visualize
from nerve_fast.backbones.loading import hide_loading_bars
from nerve_fast.config import NerveConfig
from nerve_fast.errors import InputError
from nerve_fast.files import prepare_folder
from nerve_fast.images import load_image
from nerve_fast.labels import parse_labels
from nerve_fast.pipeline import NervePipeline, SegmentationOutput
from nerve_fast.priors import PriorConfig

ENDINGS = ("labels.png", "overlay.png", "heatmaps.png", "steps.png", "npz")
READERS = 2
"""Threads that decode images while others are worked on."""


def segment(options, config: NerveConfig) -> int:
    """Segment ``options.images`` into ``options.output``.

    Under ``accelerate launch`` each process takes its share of the images, on its device.

    Args:
        options: the flags of the command line.
        config: of the graph stage.

    Returns:
        The exit code: 2 where an image could not be read, else 0.

    Raises:
        InputError: a mistake that concerns all images.
    """
    labels = [label.strip() for label in options.labels.split(";")]
    classes = parse_labels(labels)
    if len(classes) == 1 and len(classes[0]) > 1:
        print(
            'note: commas separate synonyms of one class; between classes put ";"', file=sys.stderr
        )
    if options.batch_size < 1:
        raise InputError(f"--batch-size is {options.batch_size}; expected 1 or more")
    paths = listed(options.images)
    check_names(paths, options.output)
    with process_group() as (index, processes, device):
        mine = paths[index::processes]
        known = []
        if options.resume:
            known = [path for path in mine if is_done(path, labels, options)]
            mine = [path for path in mine if path not in set(known)]
        failed: list[Path] = []
        written = 0
        images = readable(mine, 2 * options.batch_size, failed)
        # The first one before the networks, which take long to load.
        first = next(images, None)
        if first is not None:
            prepare_folder(options.output)
            pipe = load_pipeline(options, config, device)
            pipe.clip.encode_words([word for words in classes for word in words], progress=True)
            bar = tqdm(total=len(mine), desc="images", unit="image", disable=None, position=index)
            with bar:
                for batch in batches(itertools.chain([first], images), options.batch_size):
                    segment_batch(pipe, batch, labels, options)
                    written += len(batch)
                    bar.update(written + len(failed) - bar.n)
        if written or known:
            print(summary(written, len(known), len(failed), options.output))
    return 2 if failed else 0


def summary(written: int, known: int, failed: int, folder: Path) -> str:
    said = f"{written} image{'s' * (written != 1)} written to {folder}"
    said += f", {known} there already" * (known > 0)
    return said + f", {failed} could not be read" * (failed > 0)


def segment_batch(
    pipe: NervePipeline, batch: Sequence[tuple[Path, Image.Image]], labels: list[str], options
) -> None:
    """Some images, to their files."""

    def run(pipe):
        return pipe(
            [image for _, image in batch],
            labels,
            processing_resolution=options.resolution,
            # Each image as if it were the only one.
            generator=[torch.Generator().manual_seed(options.seed) for _ in batch],
            return_steps=visualize.strip_stages(pipe.config.steps) if options.save_steps else (),
            batch_size=options.batch_size,
            max_memory=options.max_memory,
            token_budget=options.token_budget or None,
            tile=options.tile,
            overlap=options.overlap,
            progress=True,
        )

    results = run(pipe)
    if options.verify:
        reference = copy.copy(pipe)
        reference.backend = "reference"
        for (path, _), out, expected in zip(batch, results, run(reference), strict=True):
            print(f"{path.name}: {difference(out, expected)}")
    for (path, _), out in zip(batch, results, strict=True):
        write(out, options.output / path.stem, options)


def difference(out: SegmentationOutput, expected: SegmentationOutput) -> str:
    """How far a result is from the reference's, in words."""
    error = (out.probabilities - expected.probabilities).norm() / expected.probabilities.norm()
    equal = (out.label_map == expected.label_map).double().mean()
    return f"probabilities within {error:.1e} of the reference's, {equal:.2%} of labels equal"


def listed(places: Sequence[Path]) -> list[Path]:
    """The images named, and those in the folders named, by name; results among them left out.

    Raises:
        InputError: a file is not there, or a folder holds no image.
    """
    Image.init()
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths = []
    for place in places:
        if not place.is_dir():
            if not place.exists():
                raise InputError(f"{place}: no such file")
            paths.append(place)
            continue
        inside = [
            path
            for path in sorted(place.iterdir())
            if path.suffix.lower() in known and not path.name.endswith(ENDINGS)
        ]
        if not inside:
            raise InputError(f"{place}: holds no image that Pillow can read")
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


@contextlib.contextmanager
def process_group() -> Iterator[tuple[int, int, torch.device | None]]:
    """This process's index, how many there are, and its device; ``None`` is the best there is."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield 0, 1, None
        return
    from accelerate import PartialState

    state = PartialState()
    try:
        yield state.process_index, state.num_processes, state.device
    finally:
        state.destroy_process_group()


def is_done(path: Path, labels: Sequence[str], options) -> bool:
    """Whether all results of an image are there, and are of these labels."""
    stem = options.output / path.stem
    if not all(Path(f"{stem}.{ending}").is_file() for ending in wanted(options)):
        return False
    try:
        with Image.open(f"{stem}.labels.png") as result:
            return result.text.get("labels", "").split("\n") == list(labels)
    except (OSError, AttributeError):
        return False


def wanted(options) -> list[str]:
    """Endings of the results that were asked for."""
    asked = {
        "heatmaps.png": options.save_heatmaps,
        "steps.png": options.save_steps,
        "npz": options.save_probabilities,
    }
    return [ending for ending in ENDINGS if asked.get(ending, True)]


def readable(
    paths: Iterable[Path], ahead: int, failed: list[Path]
) -> Iterator[tuple[Path, Image.Image]]:
    """Images in order, read ahead; one that cannot be read is said and put in ``failed``."""
    with ThreadPoolExecutor(READERS) as readers:
        waiting = collections.deque()
        paths = iter(paths)
        while True:
            for path in itertools.islice(paths, ahead - len(waiting)):
                waiting.append((path, readers.submit(load_image, path)))
            if not waiting:
                return
            path, image = waiting.popleft()
            try:
                yield path, image.result()
            except InputError as error:
                failed.append(path)
                tqdm.write(f"nerve-fast: {error}", file=sys.stderr)


def batches(items: Iterable, size: int) -> Iterator[list]:
    """``size`` items at a time, the last ones fewer."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def load_pipeline(options, config: NerveConfig, device: torch.device | None) -> NervePipeline:
    """The pipeline that the flags describe."""
    hide_loading_bars()
    prior = PriorConfig(
        name=options.prior,
        resolution=options.prior_resolution,
        window=options.prior_window,
        stride=options.prior_stride,
        logit_scale=options.logit_scale,
    )
    return NervePipeline.from_pretrained(
        options.models,
        clip=options.clip,
        diffusion=options.diffusion,
        device=options.device or device,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        prior=prior,
        config=config,
        backend=options.backend,
        layers=options.layers,
        timestep=options.timestep,
        compile=options.compile,
    )


def write(out: SegmentationOutput, stem: Path, options) -> None:
    """The pictures that were asked for, and the probabilities."""
    # All pictures first: an image's files appear together or not at all.
    pictures = {"overlay": out.overlay()}
    if options.save_heatmaps:
        probabilities = out.probabilities.numpy()
        pictures["heatmaps"] = visualize.heat_maps(out.image, probabilities, out.labels)
    if options.save_steps:
        steps = {count: maps.numpy() for count, maps in out.steps.items()}
        pictures["steps"] = visualize.steps_strip(out.image, out.prior.numpy(), steps, out.labels)
    out.save(Path(f"{stem}.labels.png"))
    for kind, picture in pictures.items():
        visualize.save_picture(picture, Path(f"{stem}.{kind}.png"))
    if options.save_probabilities:
        out.save(Path(f"{stem}.npz"))

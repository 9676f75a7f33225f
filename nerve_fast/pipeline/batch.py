"""The command ``segment``: images and folders of images in, pictures of the result out."""

import collections
import contextlib
import copy
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from nerve_fast.backbones.loading import hide_loading_bars
from nerve_fast.config import NerveConfig
from nerve_fast.errors import InputError
from nerve_fast.imaging import visualize
from nerve_fast.imaging.images import load_image
from nerve_fast.imaging.tiling import Tiling
from nerve_fast.pipeline import NervePipeline, SegmentationOutput
from nerve_fast.priors import PriorConfig, view_of
from nerve_fast.utils.files import prepare_folder
from nerve_fast.utils.labels import parse_labels
from nerve_fast.utils.processes import notes, process_group
from nerve_fast.utils.units import parse_bytes

PHOTOGRAPHS = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif"}
PHOTOGRAPHS |= {".tiff", ".webp"}
"""Endings of what is taken from a folder."""

ENDINGS = ("overlay.png", "heatmaps.png", "steps.png", "npz", "labels.png")
"""Of results, in the order in which they are written: the last one says that all are there."""


def segment(options, config: NerveConfig) -> int:
    """Segment ``options.images`` into ``options.output``.

    Under ``accelerate launch`` each process takes its share of the images, on its device.

    Args:
        options: the flags of the command line.
        config: of the graph stage.

    Returns:
        The exit code: 2 where an image could not be done, else 0.

    Raises:
        InputError: a mistake that concerns all images.
    """
    labels = [label.strip() for label in options.labels.split(";")]
    classes = parse_labels(labels)
    if len(classes) == 1 and len(classes[0]) > 1:
        print(
            'note: commas separate synonyms of one class; between classes put ";"', file=sys.stderr
        )
    check_flags(options)
    paths = listed(options.images)
    check_names(paths, options.output)
    with process_group(options.device) as (index, processes, device), notes():
        mine = paths[index::processes]
        known = {path for path in mine if options.resume and is_done(path, labels, options)}
        missing = [path for path in mine if path not in known]
        written, failed = 0, []
        with contextlib.closing(readable(missing, options.batch_size, failed)) as images:
            # The first images before the networks, which take long to load.
            groups = batches(images, options.batch_size)
            group = next(groups, None)
            if group:
                prepare_folder(options.output)
                pipe = load_pipeline(options, config, device)
                pipe.clip.encode_words([word for words in classes for word in words], progress=True)
                view_of(pipe.clip, (1, 1), pipe.prior)
            bar = tqdm(total=len(missing), desc="images", unit="image", disable=None)
            with bar:
                while group:
                    written += segment_group(pipe, group, labels, options, failed)
                    bar.update(written + len(failed) - bar.n)
                    group = next(groups, None)
    if written or known:
        print(summary(written, len(known), len(failed), options.output))
    return 2 if failed else 0


def check_flags(options) -> None:
    """Refuse now what would be refused once the networks are loaded."""
    for flag, least in (("batch_size", 1), ("token_budget", 0)):
        if getattr(options, flag) < least:
            name = flag.replace("_", "-")
            raise InputError(f"--{name} is {getattr(options, flag)}; expected {least} or more")
    if options.max_memory is not None:
        parse_bytes(options.max_memory)
    if options.tile is not None:
        overlap = 0 if options.overlap is None else options.overlap
        Tiling.of((1, 1), options.tile, overlap, 1)


def summary(written: int, known: int, failed: int, folder: Path) -> str:
    said = f"{written} image{'s' * (written != 1)} written to {folder}"
    said += f", {known} there already" * (known > 0)
    return said + f", {failed} could not be done" * (failed > 0)


def segment_group(
    pipe: NervePipeline,
    group: Sequence[tuple[Path, Image.Image]],
    labels: list[str],
    options,
    failed: list[Path],
) -> int:
    """Some images, to their files; one that cannot be done is said and put in ``failed``.

    Returns:
        How many were done.
    """
    try:
        segment_images(pipe, group, labels, options)
        return len(group)
    except InputError as error:
        if len(group) > 1:
            return sum(segment_group(pipe, [one], labels, options, failed) for one in group)
        ((path, _),) = group
        failed.append(path)
        tqdm.write(f"nerve-fast: {path}: {error}", file=sys.stderr)
        return 0


def segment_images(
    pipe: NervePipeline, group: Sequence[tuple[Path, Image.Image]], labels: list[str], options
) -> None:
    """Some images, to their files."""

    def run(pipe):
        return pipe(
            [image for _, image in group],
            labels,
            processing_resolution=options.resolution,
            # Each image as if it were the only one.
            generator=[torch.Generator().manual_seed(options.seed) for _ in group],
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
        for (path, _), out, expected in zip(group, results, run(reference), strict=True):
            print(f"{path.name}: {difference(out, expected)}")
    results.reverse()
    for path, _ in group:
        # One at a time: probabilities of all pixels are made, and kept, where they are asked for.
        write(results.pop(), options.output / path.stem, options)


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


def is_done(path: Path, labels: Sequence[str], options) -> bool:
    """Whether all results of an image are there, and are of these labels."""
    stem = options.output / path.stem
    if not all(Path(f"{stem}.{ending}").is_file() for ending in wanted(options)):
        return False
    try:
        with Image.open(f"{stem}.labels.png") as result:
            return result.info.get("labels", "").split("\n") == list(labels)
    except OSError:
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
                failed.append(path)
                tqdm.write(f"nerve-fast: {error}", file=sys.stderr)
            del image
    finally:
        reader.shutdown(cancel_futures=True)


def batches(items: Iterable, size: int) -> Iterator[list]:
    """``size`` items at a time, the last ones fewer."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def load_pipeline(options, config: NerveConfig, device: torch.device | str | None) -> NervePipeline:
    """The pipeline that the flags describe."""
    hide_loading_bars()
    prior = PriorConfig(
        name=options.prior,
        resolution=options.prior_resolution,
        window=options.prior_window,
        stride=options.prior_stride,
        logit_scale=options.logit_scale,
        proxy=options.prior_proxy,
    )
    return NervePipeline.from_pretrained(
        options.models,
        clip=options.clip,
        diffusion=options.diffusion,
        device=device,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        prior=prior,
        config=config,
        backend=options.backend,
        layers=options.layers,
        timestep=options.timestep,
        compile=options.compile,
    )


def write(out: SegmentationOutput, stem: Path, options) -> None:
    """The pictures that were asked for, and the probabilities; the label map last."""
    pictures = {"overlay": out.overlay()}
    if options.save_heatmaps:
        pictures["heatmaps"] = visualize.heat_maps(out.image, out.walked.numpy(), out.labels)
    if options.save_steps:
        steps = {count: maps.numpy() for count, maps in out.steps.items()}
        pictures["steps"] = visualize.steps_strip(out.image, out.prior.numpy(), steps, out.labels)
    label_map = Path(f"{stem}.labels.png")
    # What is there of an earlier run is no longer whole from here on.
    label_map.unlink(missing_ok=True)
    for kind, picture in pictures.items():
        visualize.save_picture(picture, Path(f"{stem}.{kind}.png"))
    if options.save_probabilities:
        out.save(Path(f"{stem}.npz"))
    out.save(label_map)

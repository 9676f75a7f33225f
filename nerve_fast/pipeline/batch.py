"""Segment images and folders of images and write the results: the work behind ``segment``."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nerve_fast.backbones.loading import hide_loading_bars
from nerve_fast.errors import InputError
from nerve_fast.imaging import visualize
from nerve_fast.pipeline import NervePipeline, SegmentationOutput, exporting
from nerve_fast.pipeline.asked import SegmentSettings
from nerve_fast.pipeline.inputs import (
    Opened,
    batches,
    check_names,
    fail,
    listed,
    readable,
)
from nerve_fast.pipeline.map_settings import MapSettings
from nerve_fast.pipeline.marks import is_whole, settings_digest
from nerve_fast.pipeline.output import NPZ_MARK
from nerve_fast.pipeline.results import check_drawing, exported, wanted, write
from nerve_fast.shares import ExchangeError, agreed, check_same
from nerve_fast.utils.files import prepare_folder, refuse_foreign
from nerve_fast.utils.labels import parse_labels
from nerve_fast.utils.processes import process_group, shared_group, wait


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
                if is_whole(
                    output / path.stem,
                    wanted(asked),
                    settings=made_with,
                    source=path,
                    exports=exported(asked),
                )
            }
        missing = [path for path in mine if path not in known]
        check_same(sharing, "the images that they see, or have results of", repr(missing))
        written = 0
        failed: dict[Path, str] = {}
        with contextlib.closing(
            readable(missing, asked.batch_size, failed, asked.most_pixels)
        ) as images:
            # The first images before the networks, which take long to load.
            groups = batches(images, asked.batch_size)
            group = next(groups, None)
            changes = group is not None
            agreed(sharing, lambda: None if index else exporting.begin(asked, changes=changes))
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
        if asked.export:
            wait(processes)
            if index == 0:
                exporting.finish(asked, paths, made_with)
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
            exporting.refuse_foreign_files(asked, one.path.stem)
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
            top=asked.top,
            threshold=asked.threshold,
            background=asked.background,
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
        made = {
            "settings": run.made_with,
            "source": one.digest,
            "image": one.path.name,
            "revisions": revisions(pipe),
        }
        write(results.pop(), Path(asked.output) / one.path.stem, asked, made)


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


def load_pipeline(
    asked: SegmentSettings | MapSettings, device: torch.device | str | None
) -> NervePipeline:
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

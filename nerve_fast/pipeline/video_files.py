"""Segment videos and write the results: the work behind ``segment`` where it is given videos."""

import collections
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from nerve_fast.errors import InputError, SettingError
from nerve_fast.imaging import videos, visualize
from nerve_fast.imaging.exports.labelled import numbered
from nerve_fast.imaging.images import is_video
from nerve_fast.imaging.label_stacks import LabelStack
from nerve_fast.pipeline.asked import SegmentSettings
from nerve_fast.pipeline.batch import SegmentResults, load_pipeline
from nerve_fast.pipeline.budget import DoesNotFitError
from nerve_fast.pipeline.inputs import VIDEO_ENDINGS, check_names, fail
from nerve_fast.pipeline.output import NPZ_MARK, SegmentationOutput
from nerve_fast.pipeline.pipeline import NervePipeline
from nerve_fast.utils.files import prepare_folder, refuse_foreign, shown, written_whole
from nerve_fast.utils.labels import parse_labels
from nerve_fast.utils.processes import process_group
from nerve_fast.utils.units import format_bytes, parse_bytes

logger = logging.getLogger(__name__)

NOT_FOR_VIDEOS = (
    *("save_heatmaps", "save_probabilities", "save_steps", "export", "resume", "verify"),
    *("share_images",),
)
"""Settings of :class:`~nerve_fast.pipeline.asked.SegmentSettings` that a video has no use for."""

MARKS = dict(zip(VIDEO_ENDINGS, (videos.MARK, visualize.PNG_MARK, NPZ_MARK), strict=True))


def segment_videos(asked: SegmentSettings, *, progress: bool = False) -> SegmentResults:
    """Segment videos and write for each an overlaid film, its legend and a stack of label maps.

    The three files of a video are there when all of it has been done. Under ``accelerate launch``
    each process takes its share of the videos. A video that cannot be segmented is logged as an
    error, and the others are segmented all the same.

    Args:
        asked: what is done; its ``images`` are videos.
        progress: whether a bar on stderr shows how far it is.

    Raises:
        InputError: a mistake that concerns all videos.
    """
    _check(asked)
    output, failed = Path(asked.output), dict[Path, str]()
    check_names(list(map(Path, asked.images)), output, VIDEO_ENDINGS)
    videos.need()
    with process_group(asked.models.device) as (index, processes, device):
        found = []
        for path in map(Path, asked.images[index::processes]):
            # Before the networks, which take long to load.
            with _failing(path, failed), videos.opened(path):
                for ending, mark in MARKS.items():
                    refuse_foreign(output / f"{path.stem}.{ending}", mark)
                found.append(path)
        if not found:
            return SegmentResults(0, 0, failed)
        prepare_folder(output)
        pipe = load_pipeline(asked, device)
        if pipe.prior is not None:
            pipe.prior.check_labels(parse_labels(list(asked.labels)), progress=progress)
        written = 0
        for path in found:
            with _failing(path, failed):
                _segment(pipe, path, asked, progress)
                written += 1
    return SegmentResults(written, 0, failed)


def _check(asked: SegmentSettings) -> None:
    """Refuse what videos do not have.

    Raises:
        SettingError, InputError: which setting it is.
    """
    for name in NOT_FOR_VIDEOS:
        if getattr(asked, name):
            raise SettingError("{" + name + "} is not for videos; leave it out")
    if asked.batch_size != 1:
        raise SettingError("{batch_size} is not for videos; leave it out")
    if asked.seeds or not asked.labels:
        raise SettingError("a video takes words alone; give {labels}, and no clicks or scribbles")
    if is_video(Path(asked.output)):
        raise SettingError(
            "{output} is {0}; expected a folder, in which NAME.overlay.mp4 is written", asked.output
        )


@contextlib.contextmanager
def _failing(path: Path, failed: dict[Path, str]) -> Iterator[None]:
    """Note what is wrong with a video, and go on with the others."""
    try:
        yield
    except InputError as error:
        said = str(error)
        fail(failed, path, said if said.startswith(shown(path)) else f"{shown(path)}: {said}")


def _segment(pipe: NervePipeline, path: Path, asked: SegmentSettings, progress: bool) -> None:
    """Segment a video and write its results.

    Raises:
        InputError: it cannot be read, does not fit the memory, or a result cannot be written.
    """
    stem = Path(asked.output, path.stem)
    targets = [Path(f"{stem}.{ending}") for ending in VIDEO_ENDINGS]
    with contextlib.ExitStack() as files:
        film = files.enter_context(videos.opened(path))
        # What is entered last takes its name first: the labels say that all is there.
        labels, legend, overlay = (
            files.enter_context(written_whole(target)) for target in reversed(targets)
        )
        if film.has_audio:
            logger.warning("%s: its sound is left out", shown(path))
        unlabelled = asked.threshold is not None and asked.background is None
        with _writing(targets[1]):
            visualize.save_legend(legend, asked.vocabulary, unlabelled=unlabelled)
        stack = files.enter_context(LabelStack(labels, asked.vocabulary, NPZ_MARK))
        writer = files.enter_context(videos.Writer(overlay, film.unit))
        hidden = None if progress else True
        bar = tqdm(total=film.expected, desc=path.name, unit="frame", disable=hidden, leave=False)
        with bar:
            for stamp, out in _results(pipe, film, asked):
                # One numbering for all frames, of which each may have labels of its own.
                label_map, _ = numbered(out.label_map.numpy(), out.labels, {}, asked.vocabulary)
                picture = visualize.coloured(out.image, label_map, asked.vocabulary)
                with _writing(targets[0]):
                    writer.write(picture, stamp)
                with _writing(targets[-1]):
                    stack.write(label_map, float(stamp * film.unit))
                bar.update()


def _results(
    pipe: NervePipeline, film: videos.Film, asked: SegmentSettings
) -> Iterator[tuple[int, SegmentationOutput]]:
    """When each frame is shown, and its result."""
    stamps: collections.deque[int] = collections.deque()

    def images() -> Iterator[Image.Image]:
        for frame in film.frames():
            stamps.append(frame.stamp)
            yield frame.image

    results = pipe.video(
        images(),
        list(asked.labels),
        window=asked.frames_in_graph,
        config=asked.taken_config,
        processing_resolution=asked.resolution,
        generator=torch.Generator().manual_seed(asked.models.seed),
        max_memory=_left(film, asked),
        global_keys=asked.global_keys,
        max_key_error=asked.max_key_error,
        tile=asked.tile,
        overlap=asked.overlap,
        top=asked.top,
        threshold=asked.threshold,
        background=asked.background,
    )
    for out in results:
        yield stamps.popleft(), out


def _left(film: videos.Film, asked: SegmentSettings) -> int | None:
    """Bytes for the networks and the walk, beside what reading and writing films takes.

    Raises:
        DoesNotFitError: there are none.
    """
    if asked.max_memory is None:
        return None
    budget, held = parse_bytes(asked.max_memory), film.memory
    if budget <= held:
        width, height = film.size
        raise DoesNotFitError(
            f"max_memory is {asked.max_memory}; reading and writing films of {width} × {height} "
            f"pixels takes up to {format_bytes(held)}: give it more memory"
        )
    return budget - held


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Name the file that cannot be written; several are at a time."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{shown(target)}: cannot be written: {reason}") from error

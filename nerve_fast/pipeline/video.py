"""Films: each frame's walk is over its own tokens and those of the frames just before it.

The grids of the frames lie below one another, the oldest first, as one tall grid; queries, keys and
the prior of each frame are those that it has by itself. It is the walk of an image, on a taller
one: walkers go from a place to what looks like it in any of the frames, so that what one frame's
prior has by chance is outweighed by the others'. The result is that of the last frame's rows.
Nothing of a result goes into the next one, so that errors neither last nor add up; what was chosen
among is measured in docs/guides/video.md.
"""

import collections
import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from nerve_fast.backbones.source import GraphFeatures, heads_of
from nerve_fast.certainty import Threshold
from nerve_fast.config import NerveConfig
from nerve_fast.errors import InputError
from nerve_fast.imaging import videos
from nerve_fast.imaging.images import load_image
from nerve_fast.imaging.resampling import as_maps, to_tokens
from nerve_fast.pipeline import stages
from nerve_fast.pipeline.budget import CallPlan, DoesNotFitError, EncodePlan, Request
from nerve_fast.pipeline.execution import Execution
from nerve_fast.pipeline.jobs import Call, ImageInput, Job, call_of, check_inputs, seeded
from nerve_fast.pipeline.output import SegmentationOutput
from nerve_fast.pipeline.settings import check_count
from nerve_fast.refiners.walk import entropies
from nerve_fast.shares import Share

logger = logging.getLogger(__name__)


def segment_frames(
    execution: Execution,
    frames: str | os.PathLike | Iterable[ImageInput],
    labels: Sequence[str],
    *,
    window: int = 2,
    config: NerveConfig,
    processing_resolution: int | None = None,
    generator: torch.Generator | None = None,
    max_memory: int | str | None = None,
    global_keys: int | Literal["auto"] | None = "auto",
    max_key_error: float | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    top: int | None = None,
    threshold: Threshold | None = None,
    background: str | None = None,
) -> Iterator[SegmentationOutput]:
    """Results of the frames of a film, one after another: :meth:`nerve_fast.NervePipeline.video`.

    The arguments are checked at once, frames when their results are asked for.
    """
    check_inputs(config, processing_resolution, None, (), 1, global_keys, max_key_error)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is a {type(generator).__name__}; expected a torch.Generator")
    if window is None:
        raise TypeError("window is None; expected a whole number, 0 or more")
    check_count("window", window, 0)
    if not isinstance(frames, (str, os.PathLike)) and not hasattr(type(frames), "__iter__"):
        raise TypeError(
            f"frames is a {type(frames).__name__}; expected a path or an iterable of images"
        )
    call = call_of(
        execution.prior,
        labels,
        [],
        config=config,
        processing_resolution=processing_resolution,
        match_input_resolution=True,
        return_steps=(),
        max_memory=max_memory,
        global_keys=global_keys,
        max_key_error=max_key_error,
        tile=tile,
        overlap=overlap,
        top=top,
        threshold=threshold,
        background=background,
        progress=False,
    )
    if not call.classes:
        raise InputError("labels is None or empty; expected words, as a film takes no seeds")
    noise = (generator or seeded()).get_state()
    return _results(Film(execution, call, window), frames, noise)


def _results(film: "Film", frames, noise: Tensor) -> Iterator[SegmentationOutput]:
    with contextlib.ExitStack() as files:
        if isinstance(frames, (str, os.PathLike)):
            opened = files.enter_context(videos.opened(frames))
            frames = (frame.image for frame in opened.frames())
        for frame in frames:
            job = Job(load_image(frame), None, torch.Generator().set_state(noise), None)
            # Not around what is yielded: the caller's code runs there.
            with torch.no_grad():
                result = film.segment(job)
            yield result


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What is kept of a frame for those that follow.

    Attributes:
        graph: queries and keys, ``(1, H, N, D)``.
        probabilities: of the prior, ``(K, h', w')``.
        entropy: of the heads, ``(1, H)``, where the settings need it.
    """

    graph: GraphFeatures
    probabilities: Tensor
    entropy: Tensor | None


class Film:
    """The frames of one film, as far as they take part in what comes next.

    Args:
        execution: what carries the stages out.
        call: the settings of all frames.
        window: how many frames before each take part.
    """

    def __init__(self, execution: Execution, call: Call, window: int):
        self._execution = execution
        self._call = call
        self._seen: collections.deque[Seen] = collections.deque(maxlen=window + 1)
        self._window = window
        self._plan: EncodePlan | None = None
        self._walk_plans: dict[int, CallPlan] = {}
        self._size: tuple[int, int] | None = None
        self._number = 0

    def segment(self, job: Job) -> SegmentationOutput:
        """The result of the next frame.

        Raises:
            InputError: it is of another size than the first, or does not fit the memory.
        """
        size = self._size = self._size or job.image.size
        if job.image.size != size:
            raise InputError(
                f"frame {self._number} has {job.image.width} × {job.image.height} pixels; expected "
                f"{size[0]} × {size[1]}, as the first one"
            )
        plan = self._plan = self._plan or self._planned(job)
        self._number += 1
        with self._execution.heap.work(plan.size):
            self._see(job, plan)
            return self._walked(job, plan)

    def _planned(self, job: Job) -> EncodePlan:
        """How each frame is seen; raises where the last of a full window would not fit."""
        call, execution = self._call, self._execution
        view = stages.graph_view(
            execution.graph,
            job.image.size,
            call.processing_resolution,
            tile=call.tile,
            overlap=call.overlap,
        )
        most = self._window + 1
        heads, head_dim = heads_of(execution.graph)
        dtype = execution.graph.dtype
        # The features of a window, beside the frame that comes; and of each the prior.
        features = 2 * heads * head_dim * dtype.itemsize + 4 * len(call.words)
        held = self._window * math.prod(view.grid) * features
        try:
            plan = self._request(job, held=held).planned(call.max_memory)
            execution.say(plan, call)
            logger.info("with %d before it: %s", self._window, self._walk_plan(job, plan, most))
        except DoesNotFitError as error:
            more = ", or fewer frames in the graph" * (self._window > 0)
            raise DoesNotFitError(f"{error}{more}") from None
        return plan

    def _walk_plan(self, job: Job, plan: EncodePlan, frames: int) -> CallPlan:
        """Of the walk over a window of so many frames, the last one included."""
        if frames in self._walk_plans:
            return self._walk_plans[frames]
        tall = dataclasses.replace(plan, grid=(frames * plan.grid[0], plan.grid[1]))
        heads, head_dim = heads_of(self._execution.graph)
        features = 2 * heads * head_dim * plan.feature_dtype.itemsize
        # Those of each frame, and all of them below one another.
        held = 2 * math.prod(tall.grid) * features
        request = self._request(job, held=held, labels=job.count(self._call), encoded=tall)
        # With labels there is a walk to plan.
        found = cast(CallPlan, request.planned(self._call.max_memory))
        self._walk_plans[frames] = found
        return found

    def _request(self, job: Job, **given: Any) -> Request:
        call, execution = self._call, self._execution
        return Request(
            prior=execution.prior,
            source=execution.graph,
            backend=execution.backend,
            images=1,
            image_size=job.image.size,
            config=call.config,
            words=sum(map(len, call.classes)),
            processing_resolution=call.processing_resolution,
            tile=call.tile,
            overlap=call.overlap,
            global_keys=call.global_keys,
            **given,
        )

    def _see(self, job: Job, plan: EncodePlan) -> None:
        """Run the networks on a frame and put it into the window."""
        execution, config = self._execution, self._call.config
        probabilities, graph = execution.networks([job], self._call.classes, plan, progress=False)
        entropy = None
        if config.moves(()) and config.sharpness > 0:
            rows = self._walk_plan(job, plan, 1).entropy_rows
            entropy = entropies(graph, max_rows=rows, backend=execution.backend).mean
        self._seen.append(Seen(graph, probabilities[0], entropy))

    def _walked(self, job: Job, encode: EncodePlan) -> SegmentationOutput:
        """The walk over the window, and what it makes of its last frame."""
        call, execution, seen = self._call, self._execution, list(self._seen)
        names, maps = job.labels(call), [one.probabilities for one in seen]
        if call.top is not None:
            # One choice for the window.
            chosen = stages.carried_most(torch.cat(maps, 1), job.words(call), job.always(call))
            names = job.labels(call, chosen.tolist())
            maps = [stages.among(one, chosen) for one in maps]
        plan = self._walk_plan(job, encode, len(seen))
        graph = _joined([one.graph for one in seen], plan.grid)
        prior = torch.cat([to_tokens(one[None], encode.grid) for one in maps], 1)
        prior = prior.to(graph.q.device)
        given = [one.entropy for one in seen if one.entropy is not None]
        entropy = torch.stack(given).mean(0) if given else None
        share = Share(plan.grid)
        plan, clusters, (error,) = execution.clustered(
            [job], graph, prior, entropy, plan, call, share
        )
        (walked,) = stages.walk(
            graph,
            prior,
            plan.config,
            entropy=entropy,
            clusters=clusters,
            backend=execution.backend,
            plan=plan.walk,
        )
        own = walked.maps[:, -encode.grid[0] :].contiguous()
        width, height = job.image.size
        least, instead = call.certainty.least(names), call.certainty.instead(names)
        return SegmentationOutput(
            label_map=stages.to_labels(own, (height, width), least, instead),
            labels=names,
            image=job.image,
            prior=as_maps(prior[0, -math.prod(encode.grid) :], encode.grid).cpu(),
            walked=own.cpu(),
            steps={},
            steps_taken=walked.steps_taken,
            plan=dataclasses.replace(plan, cluster_error=error),
        )


def _joined(graphs: Sequence[GraphFeatures], grid: tuple[int, int]) -> GraphFeatures:
    """Frames below one another."""
    if len(graphs) == 1:
        return graphs[0]
    q, k = (torch.cat([getattr(one, name) for one in graphs], 2) for name in ("q", "k"))
    return GraphFeatures(q, k, grid)

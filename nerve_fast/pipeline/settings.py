"""Which networks a run takes, on what and in what they compute."""

import dataclasses
import numbers
import os
from collections.abc import Sequence

import numpy as np
import torch

from nerve_fast.dispatch import BACKEND_NAMES
from nerve_fast.errors import SettingError, quoted
from nerve_fast.numerics import is_finite


def check_switch(name: str, value: object) -> None:
    """Raise a :class:`TypeError` unless a value is true or false."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {quoted(value)}; expected True or False")


def check_count(name: str, value: int | None, least: int) -> None:
    """Raise where a setting is not a whole number of ``least`` or more; ``None`` is not set.

    Raises:
        SettingError: the number is smaller.
        TypeError: the value is not a whole number.
    """
    if value is None:
        return
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} is {quoted(value)}; expected a whole number, {least} or more")
    if value < least:
        raise SettingError("{" + name + "} is {0}; expected {1} or more", quoted(value), least)


def check_tolerance(name: str, value: float) -> None:
    """Raise where a distance in pixels is not a finite number of 0 or more.

    Raises:
        SettingError: the number is out of range.
        TypeError: the value is not a number.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {quoted(value)}; expected a number of pixels, 0 or more")
    if not (is_finite(value) and value >= 0):
        raise SettingError(
            "{" + name + "} is {0}; expected a finite number of pixels, 0 or more", quoted(value)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The networks and what they run on: immutable, checked when made.

    Attributes:
        models: a folder that holds ``clip/`` and ``diffusion/``, or ``"tiny"``.
        clip: hub id or folder of a CLIP; ``None`` is the usual one. Hub ids may be pinned to a
            commit, tag or branch: ``owner/name@revision``.
        diffusion: hub id, folder or single file of a Stable Diffusion; ``None`` is the usual one.
        graph: hub id or folder of a DINO, DINOv2 or DINOv3 that says which tokens belong together;
            ``None`` is the diffusion model.
        layers: the self-attentions whose queries and keys are taken; ``None`` is the model's usual
            choice.
        timestep: of the diffusion model's scheduler: the amount of noise that the UNet sees.
        device: such as ``"cpu"`` or ``"cuda:1"``; ``None`` is the best available one.
        dtype: of the networks; ``None`` is float16, on a CPU bfloat16 if that is faster, else
            float32.
        backend: what computes the graph stage.
        compile: whether the networks are compiled with ``torch.compile``.
        seed: of the noise, from 0 to 2^63 − 1.

    Raises:
        SettingError: a value is out of its range, or two do not go together.
        TypeError: a value is of the wrong type.
    """

    models: str | os.PathLike | None = None
    clip: str | os.PathLike | None = None
    diffusion: str | os.PathLike | None = None
    graph: str | os.PathLike | None = None
    layers: Sequence[str] | None = None
    timestep: int = 100
    device: str | torch.device | None = None
    dtype: torch.dtype | None = None
    backend: str = "auto"
    compile: bool = False
    seed: int = 0

    def __post_init__(self):
        check_count("timestep", self.timestep, 0)
        if self.seed is None:
            raise TypeError("seed is None; expected a whole number, 0 or more")
        check_count("seed", self.seed, 0)
        if self.seed >= 2**63:
            raise SettingError("{seed} is {0}; expected at most 2^63 - 1", quoted(self.seed))
        if self.dtype is not None and not isinstance(self.dtype, torch.dtype):
            raise TypeError(
                f"dtype is {quoted(self.dtype)}; expected a torch.dtype, as torch.float16"
            )
        if not isinstance(self.backend, str) or self.backend not in BACKEND_NAMES:
            raise SettingError(
                "{backend} is {0}; expected one of {1}",
                quoted(self.backend),
                ", ".join(BACKEND_NAMES),
            )
        if isinstance(self.layers, str):
            raise TypeError(f"layers is {quoted(self.layers)}; expected a list of names")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
        self._check_graph()

    def _check_graph(self):
        if self.graph is None:
            return
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in ("diffusion", "timestep"):
            if getattr(self, name) != defaults[name]:
                raise SettingError(
                    "{graph} is {0}, which takes the place of the diffusion model; leave out {"
                    + name
                    + "}",
                    self.graph,
                )

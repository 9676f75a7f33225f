"""What is measured: an operation, an implementation of it, and the size of the problem."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from nerve_fast import NerveConfig
from nerve_fast.bench.harness.floors import Floor
from nerve_fast.bench.harness.machine import Run, interpreted
from nerve_fast.numerics import ERROR_BOUNDS

REFERENCED = 1024
"""Tokens up to which the truth is the reference in float64; beyond it is ``blocked`` in float64,
which tests compare with the reference."""

CHECKED = 4096
"""Tokens up to which results are compared with float64, which is slow beyond."""

SIXTEEN_BITS = ("bfloat16", "float16")

TIERS = ("quick", "default", "full")


@dataclasses.dataclass(frozen=True)
class Setting:
    """The size and kind of a problem; the normalization is empty where there is none."""

    tokens: int
    labels: int = 21
    steps: int = 10
    heads: int = 5
    head_dim: int = 64
    normalization: str = "softmax"
    dtype: str = "float32"
    device: str = "cpu"

    def replace(self, **changes) -> "Setting":
        return dataclasses.replace(self, **changes)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim

    @property
    def grid(self) -> tuple[int, int]:
        return grid_of(self.tokens)

    def config(self, **changes) -> NerveConfig:
        """The settings of the walk, with ``changes``."""
        return NerveConfig(normalization=self.normalization, steps=self.steps, **changes)


def grid_of(tokens: int) -> tuple[int, int]:
    """The grid nearest to a square."""
    height = math.isqrt(tokens)
    while tokens % height:
        height -= 1
    return height, tokens // height


@dataclasses.dataclass(frozen=True)
class Operation:
    """A task that is the same for every implementation.

    Attributes:
        name: as reports say it.
        inputs: ``inputs(setting, seed)`` makes the arguments that every contender gets.
        truth: ``truth(setting, *inputs)`` computes the expected result in float64.
        floors: ``floors(setting)`` gives the work of each known way to compute it.
        steady: it consists of many equal steps; those after the second need no more memory.
        parts: whether it names its steps to ``torch.profiler``.
    """

    name: str
    inputs: Callable[..., tuple]
    truth: Callable[..., Tensor]
    floors: Callable[[Setting], Sequence[Floor]] = lambda setting: ()
    steady: bool = False
    parts: bool = False


@dataclasses.dataclass(frozen=True)
class Contender:
    """An implementation of an operation, ours or another's.

    Attributes:
        name: as reports say it.
        prepare: ``prepare(setting, *inputs)`` returns the function that is timed, which takes no
            arguments. Its own work, such as converting a graph to a library's format, is not timed.
        ours: whether it is a part of this package.
        route: ``(backend, route)`` of :func:`nerve_fast.random_walk`, where it is one of them.
        only: tells for which settings it is measured.
        needs: the package that it requires and that may not be installed.
        compiled: whether its first call compiles.
        graph: whether it is recorded as a CUDA graph and replayed, where that is possible; false
            for what replays a graph of its own.
        attends: whether it calls ``scaled_dot_product_attention``, whose implementation torch
            chooses.
        truth: computes its expected result where that differs from the operation's.
        checked: the largest number of tokens at which its result is compared with the truth.
        slack: factor on the error bound in float32.
        note: what a reader of the comparison should know.
    """

    name: str
    prepare: Callable[..., Run]
    ours: bool = False
    route: tuple[str, str] | None = None
    only: Callable[[Setting], bool] = lambda setting: True
    needs: str | None = None
    compiled: bool = False
    graph: bool = True
    attends: bool = False
    truth: Callable[..., Tensor] | None = None
    checked: int = CHECKED
    slack: float = 1.0
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement to be made."""

    operation: Operation
    contender: Contender
    setting: Setting
    tier: str = "default"

    def __str__(self) -> str:
        s = self.setting
        return (
            f"{self.operation.name}-{self.contender.name}-{s.tokens}-{s.normalization}-{s.dtype}"
            f"-K{s.labels}-L{s.steps}-C{s.channels}"
        ).replace(" ", "_")

    @property
    def bound(self) -> float:
        slack = self.contender.slack if self.setting.dtype == "float32" else 1
        return slack * ERROR_BOUNDS[self.setting.torch_dtype]

    @property
    def checked(self) -> Setting:
        """The setting at which the result is compared with the truth."""
        return self.setting.replace(tokens=min(self.setting.tokens, self.contender.checked))

    def made(self, setting: Setting, seed: int = 0) -> Run:
        """The function that is timed, for ``setting``, on new inputs."""
        return self.contender.prepare(setting, *self.operation.inputs(setting, seed))


def cases(
    operation: Operation,
    contenders: Iterable[Contender],
    settings: Iterable[tuple[str, Setting]],
) -> list[Case]:
    """Every contender on every setting that it is measured on, ours first, without repetition."""
    contenders = sorted(contenders, key=lambda contender: not contender.ours)
    found: dict[tuple[str, Setting], Case] = {}
    for tier, setting in settings:
        for contender in contenders:
            if contender.only(setting):
                key = (contender.name, setting)
                found.setdefault(key, Case(operation, contender, setting, tier))
    return list(found.values())


def kernels_run(setting: Setting) -> bool:
    """Whether Triton's kernels run here: on a GPU, or in the interpreter, to test the code."""
    return setting.device == "cuda" or (interpreted() and setting.dtype != "bfloat16")


def graph_inputs(setting: Setting, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and keys in groups of 16 similar tokens, the prior, and head weights."""
    device = setting.device
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=device)

    heads, tokens, width = setting.heads, setting.tokens, setting.head_dim
    groups = normal(heads, -(-tokens // 16), width).repeat_interleave(16, 1)[:, :tokens]
    q, k = ((groups + 0.5 * normal(heads, tokens, width)).to(setting.torch_dtype) for _ in range(2))
    prior = (3 * normal(tokens, setting.labels)).softmax(-1)
    return q, k, prior, normal(heads).softmax(0)


def compiled(function: Callable) -> Callable:
    """``function`` compiled by ``torch.compile``; only traced where kernels are interpreted."""
    backend = "eager" if interpreted() else "inductor"
    return torch.compile(function, dynamic=False, backend=backend)

"""A walk as far as its cost goes: its sizes, its settings, and where it runs."""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Sequence

import torch

from nerve_fast.blocked.precision import product_dtype
from nerve_fast.config import NerveConfig
from nerve_fast.errors import InputError, quoted
from nerve_fast.normalization import Normalization
from nerve_fast.numerics import steps_to_limit
from nerve_fast.utils.windows import clipped_radius


@dataclasses.dataclass(frozen=True)
class Problem:
    """A walk, as far as its cost goes.

    Attributes:
        batch: members of the batch.
        heads, tokens, head_dim, labels: ``H``, ``N``, ``D``, ``K``.
        config: settings.
        rule: the entry of ``config.normalization`` in the table at the time of planning.
        device, dtype: of ``q`` and ``k``.
        weights_given: whether head weights come from the caller, so that no entropy is computed.
        grid: ``(h, w)``, or ``None`` where it is not known.
        processes: how many share the tokens.
        own_tokens: tokens that this process holds; 0: as many as any has where they share alike.
    """

    batch: int
    heads: int
    tokens: int
    head_dim: int
    labels: int
    config: NerveConfig
    rule: Normalization
    device: torch.device
    dtype: torch.dtype
    weights_given: bool
    grid: tuple[int, int] | None = None
    processes: int = 1
    own_tokens: int = 0

    @property
    def own(self) -> int:
        """The tokens of this process."""
        if self.own_tokens:
            return self.own_tokens
        height, width = self.sides
        return -(-height // self.processes) * width

    @property
    def steps(self) -> int:
        """Steps of the walk; of ``steps=None`` the most that its tolerance can take."""
        config = self.config
        if config.steps is None:
            return steps_to_limit(config.alpha, config.tolerance)
        return config.steps

    @property
    def channels(self) -> int:
        """Channels of the packed queries and keys, ``H · D``."""
        return self.heads * self.head_dim

    @property
    def columns(self) -> int:
        """Columns of the global part: tokens, or clusters of them."""
        return min(self.config.global_keys or self.tokens, self.tokens)

    @property
    def clustered(self) -> bool:
        """Whether keys of the global part are taken in clusters."""
        return self.config.beta > 0 and self.columns < self.tokens

    @property
    def sides(self) -> tuple[int, int]:
        """The grid, or where it is not known the one whose windows take the most."""
        return self.grid or (1, self.tokens)

    @property
    def radius(self) -> int:
        """The radius of the local window, clipped to the grid."""
        return clipped_radius(self.config.radius, self.sides)

    @property
    def window(self) -> int:
        """Tokens of the local window, ``(2r+1)²``."""
        return (2 * self.radius + 1) ** 2

    @property
    def padded(self) -> int:
        """Tokens of the own rows of the grid, with twice the window's radius on all sides.

        Once is the padding, and once, above and below, the halo that other processes hold.
        """
        height, width = self.sides
        if self.processes > 1:
            height = -(-self.own // width) + 2 * self.radius
        return (height + 2 * self.radius) * (width + 2 * self.radius)

    @property
    def itemsize(self) -> int:
        """Bytes of the dtype in which sums are kept."""
        return 8 if self.dtype == torch.float64 else 4

    def stored_itemsize(self, backend: str) -> int:
        """Bytes of the dtype of large products, and so of a stored ``S``."""
        if backend == "triton":
            return self.dtype.itemsize
        return product_dtype(self.dtype, self.device).itemsize

    def misfit(self, other: "Problem") -> str | None:
        """Why a plan for this walk does not fit ``other``, or ``None`` where it does."""
        for name, what in (
            ("batch", "a batch of {}"),
            ("heads", "{} heads"),
            ("tokens", "{} tokens"),
            ("head_dim", "heads of dimension {}"),
            ("labels", "{} labels"),
            ("dtype", "q of {}"),
            ("config", "{}"),
            ("rule", "{}"),
            ("processes", "{} processes"),
        ):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                return f"it was made for {what.format(mine)}, and this walk has {what.format(its)}"
        if self.device.type != other.device.type or (
            None
            not in (
                self.device.index,
                other.device.index,
            )
            and self.device.index != other.device.index
        ):
            return f"it was made for {self.device}, and this walk is on {other.device}"
        if self.grid not in (None, other.grid):
            return f"it was made for a grid of {self.grid}, and this walk has {other.grid}"
        if self.own < other.own:
            return f"it was made for a share of {self.own} tokens, and this one has {other.own}"
        if self.weights_given and not other.weights_given:
            return "it was made for head weights that are given, and this walk has none"
        return None


LARGEST_SIDE = 2**31 - 1
"""Of a tensor that is planned for; no machine holds a larger one."""


def problem_of(
    shape: Sequence[int],
    num_labels: int,
    config: NerveConfig | None,
    device: str | torch.device,
    dtype: torch.dtype,
    weights_given: bool,
    grid: tuple[int, int] | None,
    processes: int = 1,
    own_tokens: int = 0,
) -> Problem:
    """The problem that the arguments of :func:`nerve_fast.plan` describe, checked.

    Raises:
        InputError, TypeError: an argument is not as described there; the message says how.
    """
    shape = _whole_numbers("shape", shape, "(…, H, N, D)")
    if len(shape) < 3 or min(shape) < 1 or max(shape) > LARGEST_SIDE:
        raise InputError(
            f"shape is {quoted(shape)}; expected (…, H, N, D), from 1 to {LARGEST_SIDE} each"
        )
    if not _is_whole(num_labels):
        raise TypeError(f"num_labels is {quoted(num_labels)}; expected a whole number, 1 or more")
    if not 1 <= num_labels <= LARGEST_SIDE:
        raise InputError(
            f"num_labels is {quoted(num_labels)}; expected 1 or more, up to {LARGEST_SIDE}"
        )
    config = checked_config(config)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype is {quoted(dtype)}; expected a floating torch.dtype, that of q")
    if not isinstance(weights_given, bool):
        raise TypeError(f"weights_given is {quoted(weights_given)}; expected True or False")
    *batch, heads, tokens, head_dim = shape
    if grid is not None:
        sides = _whole_numbers("grid", grid, "(height, width) in tokens")
        if len(sides) != 2 or min(sides) < 1 or math.prod(sides) != tokens:
            raise InputError(
                f"grid is {quoted(sides)}; expected h · w = {tokens}, the tokens of shape"
            )
        grid = (sides[0], sides[1])
    if not _is_whole(processes):
        raise TypeError(f"processes is {quoted(processes)}; expected a whole number, 1 or more")
    if processes > 1 and grid is None:
        raise InputError(
            f"grid is None and processes {quoted(processes)}; expected (height, width), as each "
            "process holds whole rows of the grid"
        )
    rows = 1 if grid is None else grid[0]
    if not 1 <= processes <= rows:
        raise InputError(
            f"processes is {quoted(processes)}; expected from 1 to {rows}, as each holds whole rows"
            " of the grid"
        )
    return Problem(
        batch=math.prod(batch),
        heads=heads,
        tokens=tokens,
        head_dim=head_dim,
        labels=int(num_labels),
        config=config,
        rule=config.rule,
        device=_device(device),
        dtype=dtype,
        weights_given=weights_given,
        grid=grid,
        processes=int(processes),
        own_tokens=own_tokens,
    )


def checked_config(config: NerveConfig | None) -> NerveConfig:
    """``config``, or the default settings in place of ``None``."""
    if config is None:
        return NerveConfig()
    if not isinstance(config, NerveConfig):
        raise TypeError(f"config is a {type(config).__name__}; expected a nerve_fast.NerveConfig")
    return config


def _whole_numbers(name: str, values: Sequence[int], expected: str) -> tuple[int, ...]:
    try:
        # More than a tensor can have are refused later, by their number.
        values = tuple(itertools.islice(values, 65))
    except TypeError:
        raise TypeError(f"{name} is {quoted(values)}; expected {expected}") from None
    if not all(_is_whole(value) for value in values):
        raise TypeError(f"{name} is {quoted(values)}; expected whole numbers {expected}")
    return tuple(map(int, values))


def _is_whole(value: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise InputError(
            f"device is {quoted(device)}; expected a torch.device or its name, such as 'cpu' or "
            "'cuda'"
        ) from None

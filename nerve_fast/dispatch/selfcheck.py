"""Whether the kernels give right results on this machine, found once for each dtype.

The first use of the kernels on a machine compares a few results with the reference in float64. What
was found is kept in a file of the cache folder, under the model of the GPU, its driver, torch,
Triton and the kernels' sources, so that a new one of any of them is checked again. Where a check
fails, ``auto`` takes the backend ``blocked``.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import math
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from nerve_fast import reference
from nerve_fast.config import NerveConfig
from nerve_fast.errors import InputError
from nerve_fast.numerics import ERROR_BOUNDS, relative_error
from nerve_fast.utils.files import cache_folder, written_whole
from nerve_fast.walked import Walked
from nerve_fast.weights import is_capturing

logger = logging.getLogger(__name__)

SHAPE = (5, 64, (33, 35), 21)
"""``H``, ``D``, the grid and ``K``: what Stable Diffusion 2's finest layer compiles, with so few
tokens that it takes no time, in no whole number of tiles and enough of them to be split."""

WORST_ROW = 4
"""Times the bound of the whole that a row alone may be off."""

DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/sys/module/amdgpu/version"))

Comparison = tuple[str, Callable[[], Tensor | Walked], Callable[[], Tensor | Walked]]
"""The name of what is compared, and functions that give the kernels' and the right result."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """How far one result of the kernels was off.

    Attributes:
        what: was computed.
        error: relative, of the whole or a fourth of its worst row's, whichever is larger; NaN where
            there is no result.
        bound: what it may be.
        note: what else was wrong.
    """

    what: str
    dtype: str
    error: float
    bound: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.bound and not self.note

    def __str__(self) -> str:
        off = f"is off by {self.error:.2g} where {self.bound:g} is allowed"
        return f"{self.what} in {self.dtype} {self.note or off}"


def inputs(
    shape: tuple[int, int, tuple[int, int], int], dtype: torch.dtype, device, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, a prior and head weights in which every column matters to some row.

    Tokens are in groups of 16 that are alike, and a group's tokens are anywhere: a span of columns
    that a kernel leaves out is missing in the result, and not only in its last digits.

    Args:
        shape: ``H``, ``D``, the grid and ``K``.
        dtype: of queries and keys.
        device: of all.
        seed: of the random numbers.
    """
    heads, head_dim, grid, labels = shape
    tokens = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(seed)
    normal = functools.partial(torch.randn, generator=generator)
    groups = normal(heads, -(-tokens // 16), head_dim).repeat_interleave(16, 1)[:, :tokens]
    groups = groups[:, torch.randperm(tokens, generator=generator)]
    q, k = ((groups + 0.5 * normal(groups.shape)).to(device, dtype) for _ in range(2))
    prior = (3 * normal(tokens, labels)).softmax(-1)
    return q, k, prior.to(device), normal(heads).softmax(0).to(device)


def compare(dtype: torch.dtype, comparison: Comparison, again: bool = True) -> Finding:
    """What one comparison finds, as a whole and in the worst row.

    With ``again`` a second run gives the same bits, or that is what was found.
    """
    what, mine, expected = comparison
    name, bound = str(dtype).removeprefix("torch."), ERROR_BOUNDS[dtype]
    try:
        out = _result(mine())
        repeated = not again or torch.equal(out, _result(mine()))
        right = _result(expected())
        off = (out.double() - right).norm(dim=-1)
        worst = (off / right.norm(dim=-1)).max().item() / WORST_ROW
        error = relative_error(out, right)
    except Exception as failure:  # of whatever kind: it is what was found
        line = (str(failure).splitlines() or [""])[0]
        return Finding(what, name, math.nan, bound, f"fails ({type(failure).__name__}: {line})")
    # `max` of Python drops NaN.
    error = error if math.isnan(error) or error > worst else worst
    note = "" if repeated or math.isnan(error) else "gives other bits in a second run"
    return Finding(what, name, error, bound, note)


def _result(out: Tensor | Walked) -> Tensor:
    return out.probabilities if isinstance(out, Walked) else out


def check(device: torch.device, dtype: torch.dtype) -> list[Finding]:
    """The small check: every operation and route once, on inputs of :data:`SHAPE`."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        # Memory that is used again holds the results of other inputs, and not the right ones.
        for _, mine, _ in _comparisons(device, dtype, 1):
            # What fails here fails again below.
            with contextlib.suppress(Exception):
                mine()
        return [compare(dtype, comparison) for comparison in _comparisons(device, dtype, 2)]


def _comparisons(device: torch.device, dtype: torch.dtype, seed: int) -> Iterator[Comparison]:
    from nerve_fast.kernels import affinity, entropy, walk

    q, k, G, w = inputs(SHAPE, dtype, device, seed)
    grid = SHAPE[2]
    Q, K, g, wide = (x.double() for x in (q, k, G, w))
    yield (
        "head_entropy",
        lambda: entropy.head_entropy(q, k),
        lambda: reference.head_entropy(Q, K),
    )
    yield (
        "cosine_affinity",
        lambda: affinity.cosine_affinity(q, k, w),
        lambda: reference.cosine_affinity(Q, K, wide),
    )
    yield (
        "local_affinity",
        lambda: affinity.local_affinity(q, k, grid, w, 1, 0.7),
        lambda: reference.local_affinity(Q, K, grid, wide, 1, 0.7),
    )
    for name, route, normalization, beta in (
        ("streaming", "streaming", "softmax", 1.0),
        ("dense", "dense", "softmax", 1.0),
        ("factorized", "factorized", "l1", 0.5),
        ("stencil", "streaming", "softmax", 0.0),
    ):
        config = NerveConfig(normalization=normalization, beta=beta, steps=2)
        yield (
            f"random_walk, {name}",
            functools.partial(
                walk.random_walk, q, k, G, grid, config, None, route=route, stored_rows=len(G)
            ),
            functools.partial(reference.random_walk, Q, K, g, grid, config, None),
        )


_lock = threading.Lock()
_found: dict[tuple[torch.device, torch.dtype], tuple[Finding, ...]] = {}


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels are not to be used on ``device``, from the check of its first use.

    Waits for the check once; while a CUDA graph is recorded nothing can be waited for, and what is
    not known then is not asked.
    """
    key = (device, dtype)
    if key not in _found:
        if is_capturing(device):
            return None
        with _lock:
            if key not in _found:
                _found[key] = _failures(device, dtype)
                if _found[key]:
                    logger.warning(
                        "The kernels %s; 'auto' takes the backend 'blocked' instead. "
                        "`nerve-fast doctor --check` checks all of them.",
                        _wrong(_found[key], device),
                    )
    return _wrong(_found[key], device) if _found[key] else None


def forget(device: torch.device) -> None:
    """Check the kernels on ``device`` again at their next use, in whatever dtype."""
    with _lock:
        for dtype in ERROR_BOUNDS:
            _found.pop((device, dtype), None)
            _file(device, dtype).unlink(missing_ok=True)


def _wrong(failures: tuple[Finding, ...], device: torch.device) -> str:
    from nerve_fast.kernels.configs import device_name

    more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
    return f"fail their check on {device_name(device)}: {failures[0]}{more}"


def _failures(device: torch.device, dtype: torch.dtype) -> tuple[Finding, ...]:
    """What failed when it was last checked, or now where it was not."""
    try:
        path = _file(device, dtype)
        known = json.loads(path.read_text())
        if not isinstance(known, list):
            raise TypeError(f"{path} holds no list")
        return tuple(_finding(value) for value in known)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, InputError) as error:
        logger.debug("the remembered check of kernels is not used: %r", error)
    failures = tuple(found for found in check(device, dtype) if not found.passed)
    try:
        path = _file(device, dtype)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write_text(json.dumps([dataclasses.asdict(found) for found in failures]) + "\n")
    except (OSError, InputError) as error:
        logger.debug("the check of kernels is not remembered: %s", error)
    return failures


def _finding(value: dict) -> Finding:
    found = Finding(**value)
    if not isinstance(found.error, float) or not isinstance(found.bound, float) or found.passed:
        raise ValueError(f"{value} is no failure")
    return found


def _file(device: torch.device, dtype: torch.dtype) -> Path:
    """Where the failures in a dtype are kept: one file for all that they depend on."""
    from nerve_fast.kernels.configs import device_name

    name = re.sub(r"\W+", "-", f"{device_name(device)} {dtype}".replace("torch.", ""))
    return cache_folder() / "kernels" / f"check-{name}-{_machine()}.json"


@functools.cache
def _machine() -> str:
    """A digest of the driver, torch, Triton and the kernels' sources."""
    import triton

    from nerve_fast import kernels

    found = hashlib.sha256(f"{torch.__version__} {triton.__version__}".encode())
    sources = sorted(Path(kernels.__path__[0]).glob("*.py"))
    for path in (*(path for path in DRIVERS if path.is_file()), *sources, Path(__file__)):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]

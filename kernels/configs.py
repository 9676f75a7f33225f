"""Which blocks a kernel takes: by what was measured on this machine, else by resource use.

The order in :data:`CANDIDATES` is that of resource use: large tiles first, as far as
``python -m nerve_fast.kernels.aot`` finds registers and shared memory for them. Nothing here has
been measured on a GPU yet; ``nerve-fast tune`` measures and remembers.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from nerve_fast.kernels.launch import SHARED_MEMORY, Config, recording, target_of

LABEL_BLOCK = {2: 128, 4: 64}
"""The widest tile of labels for inputs of so many bytes: wider ones spill."""

ACCUMULATORS = 1024
"""Sums of a tile ``[BM, BK]`` that a warp can hold beside everything else."""


def _resident(*shapes: tuple[int, int, int, int], channels: int = 64) -> tuple[Config, ...]:
    """``(warps, stages, BM, BN)`` of kernels that keep a row tile's channels.

    Matrix units finish after each block of ``channels``, and copies are waited for before it: the
    fewer the better, where that takes no more registers.
    """
    return tuple(
        Config.of(warps, stages, BM=bm, BN=bn, BC=channels, RESIDENT=True)
        for warps, stages, bm, bn in shapes
    )


def _reloading(*shapes: tuple[int, int, int, int], channels: int = 32) -> tuple[Config, ...]:
    """The same where channels are too many for that."""
    return tuple(
        Config.of(warps, stages, BM=bm, BN=bn, BC=channels, RESIDENT=False)
        for warps, stages, bm, bn in shapes
    )


def _tiles(*shapes: tuple[int, int, int, int], **more: int) -> tuple[Config, ...]:
    return tuple(Config.of(warps, stages, BM=bm, BN=bn, **more) for warps, stages, bm, bn in shapes)


_HOPPER_STREAM = (
    # With three stages the copies of the next tile are under way; with two, each is waited for.
    *_resident((8, 3, 128, 64), (8, 3, 128, 32), (8, 2, 128, 64), channels=256),
    *_reloading((8, 3, 128, 128), channels=64),
    *_resident((8, 3, 64, 64), (8, 3, 64, 32), channels=256),
    *_reloading((8, 3, 64, 64), (4, 2, 32, 32)),
)
_AMPERE_STREAM = (
    *_resident((8, 3, 128, 32), (8, 2, 128, 32), (4, 2, 64, 64), (8, 2, 64, 32)),
    *_reloading((8, 3, 64, 64), (4, 2, 32, 32)),
)
_CDNA_STREAM = (
    *_resident((8, 2, 128, 32), (4, 2, 64, 32)),
    *_reloading((8, 2, 64, 64), (4, 2, 32, 32)),
)
# float32: products of three tf32 products need many registers.
_HOPPER_STREAM_32 = (
    *_resident((8, 2, 64, 32)),
    *_reloading((8, 3, 64, 64), (8, 2, 64, 32), (4, 2, 32, 32)),
)
_STREAM_32 = _reloading((8, 2, 64, 32), (4, 2, 32, 32))

_HOPPER_PRODUCTS = _tiles((8, 3, 128, 256), (8, 3, 128, 128), (4, 3, 64, 64), BC=64)
_PRODUCTS = {
    "sm_90 16": _HOPPER_PRODUCTS,
    "sm_100 16": _HOPPER_PRODUCTS,
    "gfx942 16": _tiles((8, 2, 128, 128), (4, 2, 64, 64), BC=64),
    "16": _tiles((8, 3, 128, 128), (4, 3, 64, 64), BC=64),
    "32": _tiles((8, 2, 64, 64), (4, 2, 64, 32), BC=32),
}

_DENSE = _tiles((4, 4, 64, 128), (8, 4, 128, 64), (8, 4, 64, 64), (4, 4, 32, 128))
_HOPPER_DENSE = (*_tiles((8, 4, 128, 128)), *_DENSE)

CANDIDATES: dict[str, dict[str, tuple[Config, ...]]] = {
    "cosine_affinity": _PRODUCTS,
    "local_affinity": {
        "16": (Config.of(4, 3, BM=64), Config.of(4, 3, BM=32)),
        "32": (Config.of(4, 2, BM=16),),
    },
    "pack": {"": (Config.of(4, 1, BM=32), Config.of(4, 1, BM=16))},
    "head_entropy": {
        "16": _tiles(
            (8, 3, 128, 128), (8, 3, 128, 64), (4, 3, 64, 128), (4, 2, 64, 64), (4, 2, 32, 32)
        ),
        "32": _tiles((8, 2, 64, 16), (4, 1, 16, 16)),
    },
    "weigh": {"": (Config.of(4, 1, BT=128),)},
    "transition": {"": (Config.of(4, 1, BM=32),)},
    "streaming_step": {
        "sm_80 16": _AMPERE_STREAM,
        "sm_90 16": _HOPPER_STREAM,
        "sm_100 16": _HOPPER_STREAM,
        "gfx942 16": _CDNA_STREAM,
        "sm_90 32": _HOPPER_STREAM_32,
        "sm_100 32": _HOPPER_STREAM_32,
        "32": _STREAM_32,
    },
    "row_statistic": {
        "sm_80 16": _AMPERE_STREAM,
        "sm_90 16": _HOPPER_STREAM,
        "sm_100 16": _HOPPER_STREAM,
        "gfx942 16": _CDNA_STREAM,
        "sm_90 32": _HOPPER_STREAM_32,
        "sm_100 32": _HOPPER_STREAM_32,
        "32": _STREAM_32,
    },
    "numerators": _PRODUCTS,
    "dense_step": {
        "gfx942 16": _tiles((4, 2, 64, 64), (8, 2, 64, 64)),
        "sm_90 16": _HOPPER_DENSE,
        # Triton 3.6 spills there with tiles of 128 × 128.
        "16": _DENSE,
        "32": _tiles((4, 2, 64, 32), (8, 2, 64, 32)),
    },
    "moments": {
        "gfx942 16": (Config.of(4, 2, BC=64, BN=64),),
        "16": (Config.of(4, 4, BC=64, BN=64), Config.of(4, 3, BC=64, BN=128)),
        "32": (Config.of(4, 2, BC=64, BN=32),),
    },
    "factorized_step": {
        "16": (Config.of(8, 3, BM=64, BC=32), Config.of(4, 3, BM=64, BC=32)),
        "32": (Config.of(8, 2, BM=64, BC=32),),
    },
    "local_step": {"": (Config.of(4, 1, BM=32),)},
    "local_matmul": {"": (Config.of(4, 1, BM=32),)},
    "spread": {"": (Config.of(4, 1, BM=32),)},
}
"""Configurations a kernel, for a target and the bits of the inputs, in order of preference."""

tuned: dict[str, Config] = {}
"""What was found best on this machine: keys of :func:`tuning_key`."""

_forced: dict[str, Config] = {}
_asked: dict[str, tuple[str, tuple[Config, ...]]] | None = None


@contextlib.contextmanager
def asking() -> Iterator[dict[str, tuple[str, tuple[Config, ...]]]]:
    """Within the block, what configurations are asked for: by key, the kernel and its options."""
    global _asked
    _asked = {}
    try:
        yield _asked
    finally:
        _asked = None


@contextlib.contextmanager
def forcing(name: str, config: Config) -> Iterator[None]:
    """Within the block a kernel takes ``config`` whatever else is known; for tests and tuning."""
    before = _forced.get(name)
    _forced[name] = config
    try:
        yield
    finally:
        if before is None:
            del _forced[name]
        else:
            _forced[name] = before


def config_for(name: str, x: Tensor, tokens: int = 0, **shape: int) -> Config:
    """The configuration of a kernel for inputs like ``x``.

    Args:
        name: of the kernel.
        x: whose dtype and device count.
        tokens: rows it runs over; what was measured is kept for a power of two of them.
        shape: what decides whether a tile fits: channels ``kept`` of a row for all columns,
            channels ``loaded`` of each row and column at a time, ``labels`` of a tile, the ``most``
            rows of a tile; and whether rows are ``aligned`` to 16 bytes.
    """
    if name in _forced:
        return _forced[name]
    options = candidates(name, x, **shape)
    key = tuning_key(name, x, tokens, **shape)
    if _asked is not None:
        _asked.setdefault(key, (name, options))
    found = tuned.get(key)
    return found if found in options and not recording() else options[0]


def candidates(name: str, x: Tensor, aligned: bool = True, **shape: int) -> tuple[Config, ...]:
    """The configurations that fit the device of ``x``; the smallest if none seems to."""
    target, bits = target_of(x.device), "16" if x.dtype.itemsize == 2 else "32"
    table = CANDIDATES[name]
    options = table.get(f"{target} {bits}") or table.get(bits) or table[""]
    limit = SHARED_MEMORY[target]
    if x.device.type == "cuda":
        properties = torch.cuda.get_device_properties(x.device)
        limit = min(limit, getattr(properties, "shared_memory_per_block_optin", limit))
    fitting = tuple(c for c in options if _fits(c, x.dtype.itemsize, limit, target, **shape))
    # Rows that start anywhere are loaded element by element, through registers.
    return fitting if fitting and aligned else options[-1:]


def tuning_key(name: str, x: Tensor, tokens: int, **shape: int) -> str:
    """Under which a measurement is kept: shapes near one another share it."""
    sizes = " ".join(f"{key}={value}" for key, value in sorted(shape.items()))
    dtype = str(x.dtype).removeprefix("torch.")
    return f"{device_name(x.device)}: {name} {dtype} 2^{tokens.bit_length()} {sizes}".strip()


@functools.cache
def device_name(device: torch.device) -> str:
    """Return the name that tells one model of GPU from another."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _fits(
    config: Config,
    itemsize: int,
    limit: int,
    target: str,
    kept: int = 0,
    loaded: int = 0,
    labels: int = 0,
    most: int = 1 << 30,
) -> bool:
    blocks = dict(config.blocks)
    rows, columns = blocks.get("BM", blocks.get("BC", 0)), blocks.get("BN", 0)
    if rows > most or rows * labels > ACCUMULATORS * config.num_warps:
        return False
    if blocks.get("RESIDENT") is False:
        kept = loaded = 0
    staged = columns * (kept + labels) + (rows + (columns or rows)) * loaded
    if target == "gfx942":
        # What is kept of a row stays in registers there, and so does the newest stage.
        return itemsize * staged * max(config.num_stages - 1, 1) + (8 << 10) <= limit
    return itemsize * (rows * kept + staged * config.num_stages) <= limit

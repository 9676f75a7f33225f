"""What was measured of the kernels' configurations on this machine, and measuring it.

``nerve-fast tune`` runs every configuration that fits, once a machine; what was fastest is kept in
a file of the cache folder and taken from then on. ``NERVE_FAST_TUNING=fixed`` ignores it: then
results depend on the version alone.
"""

import dataclasses
import functools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch

from nerve_fast.config import NerveConfig
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.utils.files import cache_folder, written_whole

logger = logging.getLogger(__name__)

ENVIRONMENT = "NERVE_FAST_TUNING"


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long a whole operation took with one configuration of one of its kernels."""

    key: str
    config: dict
    seconds: float

    def text(self) -> str:
        """The configuration and its time in words."""
        blocks = " ".join(f"{name}={size}" for name, size in self.config["blocks"])
        warps, stages = self.config["num_warps"], self.config["num_stages"]
        return f"{blocks}, {warps} warps, {stages} stages: {1e6 * self.seconds:.1f} µs"


def tuning_file(device: torch.device) -> Path:
    """Where the measurements of ``device`` lie: one file a GPU model and version of Triton."""
    import triton

    from nerve_fast.kernels.configs import device_name

    name = device_name(device)
    name = re.sub(r"\W+", "-", f"{name} triton {triton.__version__}")
    return cache_folder() / "kernels" / f"{name}.json"


@functools.cache
def load(device: torch.device) -> None:
    """Make the kernels use what was measured on ``device``; once a process."""
    from nerve_fast.kernels import configs

    wish = os.environ.get(ENVIRONMENT, "")
    if wish == "fixed":
        return
    if wish:
        logger.warning("%s is %r; expected 'fixed', or nothing", ENVIRONMENT, wish)
    path: Path | str = "tuned blocks"
    try:
        path = file = tuning_file(device)
        known = json.loads(file.read_text())
        found = {key: _config(value) for key, value in known.items()}
    except FileNotFoundError:
        return
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.debug("%s: %r", path, error)
        logger.warning("%s cannot be read, or is damaged: run `nerve-fast tune` again", path)
        return
    configs.tuned.update(found)


def tune(
    run: Callable[[], object],
    seconds_of: Callable[[Callable], float],
    known: Collection[str] = (),
) -> Iterator[Timing]:
    """Time ``run`` with each configuration of each kernel it starts; the best are used afterwards.

    Args:
        run: calls an operation of the kernels.
        seconds_of: times a function.
        known: keys that have been measured.
    """
    import triton

    from nerve_fast.kernels import configs

    with configs.asking() as asked:
        run()
    for key, (name, options) in asked.items():
        best = None
        for config in options if len(options) > 1 and key not in known else ():
            try:
                with configs.forcing(name, config):
                    seconds = seconds_of(run)
            except (RuntimeError, triton.TritonError) as error:
                # Such as one that takes more of the device than was reckoned with.
                logger.warning("%s, %s: %s", key, config, error)
                continue
            yield Timing(key, dataclasses.asdict(config), seconds)
            if best is None or seconds < best:
                best = seconds
                configs.tuned[key] = config


def tune_operations(
    shape: tuple[int, int, int],
    labels: int,
    device: torch.device,
    dtype: torch.dtype,
    seconds_of: Callable[[Callable], float] | None = None,
) -> Iterator[Timing]:
    """:func:`tune` every operation and route for random inputs.

    Args:
        shape: ``(H, N, D)``.
        labels: ``K``.
        device, dtype: of the inputs.
        seconds_of: times a function; ``None`` takes the median of a graph's replays.
    """
    from nerve_fast.kernels import affinity, entropy, walk

    seconds_of = seconds_of or _median
    heads, tokens, _ = shape
    height = next(h for h in range(math.isqrt(tokens), 0, -1) if tokens % h == 0)
    grid = (height, tokens // height)
    q, k = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    prior = torch.rand(tokens, labels, device=device).softmax(-1)
    weights = torch.full((heads,), 1 / heads, device=device)
    operations = [
        lambda: affinity.cosine_affinity(q, k, weights),
        lambda: affinity.local_affinity(q, k, grid, weights, 1, 1.0),
        lambda: entropy.head_entropy(q, k),
    ]
    for normalization in NORMALIZATIONS.values():
        # A linear row is never walked otherwise, unless somebody asks for it by name.
        for route in ("factorized",) if normalization.linear else ("dense", "streaming"):
            operations.append(
                functools.partial(
                    walk.random_walk,
                    q,
                    k,
                    prior,
                    grid,
                    NerveConfig(normalization=normalization.name),
                    weights,
                    route=route,
                    stored_rows=tokens,
                    max_weight_sum=1.0,
                )
            )
    measured: set[str] = set()
    for operation in operations:
        for timing in tune(operation, seconds_of, frozenset(measured)):
            measured.add(timing.key)
            yield timing


def _median(run: Callable[[], object]) -> float:
    import triton

    return triton.testing.do_bench_cudagraph(run, rep=20, return_mode="median") / 1e3


def save(device: torch.device) -> Path:
    """Keep what is used now for the next process; returns where."""
    from nerve_fast.kernels import configs
    from nerve_fast.kernels.configs import device_name

    path = tuning_file(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = f"{device_name(device)}: "
    known = {
        key: dataclasses.asdict(config)
        for key, config in sorted(configs.tuned.items())
        if key.startswith(mine)
    }
    with written_whole(path) as file:
        file.write_text(json.dumps(known, indent=1) + "\n")
    return path


def _config(value: dict):
    from nerve_fast.kernels.launch import Config

    blocks = tuple((str(name), size) for name, size in value["blocks"])
    return Config(blocks, int(value["num_warps"]), int(value["num_stages"]))

"""What is known of head weights without waiting for a device, and when nobody may wait for one."""

import math

import torch
from torch import Tensor

from nerve_fast.numerics import upcast

_KNOWN = "_nerve_fast_largest_sum"


def remember(weights: Tensor, largest_sum: float) -> Tensor:
    """``weights (…, H)``, known to be valid and to have no sum over heads above ``largest_sum``.

    What is known is forgotten when ``weights`` are changed in place. Tensors that were made in
    inference mode do not count changes: those must not be changed.
    """
    setattr(weights, _KNOWN, (largest_sum, _version(weights)))
    return weights


def known_sum(weights: Tensor) -> float | None:
    """Return a bound on the sum over heads, or ``None`` where it is not known yet."""
    largest_sum, version = getattr(weights, _KNOWN, (None, None))
    return largest_sum if version == _version(weights) else None


def largest_sum(weights: Tensor) -> float:
    """The largest sum over heads of ``weights (…, H)``; waits once for the device, or not at all.

    Raises:
        ValueError: a weight is negative or not finite.
    """
    known = known_sum(weights)
    if known is not None:
        return known
    wide = upcast(weights.detach())
    least, most, total = torch.stack([wide.amin(), wide.amax(), wide.sum(-1).amax()]).tolist()
    # NaN is neither.
    if not (least >= 0 and most < math.inf):
        raise ValueError(
            f"head_weights holds {weights.tolist()}; expected finite numbers, 0 or more"
        )
    remember(weights, total)
    return total


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is recorded, by whomever, during which no value can be read."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _version(weights: Tensor) -> int:
    return 0 if weights.is_inference() else weights._version

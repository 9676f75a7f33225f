"""What a walk gives: the contract between the backends and those who call them."""

from typing import NamedTuple

from torch import Tensor


class Walked(NamedTuple):
    """The result of a random walk.

    Attributes:
        probabilities: ``P_L``, or ``P∞`` within the tolerance for ``steps=None``; ``(…, N, K)``.
        at_steps: ``{t: P_t}`` for each number of steps that was asked for, ``(…, N, K)`` each.
        steps_taken: steps after which ``probabilities`` was taken; for ``steps=None`` the most
            that any member of a batch needed.
    """

    probabilities: Tensor
    at_steps: dict[int, Tensor]
    steps_taken: int

"""What a walk returns, whichever backend made it."""

from typing import NamedTuple

from torch import Tensor


class Walked(NamedTuple):
    """The result of one walk and what was seen on the way.

    Attributes:
        probabilities: ``P_L``, or ``P∞`` within the tolerance where ``config.steps`` is ``None``;
            ``(…, N, K)`` in the dtype of the prior.
        at_steps: ``P_t`` by ``t`` for every ``t`` that ``return_steps`` named, shaped alike.
        steps_taken: how many steps ``probabilities`` took.
    """

    probabilities: Tensor
    at_steps: dict[int, Tensor]
    steps_taken: int

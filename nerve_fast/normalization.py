"""What turns a row of affinities into a row of transition probabilities: one table, as data.

Reference, blocked backend, kernels, plans, costs, tuning, ahead-of-time compilation, benchmarks and
tests all take their list and their behaviour from :data:`NORMALIZATIONS`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Normalization:
    r"""How a row ``a`` of affinities becomes a row of ``S``: numerators over their absolute sum.

    .. math:: f(a) = e^{(a - 1) / \tau} \;\text{if exponential, else}\;
              f(a) = \text{scale} \cdot a + \text{offset}, \text{ clamped at } 0 \text{ if clamped}

    Affinities lie in ``[−1, 1]`` where head weights sum to 1. Source: the NERVE slides print the
    cosine and the transition matrix and not what lies between; these are the readings of it.

    Args:
        name: as :class:`nerve_fast.NerveConfig` takes it.
        exponential: whether numerators are exponentials; then ``scale``, ``offset`` and ``clamped``
            are not used, and the temperature ``τ`` is.
        scale, offset: of the affine map; ``scale`` is above 0.
        clamped: whether negative numerators count as 0.

    Raises:
        ValueError: ``scale`` is not above 0.
    """

    name: str
    exponential: bool = False
    scale: float = 1.0
    offset: float = 0.0
    clamped: bool = False

    def __post_init__(self):
        if not self.scale > 0:
            raise ValueError(
                f"scale of the normalization {self.name!r} is {self.scale}; expected a number "
                "above 0: a larger affinity has the larger numerator"
            )

    @property
    def linear(self) -> bool:
        """Whether numerators are affine in the affinity, so that ``Q̃ (K̃ᵀ Y)`` is exact."""
        return not (self.exponential or self.clamped)

    @property
    def signed(self) -> bool:
        """Whether a numerator can be negative for an affinity in ``[−1, 1]``."""
        return self.linear and self.offset < self.scale


NORMALIZATIONS = {
    normalization.name: normalization
    for normalization in (
        Normalization("softmax", exponential=True),
        Normalization("relu", clamped=True),
        Normalization("l1"),
        Normalization("shift", scale=0.5, offset=0.5),
    )
}
"""By name. A further affine one is one more entry."""

"""Cosine affinity between all tokens, and between each token and its neighbours."""

import numbers

from torch import Tensor

from nerve_fast.dispatch import wants_grad
from nerve_fast.errors import quoted
from nerve_fast.numerics import LARGEST
from nerve_fast.ops import eager, library
from nerve_fast.ops.checks import check_grid, check_head_weights, check_qk, check_real
from nerve_fast.ops.local import LocalAffinity
from nerve_fast.utils.windows import clipped_radius


def cosine_affinity(
    q: Tensor, k: Tensor, head_weights: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    r"""Cosine affinity between all pairs of tokens (NERVE, slides 4.2 and 4.3).

    .. math:: A^{(h)}_{ij} = \frac{\langle q_i, k_j \rangle}{\|q_i\| \|k_j\|}, \quad
              A = \sum_h w_h A^{(h)}

    Norms are floored at 1e-12, as in ``torch.nn.functional.normalize``.

    Args:
        q, k: ``(…, H, N, D)``, any floating dtype.
        head_weights: ``(…, H)``, finite, 0 or more, used as given.
        backend: ``auto``, ``reference``, ``blocked`` or ``triton``.

    Returns:
        ``(…, N, N)``, or ``(…, H, N, N)`` without ``head_weights``; in the dtype of ``q``. Sums are
        in float32 or better; for the product normalised vectors may be rounded to 16 bits where the
        inputs have 16 (or float32 matmul precision is "medium").

    Raises:
        ValueError, TypeError: an argument is not as described; the message says how.
    """
    check_qk(q, k)
    if head_weights is not None:
        check_head_weights(head_weights, q)
    if library.compiled():
        return library.cosine_affinity(q, k, head_weights, backend)
    return eager.cosine_affinity(q, k, head_weights, backend, wants_grad(q, k, head_weights))


def local_affinity(
    q: Tensor,
    k: Tensor,
    grid: tuple[int, int],
    *,
    head_weights: Tensor | None = None,
    radius: int = 1,
    self_affinity: float = 1.0,
    backend: str = "auto",
) -> LocalAffinity:
    r"""Cosine affinity between each token and the tokens in a window around it (slides 4.2).

    .. math:: A_{ij} = \begin{cases} ε_{self} & i = j \\
              \frac{\langle q_i, k_j \rangle}{\|q_i\| \|k_j\|} & j \in N(i) \\ 0 & else
              \end{cases}

    Args:
        q, k: ``(…, H, N, D)``, any floating dtype.
        grid: ``(h, w)`` with ``h · w = N``; tokens are in row-major order.
        head_weights: ``(…, H)``, finite, 0 or more, used as given.
        radius: the window is ``(2·radius + 1)²`` tokens, clipped at the border; at least 1. One
            that reaches beyond the grid from every token is taken as the smallest that does.
        self_affinity: ``ε_self``, 0 or more.
        backend: ``auto``, ``reference``, ``blocked`` or ``triton``; the result's operations run on
            it too.

    Returns:
        A :class:`LocalAffinity` with values ``(…, N, (2r+1)²)``, or ``(…, H, N, (2r+1)²)`` without
        ``head_weights``; float32 (float64 for float64 inputs), as the exponent of ``softmax`` would
        enlarge the rounding of 16 bits.

    Raises:
        ValueError, TypeError: an argument is not as described; the message says how.
    """
    check_qk(q, k)
    grid = check_grid(grid, q.shape[-2])
    if head_weights is not None:
        check_head_weights(head_weights, q)
    if not isinstance(radius, numbers.Integral) or isinstance(radius, bool):
        raise TypeError(f"radius is {quoted(radius)}; expected a whole number, 1 or more")
    if radius < 1:
        raise ValueError(f"radius is {quoted(radius)}; expected 1 or more")
    self_affinity = check_real("self_affinity", self_affinity, least=0)
    if self_affinity > LARGEST:
        raise ValueError(f"self_affinity is {self_affinity}; expected at most {LARGEST:g}")
    radius = clipped_radius(int(radius), grid)
    settings = (q, k, head_weights, grid, radius, self_affinity, backend)
    if library.compiled():
        values = library.local_affinity(*settings)
    else:
        values = eager.local_affinity(*settings, wants_grad(q, k, head_weights))
    return LocalAffinity(values, grid, radius, backend)

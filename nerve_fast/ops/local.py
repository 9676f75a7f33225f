"""The matrix that couples each token to the window around it, stored without indices."""

import dataclasses

import torch
from torch import Tensor

from nerve_fast.config import NerveConfig
from nerve_fast.dispatch import check_name, wants_grad
from nerve_fast.ops import eager, library
from nerve_fast.ops.checks import check_float_tensor, check_grid
from nerve_fast.utils import windows


@dataclasses.dataclass(frozen=True, eq=False)
class LocalAffinity:
    """An ``N × N`` matrix that is zero outside a window around the diagonal of the token grid.

    Attributes:
        values: ``(…, N, (2r+1)²)``: row ``i`` holds the entries of token ``i``'s window, row by row
            of the window, the token itself in the middle, 0 outside the grid.
        grid: ``(h, w)`` with ``h · w = N``, row-major.
        radius: ``r``.
        backend: what :meth:`normalized`, :meth:`matmul` and :meth:`power_series` run on: ``auto``,
            ``reference``, ``blocked`` or ``triton``.
    """

    values: Tensor
    grid: tuple[int, int]
    radius: int
    backend: str = "auto"

    def __post_init__(self):
        check_float_tensor("values", self.values, "(…, N, (2r+1)²)", 2)
        check_grid(self.grid, self.values.shape[-2])
        check_name(self.backend)
        if self.values.shape[-1] != (2 * self.radius + 1) ** 2:
            raise ValueError(
                f"values has shape {tuple(self.values.shape)}; expected (…, N, "
                f"{(2 * self.radius + 1) ** 2}) for radius {self.radius}"
            )

    @property
    def inside(self) -> Tensor:
        """``(N, (2r+1)²)`` bool: which window positions lie on the grid."""
        return windows.inside(self.grid, self.radius, self.values.device)

    def normalized(self, normalization: str, temperature: float = 0.05) -> "LocalAffinity":
        """``S_local``: numerators over the row's absolute sum, ``ε_self`` as it is in the middle.

        Args:
            normalization: as :class:`nerve_fast.NerveConfig` takes it.
            temperature: ``τ`` of ``softmax``.

        Returns:
            The transition matrix, in the dtype of :attr:`values`. A row that holds nothing but the
            rounding of cosines is the identity's.

        Raises:
            ValueError, TypeError: an argument is not as described, or the backend cannot take
                these values; the message says how.
        """
        config = NerveConfig(normalization=normalization, temperature=temperature)
        settings = (self.values, self.grid, self.radius, config, self.backend)
        if library.compiled():
            weights = library.local_transition(*settings)
        else:
            weights = eager.local_transition(*settings, wants_grad(self.values))
        return dataclasses.replace(self, values=weights.to(self.values.dtype))

    def matmul(self, x: Tensor) -> Tensor:
        """The matrix times ``x``.

        Args:
            x: ``(…, N, K)``; its leading dimensions broadcast with those of :attr:`values`.

        Returns:
            ``(…, N, K)``, accumulated in float32 or better, in the dtype of ``x``.

        Raises:
            ValueError, TypeError: ``x`` is not as described, or the backend cannot take it.
        """
        values, factor = self._operands("x", x)
        settings = (self.grid, self.radius, self.backend)
        if library.compiled():
            product = library.local_matmul(values, factor, *settings)
        else:
            product = eager.local_matmul(values, factor, *settings, wants_grad(self.values, x))
        return product.to(x.dtype)

    def power_series(self, prior: Tensor, *, alpha: float = 0.9, steps: int = 10) -> Tensor:
        r"""The walk on the matrix as it is, a transition matrix such as :meth:`normalized` gives.

        .. math:: P_L = \frac{1 - \alpha}{1 - \alpha^{L+1}} \sum_{t=0}^{L} \alpha^t S^t G

        Args:
            prior: ``G``, ``(…, N, K)``; its leading dimensions broadcast with those of
                :attr:`values`.
            alpha: ``α``, as :class:`nerve_fast.NerveConfig` takes it.
            steps: ``L``.

        Returns:
            ``(…, N, K)``, accumulated in float32 or better, in the dtype of ``prior``.

        Raises:
            ValueError, TypeError: an argument is not as described, or the backend cannot take it.
        """
        config = NerveConfig(alpha=alpha, steps=steps)
        if config.steps is None:
            raise ValueError("steps is None; expected a number of steps")
        values, G = self._operands("prior", prior)
        series = (self.grid, self.radius, config.alpha, config.steps, self.backend)
        if library.compiled():
            walked = library.local_series(values, G, *series)
        else:
            walked = eager.local_series(values, G, *series, wants_grad(self.values, prior))
        return walked.to(prior.dtype)

    def _operands(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """The entries and ``x``, checked, in the dtype that products are taken in."""
        check_float_tensor(name, x, "(…, N, K)", 2)
        if x.shape[-2] != self.values.shape[-2]:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; expected (…, {self.values.shape[-2]}, K), as "
                f"this matrix couples {self.values.shape[-2]} tokens"
            )
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.values.dtype), torch.float32)
        return self.values.to(dtype), x.to(dtype)

    def to_dense(self) -> Tensor:
        """The whole matrix, ``(…, N, N)``."""
        return windows.dense(self.values, self.grid, self.radius)

    def to_sparse_csr(self) -> Tensor:
        """The matrix as a ``torch.sparse_csr`` tensor ``(…, N, N)``, every window entry stored."""
        batch, tokens = self.values.shape[:-2], self.values.shape[-2]
        starts = torch.zeros(tokens + 1, dtype=torch.int64, device=self.values.device)
        starts[1:] = self.inside.sum(-1).cumsum(0)
        columns = windows.columns(self.grid, self.radius, self.values.device)[self.inside]
        return torch.sparse_csr_tensor(
            starts.expand(*batch, -1),
            columns.expand(*batch, -1),
            self.values[..., self.inside],
            size=(*batch, tokens, tokens),
            check_invariants=False,
        )

"""The matrix that couples each token to the window around it, stored without indices."""

import dataclasses

import torch
from torch import Tensor
from torch.nn.functional import pad

from nerve_fast.config import NerveConfig
from nerve_fast.ops.checks import check_float_tensor
from nerve_fast.reference.walk import EMPTY_ROW, numerator


@dataclasses.dataclass(frozen=True)
class LocalAffinity:
    """An ``N × N`` matrix that is zero outside a window around the diagonal of the token grid.

    Attributes:
        values: ``(…, N, (2r+1)²)``: row ``i`` holds the entries of token ``i``'s window, row by row
            of the window, the token itself in the middle, 0 outside the grid.
        grid: ``(h, w)`` with ``h · w = N``, row-major.
        radius: ``r``.
    """

    values: Tensor
    grid: tuple[int, int]
    radius: int

    @property
    def inside(self) -> Tensor:
        """``(N, (2r+1)²)`` bool: which window positions lie on the grid."""
        ones = torch.ones(self.grid, dtype=torch.bool, device=self.values.device)
        return torch.stack([x.flatten() for x in self._shifted(ones)], dim=-1)

    def normalized(self, normalization: str, temperature: float = 0.05) -> "LocalAffinity":
        """``S_local``: numerators over the row's absolute sum, ``ε_self`` as it is in the middle.

        Args:
            normalization: ``softmax``, ``relu``, ``l1`` or ``shift``.
            temperature: ``τ`` of ``softmax``.

        Returns:
            The transition matrix, in the dtype of :attr:`values`. A row whose absolute sum is not
            above 1e-12 is the identity's.
        """
        NerveConfig(normalization=normalization, temperature=temperature)
        affinity = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        middle = torch.zeros_like(self.inside)
        middle[:, middle.shape[-1] // 2] = True
        # Off the grid the numerators of softmax and shift would not be 0.
        weights = torch.where(middle, affinity, numerator(affinity, normalization, temperature))
        weights = weights * self.inside
        total = weights.abs().sum(-1, keepdim=True)
        empty = total <= EMPTY_ROW
        weights = torch.where(
            empty, middle.to(weights.dtype), weights / total.masked_fill(empty, 1)
        )
        return dataclasses.replace(self, values=weights.to(self.values.dtype))

    def matmul(self, x: Tensor) -> Tensor:
        """The matrix times ``x``.

        Args:
            x: ``(…, N, K)``; its leading dimensions broadcast with those of :attr:`values`.

        Returns:
            ``(…, N, K)``, accumulated in float32 or better, in the dtype of ``x``.

        Raises:
            ValueError, TypeError: ``x`` is not as described.
        """
        check_float_tensor("x", x, "(…, N, K)", 2)
        if x.shape[-2] != self.values.shape[-2]:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; expected (…, {self.values.shape[-2]}, K), as this "
                f"matrix couples {self.values.shape[-2]} tokens"
            )
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.values.dtype), torch.float32)
        maps = x.mT.to(dtype).unflatten(-1, self.grid)  # (…, K, h, w)
        weights = self.values.to(dtype)
        total = 0
        for offset, shifted in enumerate(self._shifted(maps)):
            total = total + weights[..., None, :, offset] * shifted.flatten(-2)
        return total.mT.to(x.dtype)

    def to_dense(self) -> Tensor:
        """The whole matrix, ``(…, N, N)``."""
        rows = self.values.new_zeros(*self.values.shape[:-1], self.values.shape[-2])
        inside = self.values.masked_fill(~self.inside, 0)
        return rows.scatter_add(-1, self._columns().expand_as(inside), inside)

    def to_sparse_csr(self) -> Tensor:
        """The matrix as a ``torch.sparse_csr`` tensor ``(…, N, N)``, every window entry stored."""
        batch, tokens = self.values.shape[:-2], self.values.shape[-2]
        starts = torch.zeros(tokens + 1, dtype=torch.int64, device=self.values.device)
        starts[1:] = self.inside.sum(-1).cumsum(0)
        columns = self._columns()[self.inside]
        return torch.sparse_csr_tensor(
            starts.expand(*batch, -1),
            columns.expand(*batch, -1),
            self.values[..., self.inside],
            size=(*batch, tokens, tokens),
            check_invariants=False,
        )

    def _columns(self) -> Tensor:
        """``(N, (2r+1)²)`` int64: the token at each window position, 0 outside the grid."""
        tokens = torch.arange(self.values.shape[-2], device=self.values.device).unflatten(
            0, self.grid
        )
        return torch.stack([x.flatten() for x in self._shifted(tokens)], dim=-1)

    def _shifted(self, maps: Tensor):
        """``maps (…, h, w)`` seen from each window position in turn, 0 outside the grid."""
        r, (h, w) = self.radius, self.grid
        padded = pad(maps, (r, r, r, r))
        for dy in range(2 * r + 1):
            for dx in range(2 * r + 1):
                yield padded[..., dy : dy + h, dx : dx + w]

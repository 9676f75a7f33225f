"""What the steps of one walk share, whatever the route: packed heads, local weights, layout."""

import functools
import math

import torch
import triton
from torch import Tensor

from nerve_fast.clusters import Clusters
from nerve_fast.config import NerveConfig
from nerve_fast.kernels.affinity import local_affinity
from nerve_fast.kernels.configs import LABEL_BLOCK, config_for
from nerve_fast.kernels.entropy import LOG2_E
from nerve_fast.kernels.launch import Config, launch, multiprocessors, precision, target_of
from nerve_fast.kernels.numerators import affine_map
from nerve_fast.kernels.pack import pack
from nerve_fast.kernels.stencil import transition
from nerve_fast.kernels.steps import spread_kernel


class Operands:
    """The operands of a walk's steps, and starting the kernels that take them.

    Args:
        q, k: ``(B, H, N, D)``.
        G: ``(B, N, K)``, any floating dtype and strides.
        grid: ``(h, w)``.
        config: settings of the walk.
        weights: head weights ``(B, H)``, float32.
        scale: the largest of each member, ``(B,)``.
        max_weight_sum: what no sum of a member's weights exceeds.
        clusters: of the keys, ``(B, N)``; ``None`` takes them one by one.

    Attributes:
        packed_q, packed_k: ``Q̃ (B, N, C)`` and ``K̃ (B, M, C)``, the means of clusters if there are
            any; ``None`` at ``β = 0``.
        counts: tokens behind each key, ``(B, M)`` float32; ``None`` at ``β = 0``.
        share: by which sums over clusters are divided: a power of two near the mean size.
        local: ``S_local`` as planes ``(B, (2r+1)², N)`` float32; ``None`` at ``β = 1``.
        label_block, label_tiles, columns: ``Y`` is ``(B, N, columns)``, in ``label_tiles`` tiles of
            ``label_block`` columns each.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        G: Tensor,
        grid: tuple[int, int],
        config: NerveConfig,
        weights: Tensor,
        scale: Tensor,
        max_weight_sum: float,
        clusters: Clusters | None = None,
    ):
        self.q, self.G, self.grid, self.config = q, G, grid, config
        self.normalization = config.rule
        self.scale, self.max_weight_sum = scale, max_weight_sum
        self.batch, self.tokens, self.labels = G.shape
        self.label_block = label_block(self.labels, q.dtype)
        self.label_tiles = triton.cdiv(self.labels, self.label_block - 1)
        self.columns = self.label_tiles * self.label_block
        self.clusters, self.share = clusters, 1.0
        if clusters is not None:
            self.share = 2.0 ** round(math.log2(self.tokens / clusters.count))
        self._shares: dict[str, tuple[Tensor, Tensor]] = {}
        self.local = None
        if config.beta < 1:
            planes = local_affinity(q, k, grid, weights, config.radius, config.self_affinity).mT
            self.local = transition(
                planes,
                grid,
                config.radius,
                config.rule,
                config.temperature,
                config.self_affinity,
            )
        self.packed_q = self.packed_k = self.counts = None
        if config.beta > 0:
            self.packed_q, self.packed_k = pack(q, k, weights)
            if clusters is None:
                self.counts = q.new_ones(self.batch, self.tokens, dtype=torch.float32)
            else:
                self.packed_k = clusters.means(self.packed_k).to(q.dtype)
                self.counts = clusters.sizes.float().view(self.batch, clusters.count)

    @property
    def keys(self) -> int:
        """Keys of the global part."""
        return self.packed_k.shape[1]

    @property
    def channels(self) -> int:
        """The number of channels of the packed heads."""
        return self.packed_q.shape[-1]

    @property
    def has_values(self) -> bool:
        """Whether ``V`` is kept beside ``Y``: products read neither float32 nor sums."""
        apart = self.config.beta > 0 and self.clusters is None
        return apart and self.q.dtype != torch.float32

    def buffers(self) -> tuple[Tensor, Tensor | None]:
        """Room for ``Y``, float32, and for ``V`` in the dtype of ``q``, ``(B, N, columns)``."""
        shape = self.batch, self.tokens, self.columns
        Y = self.q.new_empty(shape, dtype=torch.float32)
        return Y, self.q.new_empty(shape) if self.has_values else None

    def values(self, Y: Tensor, V: Tensor | None) -> Tensor | None:
        """What the products of a step read: ``V``, ``Y`` itself, or sums over clusters."""
        if self.config.beta == 0:
            return None
        if self.clusters is not None:
            # Shares stay within 16 bits, and so does the column of ones.
            return self.clusters.sums(Y).div(self.share).to(self.q.dtype)
        return Y if V is None else V

    def spread(self, Y: Tensor, V: Tensor | None) -> None:
        """Write ``Y₀ = G`` into ``Y`` and ``V``."""
        self.launch(
            spread_kernel,
            self.tokens,
            Y=Y,
            V=V,
            N=self.tokens,
            **self._prior,
            **self._layout,
        )

    def gathered(self, Y: Tensor, factor: float) -> Tensor:
        """``factor · Y`` without the columns of ones, ``(B, N, K)`` in the dtype of ``G``."""
        tiles = Y.unflatten(-1, (self.label_tiles, self.label_block))
        return (tiles[..., :-1].flatten(-2)[..., : self.labels] * factor).to(self.G.dtype)

    @property
    def _prior(self) -> dict:
        return {"G": self.G, **{f"stride_g{x}": self.G.stride(i) for i, x in enumerate("bnk")}}

    @property
    def _layout(self) -> dict:
        return {"labels": self.labels, "columns": self.columns, "label_tiles": self.label_tiles}

    @property
    def tail(self) -> dict:
        """Arguments of :func:`~nerve_fast.kernels.steps.finish` that no step changes."""
        return {
            "LOCAL": self.local,
            "N": self.tokens,
            "height": self.grid[0],
            "width": self.grid[1],
            "alpha": self.config.alpha,
            "RADIUS": self.config.radius if self.local is not None else 0,
            **self._prior,
            **self._layout,
        }

    @functools.cached_property
    def coefficients(self) -> dict:
        """Arguments of :func:`~nerve_fast.kernels.numerators.coefficients`."""
        factor, shift, gain = affine_map(self.normalization)
        return {
            "SCALE": self.scale,
            "per_temperature": LOG2_E / self.config.temperature,
            "EXPONENTIAL": self.normalization.exponential,
            "FACTOR": factor,
            "SHIFT": shift,
            "GAIN": gain,
        }

    @property
    def making(self) -> dict:
        """Arguments of a kernel that makes numerators from packed heads."""
        return {
            "PQ": self.packed_q,
            "PK": self.packed_k,
            "M": self.keys,
            "CHANNELS": self.channels,
            "PRECISION": precision(self.q),
            "CLAMPED": self.normalization.clamped,
            **self.coefficients,
        }

    def config_of(self, kernel, **shape: int) -> Config:
        """The configuration of a kernel for this walk; see :func:`config_for`."""
        return config_for(_name(kernel), self.q, self.tokens, **shape)

    def launch(self, kernel, rows: int, **arguments) -> None:
        """Start a kernel that takes tiles of ``rows`` and of labels."""
        config = self.config_of(kernel, labels=self.label_block)
        tiles = self.batch * triton.cdiv(rows, config["BM"]) * self.label_tiles
        launch(kernel, tiles, config, BK=self.label_block, **arguments)

    def launch_split(self, kernel, config: Config, tiles: int, rows: int, **arguments) -> None:
        """Start a kernel whose columns are split where its tiles do not fill the device.

        Args:
            kernel: as in :mod:`nerve_fast.kernels.steps`.
            config: its blocks.
            tiles: of ``rows`` rows each, for one member and one tile of labels.
            arguments: all others.
        """
        tiles *= self.batch * self.label_tiles
        shares = self.shares(kernel, tiles, config["BN"], rows * self.label_block)
        launch(kernel, tiles * shares["splits"], config, BK=self.label_block, **shares, **arguments)

    def shares(self, kernel, tiles: int, block_columns: int, size: int) -> dict:
        """Arguments of a kernel whose columns are split where its tiles do not fill the device.

        Args:
            kernel: that leaves a share of each tile in ``PARTIAL`` and counts in ``ARRIVED``.
            tiles: in all.
            block_columns: that a program takes at a time.
            size: numbers of a tile's share.
        """
        splits = self._splits(tiles, block_columns)
        partial = arrived = None
        if splits > 1:
            # Counters start at 0, and whoever sums the shares up leaves them so: a walk needs one
            # set for each kernel.
            if _name(kernel) not in self._shares:
                self._shares[_name(kernel)] = (
                    self.q.new_empty(tiles * splits * size, dtype=torch.float32),
                    self.q.new_zeros(tiles, dtype=torch.int32),
                )
            partial, arrived = self._shares[_name(kernel)]
        return {"splits": splits, "SPLIT": splits > 1, "PARTIAL": partial, "ARRIVED": arrived}

    def _splits(self, tiles: int, block_columns: int) -> int:
        """Spans of columns, of at least 4 blocks each, that make ``tiles`` fill the device."""
        if target_of(self.q.device) == "gfx942":
            # Compiled there, only a program's first wave waits for its stores before the counter
            # says that they are made: the last to arrive could read a share that is not yet there.
            return 1
        largest = max(triton.cdiv(self.keys, block_columns) // 4, 1)
        return max(1, min(multiprocessors(self.q.device) // tiles, largest))


def label_block(labels: int, dtype: torch.dtype) -> int:
    """Columns of a tile of labels: they and the column of ones, as far as registers go."""
    return min(max(triton.next_power_of_2(labels + 1), 16), LABEL_BLOCK[dtype.itemsize])


def _name(kernel) -> str:
    """Return the kernel's name as :data:`~nerve_fast.kernels.configs.CANDIDATES` has it."""
    return kernel.__name__.removesuffix("_kernel")

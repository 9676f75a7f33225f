"""The random walk by three routes, one kernel a step; only the dense route stores ``S``."""

import math

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from nerve_fast.kernels import entropy, steps
from nerve_fast.kernels.affinity import local_affinity, pack
from nerve_fast.kernels.configs import LABEL_BLOCK, config_for
from nerve_fast.kernels.entropy import LOG2_E
from nerve_fast.kernels.launch import launch, multiprocessors, precision
from nerve_fast.kernels.stencil import transition

EMPTY_ROW = 1e-12
"""A row whose absolute sum is not above this moves nowhere."""

MAX_EXPONENT = 50
"""Numerators up to e^50 are far from overflow in float32 and bfloat16."""

STORED_COLUMNS = 128
"""Rows of a stored ``S`` are padded to a multiple of this, so that tiles need no mask."""

FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)


def random_walk(
    q: Tensor,
    k: Tensor,
    prior: Tensor,
    grid: tuple[int, int],
    config,
    head_weights: Tensor | None,
    *,
    route: str,
    stored_rows: int = 0,
    stored_dtype: torch.dtype | None = None,
    most: float | None = None,
) -> Tensor:
    """As :func:`nerve_fast.reference.random_walk`, without a synchronisation with the host.

    Args:
        q, k: ``(…, H, N, D)``, float16, bfloat16 or float32.
        route: ``factorized`` (``shift`` and ``l1`` only), ``streaming`` or ``dense``.
        stored_rows: rows of ``S_global`` that the route ``dense`` keeps; it makes the others again
            each step.
        stored_dtype: of those rows; ``None`` is that of ``q``. In float8 a row is kept relative to
            its largest numerator, and what is under 2⁻¹⁷ of that is lost: the bounds of the other
            dtypes do not hold.
        most: what no sum of head weights exceeds; ``None`` asks the given weights, and waits.

    Returns:
        ``(…, N, K)`` in the dtype of ``prior``.
    """
    heads, tokens, head_dim = q.shape[-3:]
    q, k = (x.reshape(-1, heads, tokens, head_dim) for x in (q, k))
    G = prior.reshape(-1, *prior.shape[-2:])
    if config.alpha == 0 or config.steps == 0:
        return prior.clone(memory_format=torch.contiguous_format)
    if head_weights is not None:
        weights = head_weights.reshape(-1, heads).float().contiguous()
        scale = weights.amax(-1)
        most = weights.sum(-1).max().item() if most is None else most
    else:
        most = 1.0
        if config.sharpness == 0:
            # The plain mean needs no entropies, which take N² operations where the walk may not.
            weights = q.new_full((len(q), heads), 1 / heads, dtype=torch.float32)
            scale = weights[:, 0].contiguous()
        else:
            weights, scale = entropy.entropy_weights(q, k, config.sharpness)
    return _Walk(q, k, G, grid, config, weights, scale, most).run(
        route, stored_rows, stored_dtype or q.dtype
    ).reshape(prior.shape)  # fmt: skip


class _Walk:
    """What all steps of one walk share: packed heads, local weights, buffers, arguments.

    Args:
        q, k: ``(B, H, N, D)``.
        G: ``(B, N, K)``.
        weights, scale: ``(B, H)`` and its largest, ``(B,)``; float32.
        most: what no sum of a member's weights exceeds.
    """

    def __init__(self, q, k, G, grid, config, weights, scale, most):
        self.q, self.G, self.grid, self.config = q, G, grid, config
        self.scale, self.most = scale, most
        self._shares: dict[str, tuple[Tensor, Tensor]] = {}
        self.batch, self.tokens, self.labels = G.shape
        block = label_block(self.labels, q.dtype)
        self.label_tiles = triton.cdiv(self.labels, block - 1)
        self.columns = self.label_tiles * block
        self.local = None
        if config.beta < 1:
            planes = local_affinity(q, k, grid, weights, config.radius, config.self_affinity)
            self.local = transition(
                planes.mT,
                grid,
                config.radius,
                config.normalization,
                config.temperature,
                config.self_affinity,
            )
        self.packed_q = self.packed_k = self.counts = None
        if config.beta > 0:
            self.packed_q, packed_k = pack(q, k, weights)
            counts = self.pooled(packed_k.new_ones(1, self.tokens, 1, dtype=torch.float32))
            self.packed_k = packed_k
            if config.global_stride > 1:
                means = self.pooled(packed_k.float()) / counts
                self.packed_k = means.to(packed_k.dtype)
            self.counts = counts.flatten()

    @property
    def cells(self) -> int:
        return self.packed_k.shape[1]

    @property
    def _cell(self) -> int:
        """Tokens of a whole cell of the coarser grid."""
        return self.config.global_stride**2

    def pooled(self, x: Tensor) -> Tensor:
        """``(B, N, C)`` summed over the cells of the coarser grid, ``(B, cells, C)``."""
        s = self.config.global_stride
        if s == 1:
            return x
        h, w = self.grid
        tall, wide = triton.cdiv(h, s), triton.cdiv(w, s)
        maps = pad(x.unflatten(1, self.grid), (0, 0, 0, wide * s - w, 0, tall * s - h))
        return maps.unflatten(2, (wide, s)).unflatten(1, (tall, s)).sum((2, 4)).flatten(1, 2)

    def run(self, route: str, stored_rows: int, stored_dtype: torch.dtype) -> Tensor:
        config = self.config
        local_only = config.beta == 0
        stored_rows = min(stored_rows, self.tokens) if route == "dense" else 0
        totals = offsets = S = None
        floor = EMPTY_ROW
        if not local_only:
            totals, offsets = self._statistics(stored_rows > 0 and stored_dtype in FP8)
            if stored_rows:
                S = self._numerators(stored_rows, stored_dtype, offsets)
            if route == "factorized" and totals is None:
                # The sum is N less nearly N in a row without mass: what rounding leaves is no mass.
                units = 16 if self.q.dtype == torch.float32 else 1
                floor = units * torch.finfo(self.q.dtype).eps * self.tokens / 2
            floor /= self._cell
        # float32 inputs need no second copy: Y itself is what the products read.
        apart = not local_only and self.q.dtype != torch.float32 and config.global_stride == 1
        Y, next_Y = (self._buffer(torch.float32) for _ in range(2))
        V, next_V = (self._buffer(self.q.dtype) if apart else None for _ in range(2))
        self._spread(Y, V)
        result = self.G.new_empty(self.G.shape)
        total = sum(config.alpha**t for t in range(config.steps + 1))
        for step in range(config.steps):
            last = step == config.steps - 1
            out = {
                "OUT": result if last else next_Y,
                "OUT_V": None if last else next_V,
                "LAST": last,
                "out_scale": 1 / total if last else 1.0,
            }
            common = {
                "Y": Y,
                "G": self.G,
                "LOCAL": self.local,
                "N": self.tokens,
                "height": self.grid[0],
                "width": self.grid[1],
                "labels": self.labels,
                "columns": self.columns,
                "label_tiles": self.label_tiles,
                **{f"stride_g{name}": self.G.stride(i) for i, name in enumerate("bnk")},
                "alpha": config.alpha,
                "RADIUS": config.radius if self.local is not None else 0,
            }
            if local_only:
                del out["OUT_V"]
                self._launch("local_step", self.tokens, **common, **out)
            else:
                values = V if apart else Y
                if config.global_stride > 1:
                    # Means, which stay within 16 bits, and the column of ones with them.
                    values = self.pooled(Y).div(self._cell).to(self.q.dtype)
                common |= {
                    "TOTALS": totals,
                    "SCALE": self.scale,
                    "floor": floor,
                    "beta": config.beta,
                    "PRECISION": precision(self.q),
                    **self._making,
                    **out,
                }
                if route == "factorized":
                    self._factorized_step(values, common)
                else:
                    if S is not None:
                        self._dense_step(S, values, common)
                    if stored_rows < self.tokens:
                        self._streaming_step(stored_rows, offsets, values, common)
            Y, next_Y, V, next_V = next_Y, Y, next_V, V
        return result

    @property
    def _making(self) -> dict:
        """Arguments that say how numerators are made."""
        return {
            "NORMALIZATION": self.config.normalization,
            "per_temperature": LOG2_E / self.config.temperature,
        }

    def _buffer(self, dtype: torch.dtype) -> Tensor:
        return self.q.new_empty(self.batch, self.tokens, self.columns, dtype=dtype)

    def _launch(self, name: str, rows: int, **arguments) -> None:
        """Start a kernel that takes tiles of rows and labels."""
        block = self.columns // self.label_tiles
        config = config_for(name, self.q, self.tokens, labels=block)
        launch(
            getattr(steps, f"{name}_kernel"),
            self.batch * triton.cdiv(rows, config["BM"]) * self.label_tiles,
            config,
            **arguments,
            BK=block,
        )

    @property
    def _channels(self) -> int:
        return 0 if self.packed_q is None else self.packed_q.shape[-1]

    def _spread(self, Y: Tensor, V: Tensor | None) -> None:
        self._launch(
            "spread",
            self.tokens,
            G=self.G,
            Y=Y,
            V=V,
            N=self.tokens,
            labels=self.labels,
            columns=self.columns,
            label_tiles=self.label_tiles,
            **{f"stride_g{name}": self.G.stride(i) for i, name in enumerate("bnk")},
        )

    def _statistics(self, fp8: bool) -> tuple[Tensor | None, Tensor | None]:
        """Absolute row sums where they are not the sums, offsets where exponents need them."""
        config = self.config
        # Cosines of rounded vectors exceed 1 by less than the rounding.
        most = self.most * (1 + torch.finfo(self.q.dtype).eps)
        signed = config.normalization == "l1" or (
            config.normalization == "shift" and self.most > 1 + 1e-5
        )
        if signed:
            return self._row_statistic() / self._cell, None
        if config.normalization == "softmax" and (
            fp8 or self.q.dtype == torch.float16 or (most - 1) / config.temperature > MAX_EXPONENT
        ):
            # From 2¹⁴ down float16 keeps 2⁻³⁸ of a row's largest; float8 has a scale of its own.
            lift = 14.0 if self.q.dtype == torch.float16 and not fp8 else 0.0
            return None, self._row_statistic(lift)
        return None, None

    def _row_statistic(self, lift: float = 0.0) -> Tensor:
        out = self.q.new_empty(self.batch, self.tokens, dtype=torch.float32)
        config = config_for("row_statistic", self.q, self.tokens, kept=self._channels)
        launch(
            steps.row_statistic_kernel,
            self.batch * triton.cdiv(self.tokens, config["BM"]),
            config,
            COUNTS=self.counts,
            OUT=out,
            lift=lift,
            **self._packed,
        )
        return out

    def _numerators(self, stored_rows: int, dtype: torch.dtype, offsets: Tensor | None) -> Tensor:
        """The first rows of numerators, ``(B, stored_rows, cells…)``."""
        fp8 = dtype in FP8
        if fp8 and self.config.normalization == "l1":
            raise ValueError("stored_dtype is float8, whose totals 'l1' has not; store 16 bits")
        width = triton.cdiv(self.cells, STORED_COLUMNS) * STORED_COLUMNS
        S = self.q.new_empty(self.batch, stored_rows, width, dtype=dtype)
        config = config_for("numerators", self.q, self.tokens)
        tiles = triton.cdiv(stored_rows, config["BM"]) * triton.cdiv(width, config["BN"])
        launch(
            steps.numerators_kernel,
            self.batch * tiles,
            config,
            OFFSETS=offsets,
            S=S,
            stored=stored_rows,
            width_s=width,
            headroom=self._headroom if fp8 else 1.0,
            **self._packed,
        )
        return S

    @property
    def _headroom(self) -> float:
        """A power of two that takes the largest numerator near the end of float8's range, 448."""
        if self.config.normalization == "softmax":
            return 256.0
        # Relative to the largest weight affinities reach the number of heads.
        return 2.0 ** -math.ceil(math.log2(self.q.shape[1])) * 256

    @property
    def _packed(self) -> dict:
        """Arguments of kernels that make numerators outside a step."""
        return {
            "PQ": self.packed_q,
            "PK": self.packed_k,
            "SCALE": self.scale,
            "N": self.tokens,
            "M": self.cells,
            "CHANNELS": self._channels,
            "PRECISION": precision(self.q),
            **self._making,
        }

    def _dense_step(self, S: Tensor, values: Tensor, common: dict) -> None:
        stored, width = S.shape[1:]
        self._launch_split(
            "dense_step", stored, S=S, V=values, stored=stored, width_s=width, **common
        )

    def _streaming_step(
        self, first: int, offsets: Tensor | None, values: Tensor, common: dict
    ) -> None:
        self._launch_split(
            "streaming_step",
            self.tokens - first,
            PQ=self.packed_q,
            PK=self.packed_k,
            V=values,
            OFFSETS=offsets,
            first=first,
            CHANNELS=self._channels,
            **common,
        )

    def _launch_split(self, name: str, rows: int, **arguments) -> None:
        """Start a step whose columns are split where tiles of rows do not fill the device."""
        block = self.columns // self.label_tiles
        kept = {"kept": self._channels} if "PQ" in arguments else {}
        config = config_for(name, self.q, self.tokens, labels=block, **kept)
        tiles = self.batch * triton.cdiv(rows, config["BM"]) * self.label_tiles
        split = self._split(name, tiles, config["BN"], config["BM"] * block)
        launch(
            getattr(steps, f"{name}_kernel"),
            tiles * split["splits"],
            config,
            M=self.cells,
            BK=block,
            **split,
            **arguments,
        )

    def _factorized_step(self, values: Tensor, common: dict) -> None:
        block = self.columns // self.label_tiles
        config = config_for("moments", self.q, self.tokens, labels=block)
        rows = config["BC"]
        tiles = self.batch * (self._channels // rows + 1) * self.label_tiles
        split = self._split("moments", tiles, config["BN"], rows * block)
        moments = self.q.new_empty(
            self.batch, self._channels + rows, self.columns, dtype=torch.float32
        )
        launch(
            steps.moments_kernel,
            tiles * split["splits"],
            config,
            PK=self.packed_k,
            V=values,
            MOMENTS=moments,
            M=self.cells,
            columns=self.columns,
            label_tiles=self.label_tiles,
            CHANNELS=self._channels,
            PRECISION=common["PRECISION"],
            BK=block,
            **split,
        )
        self._launch(
            "factorized_step",
            self.tokens,
            PQ=self.packed_q,
            MOMENTS=moments,
            CHANNELS=self._channels,
            **common,
        )

    def _split(self, name: str, tiles: int, block_columns: int, size: int) -> dict:
        """Arguments of a kernel whose ``tiles`` are cut, with room for their shares.

        The counters of shares start at 0, and whoever sums the shares up leaves them so: a walk
        needs them once for each kernel.
        """
        splits = self._splits(tiles, block_columns)
        partial = arrived = None
        if splits > 1:
            if name not in self._shares:
                self._shares[name] = (
                    self.q.new_empty(tiles * splits * size, dtype=torch.float32),
                    self.q.new_zeros(tiles, dtype=torch.int32),
                )
            partial, arrived = self._shares[name]
        return {"splits": splits, "SPLIT": splits > 1, "PARTIAL": partial, "ARRIVED": arrived}

    def _splits(self, tiles: int, block_columns: int) -> int:
        """Spans of columns, of at least 4 blocks each, that make ``tiles`` fill the device."""
        most = max(triton.cdiv(self.cells, block_columns) // 4, 1)
        return max(1, min(multiprocessors(self.q.device) // tiles, most))


def label_block(labels: int, dtype: torch.dtype) -> int:
    """Columns of a tile of labels: they and the column of ones, as far as registers go."""
    return min(max(triton.next_power_of_2(labels + 1), 16), LABEL_BLOCK[dtype.itemsize])

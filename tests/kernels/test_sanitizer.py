"""Every access of every kernel, as the interpreter makes it: within its tensor, and nobody else's.

On a GPU, programs run in any order and at the same time. So no location is stored twice, none is
read that another program of the launch writes (the shares of a split tile excepted: a counter
orders them), and the order of programs changes no bit.
"""

import contextlib

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

import nerve_fast as nf
from nerve_fast.kernels import affinity, configs, entropy, operands, stencil, walk
from nerve_fast.normalization import NORMALIZATIONS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="watches the interpreter")

SPLIT = ("PARTIAL", "ARRIVED")
"""Arguments through which the programs of one tile pass on their shares."""


class Sanitizer:
    """Watches launches.

    Args:
        order: in which programs run, ``forward``, ``backward`` or ``mixed``.

    Attributes:
        faults: what was wrong, a text for each kind and launch.
        kernels: names of those that were started.
    """

    def __init__(self, order: str = "forward"):
        self.order = order
        self.faults: list[str] = []
        self.kernels: set[str] = set()

    @contextlib.contextmanager
    def watching(self):
        with pytest.MonkeyPatch.context() as patch:
            for owner, name, mine in (
                (GridExecutor, "__call__", self._launch),
                (InterpreterBuilder, "set_grid_idx", self._start),
                (InterpreterBuilder, "create_masked_load", self._load),
                (InterpreterBuilder, "create_masked_store", self._store),
                (InterpreterBuilder, "create_atomic_rmw", self._atomic),
            ):
                patch.setattr(owner, name, _in_place_of(getattr(owner, name), mine))
            yield self

    def _launch(self, right, executor, *args, **arguments):
        self._tensors = {k: x for k, x in arguments.items() if isinstance(x, torch.Tensor)}
        self._sequence, self._program = None, 0
        self._loads, self._stores, self._counted = [], [], []
        right(executor, *args, **arguments)
        self._judge(executor.fn.__name__.removesuffix("_kernel"))

    def _start(self, right, builder, x, y, z):
        programs = builder.grid_dim[0]
        if self._sequence is None:
            self._sequence = {
                "forward": np.arange(programs),
                "backward": np.arange(programs)[::-1],
                "mixed": np.random.default_rng(0).permutation(programs),
            }[self.order]
        self._program = int(self._sequence[x])
        right(builder, self._program, y, z)

    def _load(self, right, builder, pointers, mask, *others):
        self._note(self._loads, pointers, mask)
        return right(builder, pointers, mask, *others)

    def _store(self, right, builder, pointers, value, mask, *others):
        self._note(self._stores, pointers, mask)
        return right(builder, pointers, value, mask, *others)

    def _atomic(self, right, builder, operation, pointers, value, mask, *others):
        self._note(self._counted, pointers, mask)
        return right(builder, operation, pointers, value, mask, *others)

    def _note(self, kept, pointers, mask):
        there = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
        size = pointers.get_element_ty().primitive_bitwidth // 8
        kept.append((there, np.full(len(there), self._program), np.full(len(there), size)))

    def _judge(self, kernel):
        self.kernels.add(kernel)
        loads, stores, counted = (
            [np.concatenate(parts) for parts in zip(*kept, strict=True)]
            if kept
            else [np.zeros(0, np.int64)] * 3
            for kept in (self._loads, self._stores, self._counted)
        )
        for what, (there, _, size) in (("loads", loads), ("stores", stores), ("counts", counted)):
            if not self._within(there, size, self._tensors).all():
                self.faults.append(f"{kernel} {what} outside of its tensors")
        shares = {name: x for name, x in self._tensors.items() if name in SPLIT}
        if not self._within(counted[0], counted[2], shares).all():
            self.faults.append(f"{kernel} counts where no counter is")
        there, by, _ = stores
        order = np.argsort(there, kind="stable")
        there, by = there[order], by[order]
        if (there[1:] == there[:-1]).any():
            self.faults.append(f"{kernel} stores a location twice")
        if len(there):
            read, reader, size = loads
            own = ~self._within(read, size, shares)
            at = np.searchsorted(there, read).clip(max=len(there) - 1)
            if (own & (there[at] == read) & (by[at] != reader)).any():
                self.faults.append(f"{kernel} reads what another program writes")

    @staticmethod
    def _within(there, size, tensors):
        inside = np.zeros(len(there), bool)
        for x in tensors.values():
            last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
            end = x.data_ptr() + (last + 1) * x.element_size()
            inside |= (there >= x.data_ptr()) & (there + size <= end)
        return inside


def _in_place_of(right, mine):
    return lambda owner, *args, **kwargs: mine(right, owner, *args, **kwargs)


def watched(run):
    """Faults of ``run`` in all orders, and the kernels it started."""
    faults, results = [], []
    for order in ("forward", "backward", "mixed"):
        with Sanitizer(order).watching() as sanitizer:
            results.append(run())
        faults += sanitizer.faults
        if not torch.equal(results[0], results[-1]):
            faults.append("the order of programs changes the result")
    return set(faults), sanitizer.kernels


WALK = {"local_affinity", "transition", "pack", "spread"}
CASES = {
    "cosine affinity": {"pack", "cosine_affinity"},
    "local affinity": {"local_affinity"},
    "head entropy": {"head_entropy"},
    "local products": {"transition", "local_matmul"},
    "softmax streaming": WALK | {"head_entropy", "weigh", "row_statistic", "streaming_step"},
    "relu half dense": WALK | {"numerators", "dense_step", "streaming_step"},
    "l1 dense": WALK | {"numerators", "dense_step", "row_statistic"},
    "shift factorized": WALK | {"moments", "factorized_step"},
    "l1 factorized": WALK | {"row_statistic", "moments", "factorized_step"},
    "local alone": {"local_affinity", "transition", "spread", "local_step"},
}
"""What is watched, and the kernels that it starts."""


def case(name, q, k, G, grid):
    """The operation of a case, as a function without arguments."""
    w = None if name == "softmax streaming" else torch.full((len(q),), 1 / len(q))
    if name == "cosine affinity":
        return lambda: affinity.cosine_affinity(q, k, w)
    if name == "local affinity":
        return lambda: affinity.local_affinity(q, k, grid, None, 2, 0.5)
    if name == "head entropy":
        return lambda: entropy.entropy_sums(q, k)
    if name == "local products":
        values = torch.rand(G.shape[0], 9)
        rule = NORMALIZATIONS["softmax"]
        return lambda: stencil.local_matmul(
            stencil.local_transition(values, grid, 1, rule, 0.05), grid, 1, G
        )
    normalization, *way = name.split()
    config = nf.NerveConfig(steps=2)
    way = {"route": way[-1], "stored_rows": 64 if "half" in way else 10**6}
    if name == "local alone":
        config, way = config.replace(beta=0.0), {"route": "streaming"}
    else:
        config = config.replace(normalization=normalization)
    return lambda: walk.random_walk(q, k, G, grid, config, w, **way).probabilities


@pytest.mark.parametrize("name", CASES)
def test_every_access_is_right(make_qk, make_prior, monkeypatch, name):
    monkeypatch.setattr(operands.Operands, "_splits", lambda self, tiles, block_columns: 2)
    # More labels than one tile holds in float32.
    dtype, labels = (torch.float32, 65) if "dense" in name else (torch.float16, 3)
    q, k = make_qk(2, 77, 24, dtype=dtype)
    # Rows and heads lie among others, whose memory is nobody's business.
    q, k = (torch.stack([x, x], -2)[..., 0, :] for x in (q, k))
    G = make_prior(2, 77, labels, dtype=torch.float32)[1]
    faults, kernels = watched(case(name, q, k, G, (7, 11)))
    assert not faults
    assert kernels == CASES[name]


def test_every_kernel_is_watched():
    assert set.union(*CASES.values()) == set(configs.CANDIDATES)


@triton.jit
def right_kernel(X, OUT, N, BM: tl.constexpr):
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    tl.store(OUT + o_m, tl.load(X + o_m, mask=o_m < N), mask=o_m < N)


@triton.jit
def load_too_far_kernel(X, OUT, N, BM: tl.constexpr):
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    tl.store(OUT + o_m, tl.load(X + tl.minimum(o_m, N)), mask=o_m < N)


@triton.jit
def store_too_far_kernel(X, OUT, N, BM: tl.constexpr):
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    b_x = tl.load(X + o_m, mask=o_m < N)
    # Into memory that is there, before what is given as `OUT`.
    tl.store(OUT + o_m - 1, b_x, mask=o_m < N)


@triton.jit
def store_twice_kernel(X, OUT, N, BM: tl.constexpr):
    o_m = tl.program_id(0) * (BM - 1) + tl.arange(0, BM)
    tl.store(OUT + o_m, tl.load(X + o_m, mask=o_m < N), mask=o_m < N)


@triton.jit
def read_another_kernel(X, OUT, N, BM: tl.constexpr):
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    b_x = tl.load(OUT + o_m - 1, mask=(o_m > 0) & (o_m < N), other=0.0)
    tl.store(OUT + o_m, b_x + 1, mask=o_m < N)


@triton.jit
def arrival_order_kernel(X, OUT, PARTIAL, ARRIVED, N, BM: tl.constexpr):
    i_m = tl.program_id(0)
    i_turn = tl.atomic_add(ARRIVED, 1)
    tl.store(PARTIAL + i_turn, tl.load(X + i_m * BM))
    if i_turn == tl.num_programs(0) - 1:
        b_sum = 0.0
        for i in range(i_turn + 1):
            b_sum += tl.load(PARTIAL + i)
        tl.store(OUT, b_sum)
        tl.store(ARRIVED, 0)


@triton.jit
def count_elsewhere_kernel(X, OUT, N, BM: tl.constexpr):
    tl.atomic_add(OUT, 1.0)


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (right_kernel, set()),
        (load_too_far_kernel, {"load_too_far loads outside of its tensors"}),
        (store_too_far_kernel, {"store_too_far stores outside of its tensors"}),
        (store_twice_kernel, {"store_twice stores a location twice"}),
        (read_another_kernel, {"read_another reads what another program writes"}),
        (arrival_order_kernel, {"the order of programs changes the result"}),
        (count_elsewhere_kernel, {"count_elsewhere counts where no counter is"}),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_planted_faults_are_found(kernel, said):
    x = torch.tensor([1e8, 1.0, -1e8, 1.0, 3.0] * 16)[:77]

    def run():
        memory = torch.zeros(200)
        more = {}
        if kernel is arrival_order_kernel:
            more = {"PARTIAL": torch.zeros(8), "ARRIVED": torch.zeros(1, dtype=torch.int32)}
        kernel[(5,)](X=x, OUT=memory[50:127], N=77, BM=16 if not more else 1, **more)
        return memory

    faults, _ = watched(run)
    # One that reads what others write depends on their order, too.
    if kernel is not arrival_order_kernel:
        faults -= {"the order of programs changes the result"}
    assert faults == said

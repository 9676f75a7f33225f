"""The operations under ``torch.compile``, with every backend that runs here."""

import importlib.util

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import nerve_fast as nf

BACKENDS = ["auto"] + ["triton"] * (importlib.util.find_spec("triton") is not None)
GRID = (5, 7)


@pytest.fixture
def inputs(make_qk, make_prior):
    """``q, k, prior, head_weights``."""
    q, k = make_qk(2, 35, 16, dtype=torch.float32)
    return q, k, make_prior(35, 3, dtype=torch.float32), make_prior(2, dtype=torch.float32)


@pytest.fixture(autouse=True)
def compiled_anew():
    """Programs of other tests count against the limit of recompilations."""
    torch.compiler.reset()


def compiled(function, **options):
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


def operator_calls(inputs, backend, requires_grad):
    """Each operator with arguments."""
    q, k, G, w = inputs
    config = (0.9, 0.5, 1, 1, 1.0, 1.0, "softmax", 0.05, 1, 1e-4)
    values = nf.local_affinity(q, k, GRID, head_weights=w).values
    last = (backend, requires_grad)
    ops = torch.ops.nerve_fast
    yield ops.head_entropy, (q, k, None, *last)
    yield ops.cosine_affinity, (q, k, w, *last)
    yield ops.cosine_affinity, (q, k, None, *last)
    yield ops.local_affinity, (q, k, w, *GRID, 1, 1.0, *last)
    yield ops.local_transition, (values, *GRID, 1, "relu", 0.05, *last)
    yield ops.local_matmul, (values, G, *GRID, 1, *last)
    yield ops.local_series, (values, G, *GRID, 1, 0.9, 3, *last)
    walk = (q, k, G, w, *GRID, *config, backend, "auto", None, [0, 3], requires_grad)
    yield ops.random_walk, walk


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(inputs, backend):
    for op, arguments in operator_calls(inputs, backend, False):
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(op.default, arguments, test_utils=tests)


def test_opcheck_with_gradients(inputs):
    for op, arguments in operator_calls(inputs, "auto", True):
        arguments = [
            x.clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in arguments
        ]
        torch.library.opcheck(op.default, arguments)


def stage(q, k, G, w, grid, backend="auto"):
    """All operations, one after the other."""
    local = nf.local_affinity(q, k, grid, head_weights=w, backend=backend)
    P, steps = nf.random_walk(
        q, k, G, grid, nf.NerveConfig(steps=2), backend=backend, return_steps=(1, 4)
    )
    return (
        2 * nf.head_entropy(q, k, backend=backend),
        nf.cosine_affinity(q, k, w, backend=backend) + 1,
        local.values - 1,
        local.normalized("shift").matmul(G),
        local.normalized("relu").power_series(G, steps=2),
        P,
        steps[1],
        steps[4],
        nf.random_walk(q, k, G, grid, nf.NerveConfig(alpha=0.0), head_weights=w),
        nf.random_walk(q, k, G, grid, nf.NerveConfig(steps=None, alpha=0.5), backend=backend),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_whole_stage_compiles_without_a_break(inputs, backend):
    run = compiled(stage)
    expected = stage(*inputs, GRID, backend)
    for mine, other in zip(run(*inputs, GRID, backend), expected, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("wanted", [(), (0,), (0, 1, 2, 3)])
def test_dynamic_shapes_are_not_compiled_one_by_one(make_qk, make_prior, wanted):
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(stage, fullgraph=True, dynamic=True, backend=counter)
    for grid in ((5, 7), (4, 9), (6, 8)):
        q, k = make_qk(2, grid[0] * grid[1], 16, dtype=torch.float32)
        G = make_prior(grid[0] * grid[1], 3, dtype=torch.float32)
        w = make_prior(2, dtype=torch.float32)
        found = []
        for function in (run, stage):
            leaves = [x.clone().requires_grad_(i in wanted) for i, x in enumerate((q, k, G, w))]
            outs = function(*leaves, grid)
            gradients = []
            if wanted:
                total = sum(out.square().sum() for out in outs)
                gradients = torch.autograd.grad(total, [leaves[i] for i in wanted])
            found.append([*outs, *gradients])
        torch.testing.assert_close(*found)
    assert counter.frame_count <= 2


def test_a_compiled_walk_that_only_uses_one_of_its_results(inputs):
    q, k, G, w = inputs

    def walk(q):
        return nf.random_walk(q, k, G, GRID, head_weights=w, return_steps=(1,))[1][1].sum()

    found = []
    for function in (walk, compiled(walk)):
        leaf = q.clone().requires_grad_()
        found.append(torch.autograd.grad(function(leaf), leaf))
    torch.testing.assert_close(*found)


def test_wrong_inputs_are_still_refused(inputs):
    q, k, G, w = inputs
    run = compiled(lambda q, k, G, w: nf.random_walk(q, k, G, GRID, head_weights=w))
    with pytest.raises(ValueError, match="expected finite numbers, 0 or more"):
        run(q, k, G, -w)


def test_kernels_have_no_gradients_there_either(inputs):
    q, k, _, _ = inputs
    run = compiled(lambda q: nf.head_entropy(q, k, backend="triton"))
    with pytest.raises(nf.InputError, match="backend 'triton'"):
        run(q.requires_grad_())


def test_a_plan_is_refused_with_what_to_do(inputs):
    q, k, G, _ = inputs
    plan = nf.plan(q.shape, 3)
    run = compiled(lambda q: nf.random_walk(q, k, G, GRID, plan=plan))
    with pytest.raises(Exception, match="pass plan.backend as backend and plan.route as route"):
        run(q)


def test_the_chosen_backend_reaches_the_way_back(inputs, monkeypatch):
    from nerve_fast import reference

    q, k, _, _ = inputs
    calls = []
    right = reference.head_entropy
    monkeypatch.setattr(
        reference, "head_entropy", lambda *given: calls.append(given) or right(*given)
    )
    run = compiled(lambda q: nf.head_entropy(q, k).sum())
    with nf.use_backend("reference"):
        run(q.requires_grad_()).backward()
    assert len(calls) == 2

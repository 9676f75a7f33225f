"""The operations under ``torch.compile``, with every backend that runs here."""

import importlib.util

import pytest
import torch

import nerve_fast as nf

BACKENDS = ["auto"] + ["triton"] * (importlib.util.find_spec("triton") is not None)
GRID = (5, 7)


@pytest.fixture
def inputs(make_qk, make_prior):
    """``q, k, prior, head_weights``."""
    q, k = make_qk(2, 35, 16, dtype=torch.float32)
    return q, k, make_prior(35, 3, dtype=torch.float32), make_prior(2, dtype=torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(inputs, backend):
    q, k, G, w = inputs
    config = (0.9, 0.5, 1, 1, 1.0, 1.0, "softmax", 0.05, 1)
    ops = torch.ops.nerve_fast
    for op, arguments in (
        (ops.head_entropy, (q, k, None, backend)),
        (ops.cosine_affinity, (q, k, w, backend)),
        (ops.cosine_affinity, (q, k, None, backend)),
        (ops.local_affinity, (q, k, *GRID, w, 1, 1.0, backend)),
        (ops.random_walk, (q, k, G, *GRID, w, *config, backend, "auto", None)),
    ):
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(op.default, arguments, test_utils=tests)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_whole_stage_compiles_without_a_break(inputs, backend):
    def stage(q, k, G, w):
        local = nf.local_affinity(q, k, GRID, head_weights=w, backend=backend)
        return (
            2 * nf.head_entropy(q, k, backend=backend),
            nf.cosine_affinity(q, k, w, backend=backend) + 1,
            local.values - 1,
            nf.random_walk(q, k, G, GRID, nf.NerveConfig(steps=2), backend=backend).argmax(-1),
            nf.random_walk(q, k, G, GRID, nf.NerveConfig(alpha=0.0), head_weights=w),
        )

    compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
    for mine, expected in zip(compiled(*inputs), stage(*inputs), strict=True):
        torch.testing.assert_close(mine, expected)


def test_other_shapes_are_computed_anew(inputs, make_qk, make_prior):
    compiled = torch.compile(
        lambda q, k, G, grid: nf.random_walk(q, k, G, grid), fullgraph=True, backend="aot_eager"
    )
    for grid in ((5, 7), (4, 9), (6, 6)):
        q, k = make_qk(2, grid[0] * grid[1], 16, dtype=torch.float32)
        G = make_prior(grid[0] * grid[1], 3, dtype=torch.float32)
        torch.testing.assert_close(compiled(q, k, G, grid), nf.random_walk(q, k, G, grid))


def test_wrong_inputs_are_still_refused(inputs):
    q, k, G, w = inputs
    compiled = torch.compile(
        lambda q, k, G, w: nf.random_walk(q, k, G, GRID, head_weights=w),
        fullgraph=True,
        backend="aot_eager",
    )
    with pytest.raises(ValueError, match="expected finite numbers, 0 or more"):
        compiled(q, k, G, -w)


def test_gradients_go_around_the_operator(inputs):
    q, k, G, _ = inputs

    def stage(q, k, G):
        return nf.random_walk(q, k, G, GRID).sum()

    q = q.requires_grad_()
    (expected,) = torch.autograd.grad(stage(q, k, G), q)
    compiled = torch.compile(stage, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(q, k, G), q)
    torch.testing.assert_close(gradient, expected)

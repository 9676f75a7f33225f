import pytest
import torch

import nerve_fast as nf
from nerve_fast import blocked, reference
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.numerics import ERROR_BOUNDS, relative_error, steps_to_limit
from nerve_fast.ops.walk import walked
from nerve_fast.reference.walk import limit, transition

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_walk_is_as_exact_as_its_inputs(make_qk, make_prior, dtype, normalization):
    q, k = make_qk(5, 77, 40, dtype=dtype)
    G = make_prior(77, 7, dtype=dtype)
    config = nf.NerveConfig(normalization=normalization)
    P = nf.random_walk(q, k, G, (7, 11), config)
    assert P.dtype == dtype
    expected = nf.random_walk(q.double(), k.double(), G.double(), (7, 11), config)
    assert relative_error(P, expected) <= ERROR_BOUNDS[dtype]


def test_a_float64_prior_is_walked_in_float64(make_qk, make_prior):
    q, k = make_qk(2, 12, 4, dtype=torch.float32)
    G = make_prior(12, 3)
    expected = nf.random_walk(q.double(), k.double(), G, (3, 4), backend="reference")
    for backend in ("reference", "blocked"):
        P = nf.random_walk(q, k, G, (3, 4), backend=backend)
        torch.testing.assert_close(P, expected, rtol=1e-12, atol=1e-12)


def test_random_walk_of_a_batch_is_that_of_its_members(make_qk, make_prior):
    q, k = make_qk(2, 3, 2, 12, 4)
    G = make_prior(2, 3, 12, 5)
    P = nf.random_walk(q, k, G, (3, 4))
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(P[i, j], nf.random_walk(q[i, j], k[i, j], G[i, j], (3, 4)))


def test_random_walk_takes_views_that_are_not_contiguous(make_qk, make_prior):
    q, k = make_qk(12, 2, 4)
    G = make_prior(5, 12).T
    q, k = q.transpose(0, 1), k.transpose(0, 1)
    expected = nf.random_walk(q.contiguous(), k.contiguous(), G.contiguous(), (3, 4))
    torch.testing.assert_close(nf.random_walk(q, k, G, (3, 4)), expected)


def test_a_backend_that_cannot_says_why(make_qk, make_prior):
    q, k = make_qk(1, 6, 4)
    calls = [
        lambda: nf.random_walk(q, k, make_prior(6, 2), (2, 3), backend="triton"),
        lambda: nf.head_entropy(q, k, backend="triton"),
        lambda: nf.cosine_affinity(q, k, backend="triton"),
        lambda: nf.local_affinity(q, k, (2, 3), backend="triton"),
    ]
    for call in calls:
        with pytest.raises(
            nf.InputError, match="'triton' takes float16, bfloat16, .*'blocked' and"
        ):
            call()


def test_unknown_and_impossible_choices_are_refused(make_qk, make_prior):
    q, k = make_qk(1, 6, 4)
    G = make_prior(6, 2)
    for choice, message in (
        ({"backend": "cuda"}, "backend is 'cuda'; expected one of auto, reference"),
        ({"route": "fast"}, "route is 'fast'; expected one of auto, dense"),
        ({"route": "factorized"}, "'factorized' is not exact .*; it is with 'l1' and 'shift'"),
        ({"backend": "reference", "route": "streaming"}, "no route 'streaming'.*'blocked' has it"),
        ({"max_memory": "1KB"}, "max_memory is 1 KB; this walk needs at least .* MB"),
    ):
        with pytest.raises(nf.InputError, match=message):
            nf.random_walk(q, k, G, (2, 3), **choice)


def test_the_reference_is_one_argument_away(make_qk, make_prior):
    q, k = make_qk(1, 6, 4)
    G = make_prior(6, 2)
    chosen = nf.random_walk(q, k, G, (2, 3), backend="reference", route="dense")
    torch.testing.assert_close(nf.random_walk(q, k, G, (2, 3)), chosen)


def ways(normalization):
    """Backends and routes that are exact for a normalization."""
    yield {"backend": "reference"}
    for route in ("dense", "streaming", "factorized"):
        if route != "factorized" or NORMALIZATIONS[normalization].linear:
            yield {"backend": "blocked", "route": route}


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_one_walk_gives_the_walks_of_other_lengths(make_qk, make_prior, normalization, alpha):
    q, k = make_qk(2, 3, 35, 8, dtype=torch.float32)
    G = make_prior(2, 35, 4, dtype=torch.float32)
    config = nf.NerveConfig(normalization=normalization, alpha=alpha, steps=4)
    for way in ways(normalization):
        P, at_steps = nf.random_walk(q, k, G, (5, 7), config, return_steps=(7, 0, 4, 1), **way)
        assert list(at_steps) == [7, 0, 4, 1]
        assert torch.equal(P, at_steps[4])
        for steps, found in at_steps.items():
            alone = nf.random_walk(q, k, G, (5, 7), config.replace(steps=steps), **way)
            assert torch.equal(found, alone), (way, steps)
        assert torch.equal(nf.random_walk(q, k, G, (5, 7), config, **way), P)


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        (3, TypeError, "return_steps is 3; expected a sequence of whole numbers"),
        ((1, 2.0), TypeError, "return_steps holds 2.0; expected whole numbers"),
        ((True,), TypeError, "return_steps holds True"),
        ((1, -1), ValueError, "return_steps holds -1; expected whole numbers, 0 or more"),
    ],
)
def test_steps_that_are_none_are_refused(make_qk, make_prior, steps, error, message):
    with pytest.raises(error, match=message):
        nf.random_walk(*make_qk(1, 6, 4), make_prior(6, 2), (2, 3), return_steps=steps)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(("alpha", "tolerance"), [(0.9, 1e-4), (0.5, 1e-2), (0.97, 1e-3)])
def test_the_limit_is_within_its_tolerance(make_qk, make_prior, normalization, alpha, tolerance):
    q, k = make_qk(2, 3, 35, 8, dtype=torch.float32)
    G, w = make_prior(2, 35, 4, dtype=torch.float32), make_prior(2, 3, dtype=torch.float32)
    config = nf.NerveConfig(
        normalization=normalization, alpha=alpha, tolerance=tolerance, steps=None
    )
    S = transition(reference.cosine_affinity(q.double(), k.double(), w), (5, 7), config)
    exact = limit(S, G, alpha)
    for way in ways(normalization):
        out = walked(q, k, G, (5, 7), config, head_weights=w, return_steps=(2,), **way)
        error = (out.probabilities.double() - exact).abs().sum(-1).max()
        assert error <= tolerance + 1e-6, way
        assert 1 < out.steps_taken <= steps_to_limit(alpha, tolerance)
        fixed = config.replace(steps=2)
        alone = nf.random_walk(q, k, G, (5, 7), fixed, head_weights=w, **way)
        assert torch.equal(out.at_steps[2], alone)


def test_a_finer_tolerance_takes_more_steps(make_qk, make_prior):
    q, k = make_qk(2, 35, 8)
    G = make_prior(35, 4)
    steps = [
        walked(q, k, G, (5, 7), nf.NerveConfig(steps=None, tolerance=tolerance)).steps_taken
        for tolerance in (1e-1, 1e-3, 1e-6)
    ]
    assert steps == sorted(set(steps))
    assert walked(q, k, G, (5, 7), nf.NerveConfig(steps=3)).steps_taken == 3
    still = walked(q, k, G, (5, 7), nf.NerveConfig(steps=None, alpha=0))
    assert still.steps_taken == 0
    torch.testing.assert_close(still.probabilities, G)


def test_the_result_never_shares_memory_with_the_prior(make_qk, make_prior):
    q, k = make_qk(2, 35, 8)
    G = make_prior(35, 4)
    for changes in ({"alpha": 0}, {"steps": 0}, {"steps": None, "tolerance": 3.0}):
        for backend in ("reference", "blocked"):
            P = nf.random_walk(q, k, G, (5, 7), nf.NerveConfig(**changes), backend=backend)
            torch.testing.assert_close(P, G)
            assert P.data_ptr() != G.data_ptr()


def test_a_plan_is_executed_as_it_is(make_qk, make_prior, monkeypatch):
    q, k = make_qk(3, 35, 8, dtype=torch.float32)
    G = make_prior(35, 4, dtype=torch.float32)
    taken = []
    for module in (reference, blocked):
        walk = module.random_walk

        def spied(*given, module=module, walk=walk, **way):
            taken.append((module.__name__, way["route"], way["stored_rows"]))
            return walk(*given, **way)

        monkeypatch.setattr(module, "random_walk", spied)
    config = nf.NerveConfig(normalization="shift")
    for way in ways("shift"):
        plan = nf.plan(q.shape, 4, config=config, **way)
        with nf.use_backend("reference"):
            nf.random_walk(q, k, G, (5, 7), config, plan=plan)
        expected = (f"nerve_fast.{plan.backend}", plan.route, plan.stored_rows)
        assert taken.pop() == expected


def test_a_plan_that_does_not_fit_is_refused(make_qk, make_prior):
    q, k = make_qk(2, 3, 35, 8, dtype=torch.float32)
    G = make_prior(2, 35, 4, dtype=torch.float32)
    config = nf.NerveConfig()

    def refused(message, shape=(2, 3, 35, 8), labels=4, walk=None, error=ValueError, **options):
        plan = nf.plan(shape, labels, **options)
        with pytest.raises(error, match=message):
            nf.random_walk(q, k, G, (5, 7), config, plan=plan, **(walk or {}))

    refused("made for a batch of 1, and this walk has a batch of 2", shape=(3, 35, 8))
    refused("made for 2 heads, and this walk has 3 heads", shape=(2, 2, 35, 8))
    refused("made for 36 tokens, and this walk has 35", shape=(2, 3, 36, 8))
    refused("made for heads of dimension 9, and", shape=(2, 3, 35, 9))
    refused("made for 5 labels, and this walk has 4 labels", labels=5)
    refused("made for q of torch.float64, and this walk has q of", dtype=torch.float64)
    refused(r"made for NerveConfig\(alpha=0.5.*nerve_fast.plan", config=config.replace(alpha=0.5))
    refused("made for cuda, and this walk is on cpu", device="cuda")
    refused(r"made for a grid of \(7, 5\), and this walk has \(5, 7\)", grid=(7, 5))
    refused("made for head weights that are given, and this walk has none", weights_given=True)
    refused("which it settles already", walk={"backend": "blocked"})
    refused("which it settles already", walk={"max_memory": "1GB"})
    with pytest.raises(TypeError, match="plan is a str; expected what nerve_fast.plan returns"):
        nf.random_walk(q, k, G, (5, 7), plan="dense")
    fits = nf.plan(q.shape, 4)
    nf.random_walk(q, k, G, (5, 7), head_weights=torch.full((2, 3), 1 / 3), plan=fits)


@pytest.mark.parametrize("error", [KeyboardInterrupt, StopIteration])
@pytest.mark.parametrize("steps", [1_000_000, None])
@pytest.mark.parametrize(
    ("backend", "route"),
    [("reference", "auto"), ("blocked", "dense"), ("blocked", "streaming")],
)
def test_a_walk_of_many_steps_can_be_stopped(make_qk, make_prior, backend, route, steps, error):
    q, k = make_qk(2, 20, 8, dtype=torch.float32)
    prior = make_prior(20, 3, dtype=torch.float32)
    config = nf.NerveConfig(steps=steps, alpha=0.999999, tolerance=1e-12)
    taken = []

    def stop():
        taken.append(1)
        if len(taken) == 3:
            raise error

    with pytest.raises(error):
        nf.random_walk(q, k, prior, (4, 5), config, backend=backend, route=route, on_step=stop)
    assert len(taken) == 3

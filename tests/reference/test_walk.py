"""The laws of the walk, and a re-computation number by number."""

import math

import pytest
import torch

from nerve_fast import NerveConfig, reference
from nerve_fast.clusters import Clusters
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.numerics import steps_to_limit
from nerve_fast.reference import cosine_affinity
from nerve_fast.reference.walk import limit, merged, power_series, transition


def random_walk(*arguments, **options):
    return reference.random_walk(*arguments, **options).probabilities


PROBABILITIES = ("softmax", "relu", "shift")


def scalar_walk(q, k, G, grid, config, w):
    """The table of definitions in plain Python floats: no tensors, no shared code."""
    q, k, G, w = q.tolist(), k.tolist(), G.tolist(), w.tolist()
    H, N, K = len(q), len(G), len(G[0])

    def cosine(a, b):
        length_a = max(math.sqrt(sum(x * x for x in a)), 1e-12)
        length_b = max(math.sqrt(sum(x * x for x in b)), 1e-12)
        return sum(x * y for x, y in zip(a, b, strict=True)) / (length_a * length_b)

    def f(a):
        return {
            "softmax": lambda: math.exp((a - 1) / config.temperature),
            "relu": lambda: max(a, 0.0),
            "l1": lambda: a,
            "shift": lambda: (1 + a) / 2,
        }[config.normalization]()

    def normalised(row, i):
        total = sum(abs(x) for x in row)
        if total <= 1e-12:
            return [float(j == i) for j in range(N)]
        return [x / total for x in row]

    def is_near(i, j):
        (yi, xi), (yj, xj) = divmod(i, grid[1]), divmod(j, grid[1])
        return abs(yi - yj) <= config.radius and abs(xi - xj) <= config.radius

    S = []
    for i in range(N):
        a = [sum(w[h] * cosine(q[h][i], k[h][j]) for h in range(H)) for j in range(N)]
        everywhere = normalised([f(x) for x in a], i)
        nearby = normalised(
            [
                config.self_affinity if j == i else f(a[j]) if is_near(i, j) else 0.0
                for j in range(N)
            ],
            i,
        )
        S.append(
            [
                config.beta * x + (1 - config.beta) * y
                for x, y in zip(everywhere, nearby, strict=True)
            ]
        )

    term, total, weight = G, [row[:] for row in G], 1.0
    for t in range(1, config.steps + 1):
        term = [[sum(S[i][j] * term[j][c] for j in range(N)) for c in range(K)] for i in range(N)]
        for i in range(N):
            for c in range(K):
                total[i][c] += config.alpha**t * term[i][c]
        weight += config.alpha**t
    return torch.tensor([[x / weight for x in row] for row in total], dtype=torch.float64)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alpha": 1.0, "steps": 3},
        {"alpha": 0.3, "beta": 0.0, "radius": 2, "self_affinity": 0.2},
        {"beta": 1.0, "steps": 2, "temperature": 0.5},
        {"self_affinity": 0.0, "temperature": 0.002},
    ],
)
def test_random_walk_agrees_with_plain_python(make_qk, make_prior, normalization, changes):
    config = NerveConfig(normalization=normalization, **changes)
    q, k = make_qk(2, 12, 3)
    q[0, 5] = q[1, 5] = 0
    G, w = make_prior(12, 3), make_prior(2)
    expected = scalar_walk(q, k, G, (3, 4), config, w)
    torch.testing.assert_close(random_walk(q, k, G, (3, 4), config, w), expected)


def make_transition(make_qk, normalization, grid=(3, 5), **changes):
    q, k = make_qk(2, grid[0] * grid[1], 4)
    A = cosine_affinity(q, k, torch.full((2,), 0.5, dtype=q.dtype))
    return transition(A, grid, NerveConfig(normalization=normalization, **changes))


@pytest.mark.parametrize("normalization", PROBABILITIES)
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_transition_rows_are_probabilities(make_qk, normalization, beta):
    S = make_transition(make_qk, normalization, beta=beta)
    assert (S >= 0).all()
    torch.testing.assert_close(S.sum(-1), torch.ones(15, dtype=S.dtype))


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_transition_of_l1_has_absolute_rows_that_sum_to_one(make_qk, beta):
    S = make_transition(make_qk, "l1", beta=beta)
    assert (S < 0).any()
    torch.testing.assert_close(S.abs().sum(-1), torch.ones(15, dtype=S.dtype))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_transition_of_an_empty_row_stays_in_place(normalization):
    A = torch.full((6, 6), -1.0, dtype=torch.float64)
    if normalization == "l1":
        A = torch.zeros_like(A)
    config = NerveConfig(normalization=normalization, self_affinity=0.0, temperature=0.01)
    torch.testing.assert_close(transition(A, (2, 3), config), torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize("normalization", PROBABILITIES)
def test_random_walk_keeps_row_sums_and_constants(make_qk, make_prior, normalization):
    config = NerveConfig(normalization=normalization)
    q, k = make_qk(2, 15, 4)
    w = make_prior(2)
    G = 3 * make_prior(15, 4)
    P = random_walk(q, k, G, (3, 5), config, w)
    torch.testing.assert_close(P.sum(-1), G.sum(-1))
    constant = G[:1].expand(15, 4)
    torch.testing.assert_close(random_walk(q, k, constant, (3, 5), config, w), constant)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_random_walk_permutes_with_heads_labels_and_tokens(
    make_qk, make_prior, generator, normalization
):
    q, k = make_qk(3, 15, 4)
    G, w = make_prior(15, 5), make_prior(3)
    config = NerveConfig(normalization=normalization)
    P = random_walk(q, k, G, (3, 5), config, w)

    heads = torch.randperm(3, generator=generator)
    permuted = random_walk(q[heads], k[heads], G, (3, 5), config, w[heads])
    torch.testing.assert_close(permuted, P)

    labels = torch.randperm(5, generator=generator)
    torch.testing.assert_close(random_walk(q, k, G[:, labels], (3, 5), config, w), P[:, labels])

    tokens = torch.randperm(15, generator=generator)
    config = config.replace(beta=1.0)
    P = random_walk(q, k, G, (3, 5), config, w)
    permuted = random_walk(q[:, tokens], k[:, tokens], G[tokens], (3, 5), config, w)
    torch.testing.assert_close(permuted, P[tokens])


@pytest.mark.parametrize("changes", [{"alpha": 0.0}, {"steps": 0}])
def test_random_walk_that_does_not_move_gives_the_prior(make_qk, make_prior, changes):
    q, k = make_qk(2, 6, 4)
    G = make_prior(6, 3)
    torch.testing.assert_close(random_walk(q, k, G, (2, 3), NerveConfig(**changes), None), G)


def test_power_series_agrees_with_its_terms(make_prior):
    S, G = make_prior(7, 7), make_prior(7, 3)
    terms = [torch.linalg.matrix_power(S, t) @ G for t in range(6)]
    expected = sum(0.8**t * term for t, term in enumerate(terms)) * (1 - 0.8) / (1 - 0.8**6)
    for alpha, last in ((0.8, expected), (1.0, sum(terms) / 6)):
        found = power_series(lambda Y, B, alpha=alpha: B + alpha * S @ Y, G, alpha, (0, 5))
        torch.testing.assert_close(found, {0: G, 5: last})


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_limit_is_a_fixed_point(make_qk, make_prior, normalization):
    S, G = make_transition(make_qk, normalization), make_prior(15, 3)
    P = limit(S, G, 0.9)
    torch.testing.assert_close(P, 0.1 * G + 0.9 * S @ P)
    torch.testing.assert_close(limit(S, G, 0.0), G)


def test_a_walk_that_rounding_keeps_from_its_tolerance_ends(make_qk, make_prior):
    q, k = make_qk(2, 15, 4, dtype=torch.float32)
    config = NerveConfig(steps=None, tolerance=1e-30)
    out = reference.random_walk(q, k, make_prior(15, 3).float(), (3, 5), config, None)
    assert out.steps_taken <= steps_to_limit(0.9, 1e-30, 1.001)
    assert torch.isfinite(out.probabilities).all()


def test_random_walk_takes_head_weights_from_the_entropies(make_qk, make_prior):
    from nerve_fast.reference import entropy_weights, head_entropy

    q, k = make_qk(3, 6, 4)
    q[0] *= 5
    G = make_prior(6, 2)
    config = NerveConfig(sharpness=2.0)
    w = entropy_weights(head_entropy(q, k), 2.0)
    torch.testing.assert_close(
        random_walk(q, k, G, (2, 3), config, None), random_walk(q, k, G, (2, 3), config, w)
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("count", [1, 5, 15])
def test_merged_columns_are_the_walk_with_means_of_keys_and_sums_of_values(
    make_qk, make_prior, generator, count, normalization
):
    q, k = make_qk(1, 15, 4)
    A = cosine_affinity(q, k)[0]
    Y = make_prior(15, 3)
    config = NerveConfig(normalization=normalization, beta=1.0)
    assignment = torch.randint(count, (15,), generator=generator)

    groups = [torch.nonzero(assignment == c).flatten() for c in assignment.unique()]
    unit = torch.nn.functional.normalize(k[0], dim=-1)
    a = (
        torch.nn.functional.normalize(q[0], dim=-1)
        @ torch.stack([unit[members].mean(0) for members in groups]).T
    )
    size = torch.tensor([len(members) for members in groups], dtype=a.dtype)
    f = {
        "softmax": ((a - 1) / config.temperature).exp(),
        "relu": a.clamp(min=0),
        "l1": a,
        "shift": (1 + a) / 2,
    }[normalization] * size
    means = torch.stack([Y[members].mean(0) for members in groups])
    moves = f.abs().sum(-1) > 1e-12
    expected = f @ means / f.abs().sum(-1, keepdim=True)
    clusters = Clusters.of(assignment, count)
    result = transition(A, (3, 5), config, clusters=clusters) @ Y
    torch.testing.assert_close(result[moves], expected[moves])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("weight", "changes"),
    [
        (15.0, {}),
        (1.0, {"temperature": 1e-9}),
        (1.0, {"temperature": 1e-30}),
        (1.0, {"self_affinity": 1e30}),
        (40.0, {"temperature": 0.01, "self_affinity": 0.0}),
    ],
)
def test_random_walk_of_extreme_settings_is_finite(make_qk, make_prior, dtype, weight, changes):
    q, _ = make_qk(1, 15, 4, dtype=dtype)
    G = make_prior(15, 3, dtype=dtype)
    w = torch.full((1,), weight, dtype=dtype)
    P = random_walk(q, q, G, (3, 5), NerveConfig(**changes), w)
    assert torch.isfinite(P).all()
    torch.testing.assert_close(P.sum(-1), torch.ones(15, dtype=dtype))


def test_tokens_in_clusters_of_their_own_are_merged_with_none(make_prior):
    A = make_prior(6, 6)
    assert torch.equal(merged(A, torch.arange(6)), A)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_random_walk_is_differentiable(make_qk, make_prior, normalization):
    q, k = make_qk(2, 6, 3)
    inputs = [x.requires_grad_() for x in (q, k, make_prior(6, 2))]
    config = NerveConfig(normalization=normalization, steps=2, temperature=0.5)
    assert torch.autograd.gradcheck(
        lambda q, k, G: random_walk(q, k, G, (2, 3), config, None), inputs
    )

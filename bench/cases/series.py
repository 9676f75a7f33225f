"""Steps on a given graph, weights of the window, beside libraries for sparse graphs."""

import warnings

import torch
from torch.nn.functional import unfold

import nerve_fast as nf
from nerve_fast import blocked
from nerve_fast.bench.harness import floors
from nerve_fast.bench.harness.case import Case, Contender, Operation, Setting, cases, graph_inputs
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.reference.walk import series_sum

TEMPERATURE = 0.05
ALPHA = 0.9


def series_floor(setting: Setting) -> list[floors.Floor]:
    return [floors.local_step(setting.tokens, setting.labels) * setting.steps]


def neighbours(x, grid):
    """``(N, C)`` to ``(N, C, 9)`` by :func:`torch.nn.functional.unfold`."""
    maps = x.T.unflatten(1, grid)[None]
    return unfold(maps, 3, padding=1)[0].unflatten(0, (-1, 9)).permute(2, 0, 1)


def transition(affinity, grid):
    return blocked.stencil.transition(affinity, grid, 1, NORMALIZATIONS["softmax"], TEMPERATURE)


def series_inputs(setting, seed):
    q, k, prior, weights = graph_inputs(setting, seed)
    affinity = blocked.local_affinity(q.float(), k.float(), setting.grid, weights, 1, 1.0)
    return nf.LocalAffinity(transition(affinity, setting.grid), setting.grid, 1), prior


def horner(step, prior, steps):
    """``P_L``, ``step(Y)`` being ``S Y``."""
    Y = prior
    for _ in range(steps):
        Y = prior + ALPHA * step(Y)
    return Y / series_sum(ALPHA, steps)


def true_series(setting, S, prior):
    weights = S.values.double()

    def step(Y):
        return blocked.stencil.matmul(weights, setting.grid, 1, Y)

    return horner(step, prior.double(), setting.steps)


def our_series(setting, S, prior):
    return lambda: S.power_series(prior, alpha=ALPHA, steps=setting.steps)


def csr(S):
    """With indices of 32 bits, which MKL and cuSPARSE take as they are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        matrix = S.to_sparse_csr()
        rows, columns = matrix.crow_indices().int(), matrix.col_indices().int()
        return torch.sparse_csr_tensor(
            rows, columns, matrix.values(), size=matrix.shape, check_invariants=False
        )


def csr_series(setting, S, prior):
    matrix = csr(S)
    return lambda: horner(lambda Y: matrix @ Y, prior, setting.steps)


def unfold_series(setting, S, prior):
    weights = S.values[:, None, :]

    def step(Y):
        return (neighbours(Y, setting.grid) * weights).sum(-1)

    return lambda: horner(step, prior, setting.steps)


def scipy_series(setting, S, prior):
    from scipy.sparse import csr_array

    matrix = csr(S)
    parts = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
    graph = csr_array(tuple(part.numpy() for part in parts), shape=matrix.shape)
    G = prior.numpy()
    return lambda: torch.from_numpy(horner(lambda Y: graph @ Y, G, setting.steps))


def appnp_series(setting, S, prior):
    from torch_geometric.nn import APPNP

    graph = S.to_sparse_csr().to_sparse_coo().coalesce()
    # A message goes from the first to the second, S[i, j] weighs what i hears from j.
    edges = graph.indices().flip(0).contiguous()
    layer = APPNP(setting.steps, 1 - ALPHA, add_self_loops=False, normalize=False)
    weights = graph.values()
    return lambda: layer(prior, edges, weights)


def true_appnp(setting, S, prior):
    """Its own series: the last term weighs ``α^L``, not ``(1−α) α^L / (1 − α^{L+1})``."""
    weights, G = S.values.double(), prior.double()
    Y = G
    for _ in range(setting.steps):
        Y = (1 - ALPHA) * G + ALPHA * blocked.stencil.matmul(weights, setting.grid, 1, Y)
    return Y


SERIES = Operation("power series on a given graph", series_inputs, true_series, series_floor)


def unfolds(prepare) -> Contender:
    # It holds (N, H·D, 9) in memory.
    return Contender(
        "unfold",
        prepare,
        only=lambda s: s.tokens <= 65_536 and s.labels == 21 and s.dtype == "float32",
    )


def settings(device: str) -> list[tuple[str, Setting]]:
    near = Setting(4096, normalization="", device=device)
    large = near.replace(tokens=65_536)
    return [
        ("quick", near),
        ("default", large),
        ("default", large.replace(labels=171)),
        ("full", near.replace(tokens=1 << 20)),
    ]


def measured(device: str) -> list[Case]:
    """The cases of this file."""
    contenders = [
        Contender("blocked", our_series, ours=True),
        Contender("torch.sparse CSR", csr_series),
        Contender("scipy.sparse", scipy_series, only=lambda s: s.device == "cpu", needs="scipy"),
        Contender(
            "PyG APPNP",
            appnp_series,
            only=lambda s: s.labels == 21,
            needs="torch_geometric",
            truth=true_appnp,
            note="another weight on the last term",
        ),
        unfolds(unfold_series),
    ]
    return cases(SERIES, contenders, settings(device))


def test_series(case, run_case):
    run_case(case)

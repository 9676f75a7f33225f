"""The neighbourhood: its affinity, one step of softmax over it, and the walk on it alone."""

import functools

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import pad

import nerve_fast as nf
from nerve_fast import blocked, reference
from nerve_fast.bench.cases.series import (
    ALPHA,
    TEMPERATURE,
    neighbours,
    series_floor,
    transition,
    true_series,
    unfold_series,
    unfolds,
)
from nerve_fast.bench.harness import floors
from nerve_fast.bench.harness.case import (
    REFERENCED,
    Case,
    Contender,
    Operation,
    Setting,
    cases,
    compiled,
    graph_inputs,
    kernels_run,
)


def affinity_floor(setting: Setting) -> list[floors.Floor]:
    return [floors.local_affinity(setting.tokens, setting.channels, setting.torch_dtype.itemsize)]


def step_floor(setting: Setting) -> list[floors.Floor]:
    return [affinity_floor(setting)[0] + floors.local_step(setting.tokens, setting.labels)]


def walk_floor(setting: Setting) -> list[floors.Floor]:
    return [affinity_floor(setting)[0] + series_floor(setting)[0]]


# Local affinity: q, k (H, N, D) to (N, 9).


def true_affinity(setting, q, k, prior, weights):
    q, k, weights = q.double(), k.double(), weights.double()
    backend = reference if setting.tokens <= REFERENCED else blocked
    return backend.local_affinity(q, k, setting.grid, weights, 1, 1.0)


def our_affinity(setting, q, k, prior, weights, *, backend):
    return lambda: (
        nf.local_affinity(q, k, setting.grid, head_weights=weights, backend=backend).values
    )


def shifted_affinity(q, k, weights, grid):
    """From nine shifted views of all keys, not cut into stripes: for a compiler to fuse."""
    h, w = grid
    packed_q, packed_k = blocked.packing.pack(q, k, weights)
    keys = pad(packed_k.unflatten(0, grid), (0, 0, 1, 1, 1, 1))
    queries = packed_q.unflatten(0, grid)
    views = [keys[dy : dy + h, dx : dx + w] for dy in range(3) for dx in range(3)]
    planes = [(queries * view).sum(-1) for view in views]
    planes[4] = torch.ones_like(planes[4])
    return torch.stack(planes, dim=-1).flatten(0, 1)


def compiled_affinity(setting, q, k, prior, weights):
    run = compiled(shifted_affinity)
    return lambda: run(q, k, weights, setting.grid)


def dense_affinity(setting, q, k, prior, weights):
    return lambda: reference.local_affinity(q, k, setting.grid, weights, 1, 1.0)


def unfolded(packed_q, packed_k, grid):
    affinity = (packed_q[:, :, None] * neighbours(packed_k, grid)).sum(1)
    affinity[:, 4] = 1.0
    return affinity


def unfold_affinity(setting, q, k, prior, weights):
    return lambda: unfolded(*blocked.packing.pack(q, k, weights), setting.grid)


# One step of softmax over the window: q, k and Y to S_local Y.


def true_step(setting, q, k, prior, weights):
    affinity = true_affinity(setting, q, k, prior, weights)
    S = transition(affinity, setting.grid)
    return blocked.stencil.matmul(S, setting.grid, 1, prior.double())


def our_step(setting, q, k, prior, weights, *, backend):
    def run():
        local = nf.local_affinity(q, k, setting.grid, head_weights=weights, backend=backend)
        return local.normalized("softmax", TEMPERATURE).matmul(prior)

    return run


def unfold_step(setting, q, k, prior, weights):
    def run():
        affinity = unfolded(*blocked.packing.pack(q, k, weights), setting.grid)
        S = transition(affinity, setting.grid)
        return (neighbours(prior, setting.grid) * S[:, None, :]).sum(-1)

    return run


def flex_step(setting, q, k, prior, weights):
    """The window as a block mask, made outside the time; the diagonal by a change of score."""
    width = setting.grid[1]

    def near(b, h, i, j):
        rows = (i // width - j // width).abs() <= 1
        return rows & ((i % width - j % width).abs() <= 1)

    def score(s, b, h, i, j):
        return torch.where(i == j, torch.zeros_like(s), s - 1 / TEMPERATURE)

    mask = create_block_mask(near, None, None, setting.tokens, setting.tokens, setting.device)
    attend = compiled(flex_attention)
    dtype = setting.torch_dtype

    def run():
        packed_q, packed_k = (x.to(dtype)[None, None] for x in blocked.packing.pack(q, k, weights))
        values = prior.to(dtype)[None, None]
        return attend(
            packed_q, packed_k, values, score_mod=score, block_mask=mask, scale=1 / TEMPERATURE
        )[0, 0]

    return run


def natten_step(setting, q, k, prior, weights):
    from natten import na2d

    dtype, grid = setting.torch_dtype, setting.grid

    def run():
        packed = (x.to(dtype) for x in blocked.packing.pack(q, k, weights))
        maps = (x.unflatten(0, grid)[None, :, :, None] for x in (*packed, prior.to(dtype)))
        return na2d(*maps, kernel_size=3, scale=1 / TEMPERATURE)[0, :, :, 0].flatten(0, 1)

    return run


def true_natten(setting, q, k, prior, weights):
    """Its own definition: windows are moved inward at the border, a token weighs as its cosine."""
    packed_q, packed_k = blocked.packing.pack(q.double(), k.double(), weights.double())
    height, width = setting.grid
    token = torch.arange(setting.tokens, device=q.device)
    y, x = token // width, token % width
    y, x = y.clamp(1, height - 2), x.clamp(1, width - 2)
    step = torch.arange(-1, 2, device=q.device)
    rows = (y[:, None] + step.repeat_interleave(3)) * width
    j = rows + x[:, None] + step.repeat(3)
    scores = (packed_q[:, None] * packed_k[j]).sum(-1) / TEMPERATURE
    return (scores.softmax(-1)[..., None] * prior.double()[j]).sum(1)


# Affinity and steps together: the walk with β = 0.


def true_walk(setting, q, k, prior, weights):
    S = transition(true_affinity(setting, q, k, prior, weights), setting.grid)
    S = nf.LocalAffinity(S, setting.grid, 1)
    return true_series(setting, S, prior)


def our_walk(setting, q, k, prior, weights, *, backend):
    config = setting.config(beta=0.0, alpha=ALPHA, temperature=TEMPERATURE)
    return lambda: nf.random_walk(
        q, k, prior, setting.grid, config, head_weights=weights, backend=backend
    )


def unfold_walk(setting, q, k, prior, weights):
    def run():
        affinity = unfolded(*blocked.packing.pack(q, k, weights), setting.grid)
        S = nf.LocalAffinity(transition(affinity, setting.grid), setting.grid, 1)
        return unfold_series(setting, S, prior)()

    return run


AFFINITY = Operation("local affinity", graph_inputs, true_affinity, affinity_floor)
STEP = Operation("local softmax step", graph_inputs, true_step, step_floor)
WALK = Operation("local walk", graph_inputs, true_walk, walk_floor)


def ours(prepare) -> list[Contender]:
    return [
        Contender(
            backend,
            functools.partial(prepare, backend=backend),
            ours=True,
            only=kernels_run if backend == "triton" else lambda setting: True,
            compiled=backend == "triton",
            graph=prepare is not our_walk,
        )
        for backend in ("triton", "blocked")
    ]


def affinity_settings(device: str) -> list[tuple[str, Setting]]:
    near = Setting(4096, normalization="", device=device)
    large = near.replace(tokens=65_536)
    found = [
        ("quick", near),
        ("default", large),
        ("default", large.replace(dtype="bfloat16")),
        ("full", near.replace(tokens=262_144)),
        ("full", near.replace(tokens=1 << 20)),
    ]
    if device == "cuda":
        found.append(("default", large.replace(dtype="float16")))
    return found


def step_settings(device: str) -> list[tuple[str, Setting]]:
    return [
        ("quick", Setting(4096, device=device)),
        ("full", Setting(16_384, device=device)),
        ("full", Setting(65_536, device=device)),
    ]


def walk_settings(device: str) -> list[tuple[str, Setting]]:
    return [("default", Setting(65_536, device=device))]


def measured(device: str) -> list[Case]:
    """The cases of this file."""
    affinity = [
        *ours(our_affinity),
        Contender(
            "torch.compile",
            compiled_affinity,
            compiled=True,
            note="of shifted views",
        ),
        unfolds(unfold_affinity),
        Contender("reference", dense_affinity, only=lambda s: s.tokens <= 4096),
    ]
    step = [
        *ours(our_step),
        unfolds(unfold_step),
        Contender(
            "flex_attention",
            flex_step,
            only=lambda s: s.tokens <= 16_384,
            compiled=True,
            slack=10,
            note="its block mask is given",
        ),
        Contender(
            "NATTEN",
            natten_step,
            only=lambda s: s.device == "cuda",
            needs="natten",
            truth=true_natten,
            note="windows moved inward at the border, no ε_self",
        ),
    ]
    return [
        *cases(AFFINITY, affinity, affinity_settings(device)),
        *cases(STEP, step, step_settings(device)),
        *cases(WALK, [*ours(our_walk), unfolds(unfold_walk)], walk_settings(device)),
    ]


def test_local(case, run_case):
    run_case(case)

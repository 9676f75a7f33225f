"""The walk, head weights given: every route, and rivals."""

import functools

import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention

import nerve_fast as nf
from nerve_fast import blocked, reference
from nerve_fast.bench.harness import floors
from nerve_fast.bench.harness.case import (
    REFERENCED,
    SIXTEEN_BITS,
    Case,
    Contender,
    Operation,
    Setting,
    cases,
    compiled,
    graph_inputs,
    kernels_run,
)
from nerve_fast.normalization import NORMALIZATIONS


def true_walk(setting, q, k, prior, weights=None):
    """Return the walk in float64, by the blocked backend where the reference is too slow."""
    q, k, prior = q.double(), k.double(), prior.double()
    weights = weights if weights is None else weights.double()
    if setting.tokens <= REFERENCED:
        return reference.random_walk(
            q, k, prior, setting.grid, setting.config(), weights
        ).probabilities
    return blocked.random_walk(
        q,
        k,
        prior,
        setting.grid,
        setting.config(),
        weights,
        route="factorized" if setting.normalization == "shift" else "dense",
        stored_rows=setting.tokens,
    ).probabilities


def walk_floors(setting: Setting) -> list[floors.Floor]:
    return floors.walk(
        setting.normalization,
        setting.steps,
        setting.tokens,
        setting.channels,
        setting.labels,
        setting.torch_dtype.itemsize,
    )


def through(setting, q, k, prior, weights=None, *, backend, route):
    """The public operation."""
    config = setting.config()
    return lambda: nf.random_walk(
        q, k, prior, setting.grid, config, head_weights=weights, backend=backend, route=route
    )


def in_float8(setting, q, k, prior, weights):
    """The kernels' dense route with ``S`` in float8, which nothing takes by itself."""
    from nerve_fast.kernels import walk
    from nerve_fast.kernels.launch import fp8_of

    config = setting.config()
    return lambda: (
        walk.random_walk(
            q,
            k,
            prior,
            setting.grid,
            config,
            weights,
            route="dense",
            stored_rows=setting.tokens,
            stored_dtype=fp8_of(q.device),
            max_weight_sum=1.0,
        ).probabilities
    )


def compiled_reference(setting, q, k, prior, weights=None):
    config, grid = setting.config(), setting.grid
    run = compiled(lambda q, k, prior, w: reference.random_walk(q, k, prior, grid, config, w)[0])
    return lambda: run(q, k, prior, weights)


def by_attention(setting, q, k, prior, weights, *, attend):
    """The streaming ``softmax`` walk by ``attend(q, k, v, scale)``: head size H·D, values Y."""
    grid, config, dtype = setting.grid, setting.config(), setting.torch_dtype

    def run():
        packed_q, packed_k = blocked.packing.pack(q, k, weights)
        values = blocked.local_affinity(q, k, grid, weights, 1, 1.0)
        S_local = blocked.stencil.transition(
            values, grid, 1, NORMALIZATIONS["softmax"], config.temperature
        )
        queries, keys = (x.to(dtype)[None, None] for x in (packed_q, packed_k))
        Y = prior
        for _ in range(config.steps):
            moved = attend(queries, keys, Y.to(dtype)[None, None], scale=1 / config.temperature)
            nearby = blocked.stencil.matmul(S_local, grid, 1, Y)
            step = config.beta * moved[0, 0].to(prior.dtype) + (1 - config.beta) * nearby
            Y = prior + config.alpha * step
        return Y / reference.walk.series_sum(config.alpha, config.steps)

    return run


def fused_attention(queries, keys, values, **options):
    """SDPA with values as wide as its fused kernels want them: without that it stores ``N × N``."""
    labels = values.shape[-1]
    # On a CPU as wide as the queries, on a GPU a multiple of 16 bytes.
    width = queries.shape[-1] if queries.device.type == "cpu" else -(-labels // 8) * 8
    values = pad(values, (0, width - labels))
    return scaled_dot_product_attention(queries, keys, values, **options)[..., :labels]


def by_sdpa(setting, *inputs):
    return by_attention(setting, *inputs, attend=fused_attention)


def by_flex(setting, *inputs):
    return by_attention(setting, *inputs, attend=compiled(flex_attention))


def base(setting: Setting) -> bool:
    """Neither many labels nor many steps: what most is measured at."""
    return (setting.labels, setting.steps, setting.heads) == (21, 10, 5)


def route(backend: str, name: str) -> Contender:
    def only(setting):
        exact = name != "factorized" or NORMALIZATIONS[setting.normalization].linear
        if backend == "triton":
            return exact and kernels_run(setting) and (name != "dense" or setting.tokens <= 16_384)
        if (
            setting.device == "cpu"
            and NORMALIZATIONS[setting.normalization].linear
            and setting.tokens > 1024
        ):
            # Minutes, to learn again how much slower the other routes are.
            dense = name == "dense" and setting.tokens == 4096 and base(setting)
            return name == "factorized" or dense
        most = {"dense": 16_384, "streaming": 16_384, "factorized": 1 << 20}[name]
        return exact and setting.tokens <= most and (name != "streaming" or base(setting))

    return Contender(
        f"{backend} {name}",
        functools.partial(through, backend=backend, route=name),
        ours=True,
        route=(backend, name),
        only=only,
        compiled=backend == "triton",
        graph=False,
    )


ROUTES = [
    route(backend, name)
    for backend in ("triton", "blocked")
    for name in ("factorized", "dense", "streaming")
]
FLOAT8 = Contender(
    "triton dense, float8 S",
    in_float8,
    ours=True,
    only=lambda s: (
        s.device == "cuda"
        and s.dtype == "bfloat16"
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= (8, 9)
        and s.normalization in ("softmax", "shift")
        and s.tokens <= 16_384
    ),
    compiled=True,
)
REFERENCE = Contender(
    "reference",
    functools.partial(through, backend="reference", route="auto"),
    only=lambda s: (
        s.tokens <= 16_384
        and s.dtype == "float32"
        and (s.normalization in ("softmax", "shift") or s.tokens == 16_384)
        and base(s)
    ),
    graph=False,
    note="computes in float32",
)
COMPILED = Contender(
    "torch.compile",
    compiled_reference,
    only=lambda s: (
        s.tokens == 4096 and s.dtype == "float32" and s.normalization == "softmax" and base(s)
    ),
    compiled=True,
    slack=10,
    note="of the reference; sums less exactly",
)
ATTENTIONS = [
    Contender(
        "SDPA",
        by_sdpa,
        attends=True,
        only=lambda s: s.normalization == "softmax" and s.tokens <= 4096 and base(s),
        note="streaming, head size H·D, values Y padded to what its fused kernel takes",
    ),
    Contender(
        "flex_attention",
        by_flex,
        only=lambda s: (
            s.normalization == "softmax"
            and s.tokens == 4096
            and (s.dtype == "float32" or s.device == "cuda")
            and base(s)
        ),
        compiled=True,
        slack=10,
        note="streaming, head size H·D, values Y",
    ),
]

WALK = Operation("walk", graph_inputs, true_walk, walk_floors, steady=True)


def settings(device: str) -> list[tuple[str, Setting]]:
    """One thing varied at a time around N = 4096, softmax, and the sizes for each kind of row."""
    quick, middle, large = (4096, 16_384, 65_536) if device == "cuda" else (1024, 4096, 16_384)
    sixteen = "bfloat16"
    found = []
    for normalization in NORMALIZATIONS:
        for dtype in ("float32", sixteen):
            near = Setting(quick, normalization=normalization, dtype=dtype, device=device)
            tier = "quick" if normalization in ("softmax", "shift") else "full"
            found += [
                (tier, near),
                ("default", near.replace(tokens=middle)),
                ("default", near.replace(tokens=large)),
            ]
    if device == "cuda":
        # One step is the difference of many and one.
        found += [
            ("default", Setting(tokens, steps=steps, dtype=dtype, device=device))
            for tokens in (4096, 16_384, 65_536)
            for dtype in SIXTEEN_BITS
            for steps in (10, 1, 50)
        ]
        found += [
            ("default", Setting(65_536, normalization=name, dtype="float16", device=device))
            for name in NORMALIZATIONS
        ]
    for tokens in (65_536, 262_144, 1 << 20):
        found.append(("default", Setting(tokens, normalization="shift", device=device)))
    for normalization in ("softmax", "shift"):
        point = Setting(4096, normalization=normalization, device=device)
        if device == "cuda":
            point = point.replace(dtype=sixteen)
        found += [("default", point.replace(labels=labels)) for labels in (2, 171)]
        found += [("default", point.replace(steps=steps)) for steps in (1, 50)]
        found.append(("default", point.replace(heads=10)))
    larger = Setting(16_384, device=device)
    found += [("full", larger.replace(labels=labels)) for labels in (2, 171)]
    found += [("full", larger.replace(steps=steps)) for steps in (1, 50)]
    found.append(("full", larger.replace(heads=10)))
    return found


def measured(device: str) -> list[Case]:
    """The cases of this file."""
    contenders = [*ROUTES, FLOAT8, REFERENCE, COMPILED, *ATTENTIONS]
    return cases(WALK, contenders, settings(device))


def test_walk(case, run_case):
    run_case(case)

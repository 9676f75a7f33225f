"""The weighted cosine affinity, all N × N of it, in the dtype of the inputs."""

import functools

from torch.nn.functional import normalize

import nerve_fast as nf
from nerve_fast import reference
from nerve_fast.bench.harness import floors
from nerve_fast.bench.harness.case import (
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


def inputs(setting, seed):
    q, k, _, weights = graph_inputs(setting, seed)
    return q, k, weights


def truth(setting, q, k, weights):
    return reference.cosine_affinity(q.double(), k.double(), weights.double())


def floor(setting: Setting) -> list[floors.Floor]:
    itemsize = setting.torch_dtype.itemsize
    return [floors.cosine_affinity(setting.tokens, setting.channels, itemsize)]


def ours(setting, q, k, weights, *, backend):
    return lambda: nf.cosine_affinity(q, k, weights, backend=backend)


def compiled_reference(setting, q, k, weights):
    run = compiled(lambda q, k, w: reference.cosine_affinity(q, k, w).to(q.dtype))
    return lambda: run(q, k, weights)


def one_product(setting, q, k, weights):
    """The code that a careful user of PyTorch would write, compiled."""

    def product(q, k, w):
        q_hat = w[:, None, None] * normalize(q.float(), dim=-1)
        k_hat = normalize(k.float(), dim=-1)
        q_hat, k_hat = (x.to(q.dtype).transpose(0, 1).flatten(1) for x in (q_hat, k_hat))
        return q_hat @ k_hat.T

    run = compiled(product)
    return lambda: run(q, k, weights)


AFFINITY = Operation("cosine affinity", inputs, truth, floor)
CONTENDERS = [
    Contender(
        backend,
        functools.partial(ours, backend=backend),
        ours=backend != "reference",
        only=kernels_run if backend == "triton" else lambda setting: True,
        compiled=backend == "triton",
    )
    for backend in ("triton", "blocked", "reference")
] + [
    Contender(
        "torch.compile",
        compiled_reference,
        only=lambda s: s.tokens >= 4096,
        compiled=True,
        note="of the reference",
    ),
    Contender(
        "one product",
        one_product,
        only=lambda s: s.tokens >= 4096,
        compiled=True,
        note="compiled; what a careful user would write",
    ),
]


def settings(device: str) -> list[tuple[str, Setting]]:
    near = Setting(1024, normalization="", device=device)
    found = [
        ("quick", near),
        ("default", near.replace(tokens=4096)),
        ("default", near.replace(tokens=4096, dtype="bfloat16")),
    ]
    if device == "cuda":
        found += [
            ("default", near.replace(tokens=tokens, dtype=dtype))
            for tokens in (4096, 16_384)
            for dtype in SIXTEEN_BITS
        ]
    return found


def measured(device: str) -> list[Case]:
    """The cases of this file."""
    return cases(AFFINITY, CONTENDERS, settings(device))


def test_affinity(case, run_case):
    run_case(case)

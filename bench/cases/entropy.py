"""The entropy of every head's attention, beside torch's own attention on the same q and k."""

import functools

from torch.nn.functional import scaled_dot_product_attention

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


def inputs(setting, seed):
    return graph_inputs(setting, seed)[:2]


def truth(setting, q, k):
    backend = reference if setting.tokens <= REFERENCED else blocked
    return backend.head_entropy(q.double(), k.double())


def floor(setting: Setting) -> list[floors.Floor]:
    return [floors.head_entropy(setting.tokens, setting.channels, setting.torch_dtype.itemsize)]


def ours(setting, q, k, *, backend):
    return lambda: nf.head_entropy(q, k, backend=backend)


def compiled_reference(setting, q, k):
    run = compiled(reference.head_entropy)
    return lambda: run(q, k)


def sdpa(setting, q, k):
    return lambda: scaled_dot_product_attention(q[None], k[None], k[None])


def true_sdpa(setting, q, k):
    return scaled_dot_product_attention(q.double()[None], k.double()[None], k.double()[None])


ENTROPY = Operation("head entropy", inputs, truth, floor)
CONTENDERS = [
    Contender(
        "triton",
        functools.partial(ours, backend="triton"),
        ours=True,
        only=kernels_run,
        compiled=True,
    ),
    Contender("blocked", functools.partial(ours, backend="blocked"), ours=True),
    Contender(
        "reference",
        functools.partial(ours, backend="reference"),
        only=lambda s: s.tokens <= 4096 and s.dtype == "float32",
    ),
    Contender(
        "torch.compile",
        compiled_reference,
        only=lambda s: s.tokens <= 4096 and s.dtype == "float32",
        compiled=True,
        note="of the reference",
    ),
    Contender(
        "SDPA",
        sdpa,
        attends=True,
        truth=true_sdpa,
        note="a yardstick: attention with values k, one product more and no entropy",
    ),
]


def settings(device: str) -> list[tuple[str, Setting]]:
    near = Setting(1024, normalization="", device=device)
    sixteen = near.replace(dtype="bfloat16")
    found = [
        ("quick", near),
        ("default", near.replace(tokens=4096)),
        ("default", sixteen.replace(tokens=4096)),
        ("default" if device == "cuda" else "full", sixteen.replace(tokens=16_384)),
        ("full", near.replace(tokens=16_384)),
    ]
    if device == "cuda":
        found += [
            ("default", near.replace(tokens=tokens, dtype=dtype))
            for tokens in (4096, 16_384, 65_536)
            for dtype in SIXTEEN_BITS
        ]
    return found


def measured(device: str) -> list[Case]:
    """The cases of this file."""
    return cases(ENTROPY, CONTENDERS, settings(device))


def test_entropy(case, run_case):
    run_case(case)

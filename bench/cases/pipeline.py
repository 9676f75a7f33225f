"""The whole pipeline, image to label map: SD 2.1's and ViT-L/14's configurations, random weights.

The contenders differ only in the graph stage; the parts of each row show where the time goes.
"""

import copy
import functools

from nerve_fast.bench.harness.case import Case, Contender, Operation, Setting, cases
from nerve_fast.bench.harness.machine import dtype_of_networks

PIXELS = 8


def inputs(setting, seed):
    """A pipeline with its words encoded, and an image of noise."""
    # diffusers and transformers take seconds to import, and are not on every GPU machine.
    import numpy as np

    from nerve_fast.bench.harness.full_size import WORDS, full_size_pipe

    pipe = full_size_pipe(setting.device)
    pipe.prior.clip.encode_words(WORDS[: setting.labels])
    size = [PIXELS * side for side in setting.grid]
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return pipe, pixels


def prepare(setting, pipe, image, *, backend):
    pipe = copy.copy(pipe)
    pipe.backend = backend
    from nerve_fast.bench.harness.full_size import WORDS

    labels, config = WORDS[: setting.labels], setting.config()
    return lambda: pipe(image, labels, config=config, processing_resolution=0).probabilities


def truth(setting, pipe, image):
    """The reference pipeline's result: the networks are the same."""
    from nerve_fast.bench.harness.full_size import full_size_pipe

    out = prepare(setting, pipe, image, backend="reference")()
    full_size_pipe.cache_clear()
    return out.double()


PIPELINE = Operation("pipeline", inputs, truth, parts=True)
CONTENDERS = [
    Contender(
        "nerve-fast, auto",
        functools.partial(prepare, backend="auto"),
        ours=True,
        needs="diffusers",
        graph=False,
    ),
    Contender(
        "reference",
        functools.partial(prepare, backend="reference"),
        only=lambda s: s.tokens <= 4096,
        needs="diffusers",
        graph=False,
    ),
]


def settings(device: str) -> list[tuple[str, Setting]]:
    """Images of 512² and 1024² pixels; the last up-block of SD 2.1 has 15 heads."""
    at_512 = Setting(4096, heads=15, dtype=dtype_of_networks(device), device=device)
    return [("default", at_512), ("full", at_512.replace(tokens=16_384))]


def measured(device: str) -> list[Case]:
    """The cases of this file."""
    return cases(PIPELINE, CONTENDERS, settings(device))


def test_pipeline(case, run_case):
    run_case(case)

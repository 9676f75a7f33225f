"""Odd values for every argument end in an error that names the argument, or in a result."""

import inspect
import random
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nerve_fast as nf
from nerve_fast.errors import quoted
from nerve_fast.evaluation import AblationSettings, EvaluationSettings, ModelSettings
from nerve_fast.pipeline.asked import SegmentSettings
from nerve_fast.tiny.scenes import generate

GRID, HEADS, HEAD_DIM, COUNT = (4, 5), 2, 8, 3
TOKENS = GRID[0] * GRID[1]

HUGE = 10**30
LONG, LONGEST = 10**500, 10**5000
"""More digits than a float holds, and than Python prints."""


class Odd:
    """An object that nothing expects."""

    def __repr__(self):
        return "odd"


def odd_values(chance: random.Random) -> list:
    nan, infinity = float("nan"), float("inf")
    return [
        *(None, True, False, 0, 1, -1, 2**31, 2**63, -HUGE, HUGE, LONG, -LONG, LONGEST),
        *(0.5, -0.0, nan, infinity, 1e308),
        *(1j, Decimal("NaN"), Fraction(1, 3), np.int64(3), np.float32(0.5), np.array([1, 2])),
        *("", "auto", "reference", "dense", "softmax", "cpu", "cuda:99", "6GB", "-1", "a\0b", "é"),
        *("9" * 400, "\ud800", b"bytes", bytearray(3), Path("nowhere.png"), Path(".")),
        *([], (), {}, set(), [1], (4, 5), (5, 4), (4, 5, 1), [None], [[]], {1: 2}, {"a": [(1, 1)]}),
        *(
            {"a": None},
            {"a": [(nan, 1)]},
            {"a": [(LONG, 1)]},
            {"a": [(Fraction(1, 3), 2)]},
            {"a": [(Fraction(99, 2), 2)]},
            {"a": [(1, 1, LONGEST, 9)]},
            (2, LONG, 8),
            (LONGEST, 0, -LONG),
            ["a"],
            ["a", "a"],
            [""],
            ["a,,b"],
            [1, "a"],
            ["a" * 5000],
        ),
        *(range(3), range(10**12), (x for x in "ab"), Odd(), Odd, len, ..., NotImplemented),
        *(torch.tensor(3), torch.zeros(()), torch.zeros(0), torch.rand(2, 3), torch.float32),
        *(torch.int8, torch.device("cpu"), torch.device("meta"), torch.rand(3, device="meta")),
        *(torch.rand(HEADS, TOKENS, HEAD_DIM), torch.rand(TOKENS, COUNT), torch.rand(HEADS)),
        *(torch.zeros(HEADS, TOKENS, HEAD_DIM, dtype=torch.complex64), torch.rand(1, 1, 1)),
        *(torch.rand(TOKENS, COUNT).to_sparse(), torch.full((TOKENS, COUNT), nan)),
        *(torch.zeros(HEADS, TOKENS, HEAD_DIM, dtype=torch.int64), torch.Generator()),
        *(nf.NerveConfig(), nf.NerveConfig(steps=1), nf.plan((2, 20, 8), 3), nf.plan((1, 4, 8), 3)),
        *(Image.new("RGB", (8, 8)), Image.new("F", (8, 8)), Image.new("L", (1, 1))),
        *(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8)), np.zeros((0, 8, 3), np.uint8)),
        *(chance.randrange(-9, 9), chance.uniform(-2, 2), [chance.randrange(9)]),
    ]


ALIASES = {
    "shape": ("shape", "grid"),
    "image": ("image", "array", "no such file", "cannot be read", "folder"),
    "labels": ("label",),
    "points": ("point", "label", "seeds"),
    "boxes": ("box", "label", "seeds"),
    "scribbles": ("scribble", "label", "seeds"),
    "tile": ("tile", "overlap"),
    "backend": ("backend", "plan"),
    "route": ("route", "plan"),
    "max_memory": ("max_memory", "plan", "memory"),
    "name": ("prior",),
    "names": ("names", "ablation"),
    "logit_scale": ("logit scale", "logit_scale"),
    "processing_resolution": ("processing_resolution", "resolution", "memory"),
}
"""Words, one of which a message about the argument holds, besides its name."""


def check(function, valid: dict, name: str, value, where: str) -> str:
    """Call with one argument replaced; ``result`` or ``refused``."""
    what = f"{where}: {name}={quoted(value)}"
    try:
        function(**{**valid, name: value})
        return "result"
    except (ValueError, TypeError) as error:
        refusal = error
    except Exception as error:
        raise AssertionError(f"{what}: {error!r:.300}") from error
    said = str(refusal)
    assert any(word in said for word in (name, *ALIASES.get(name, ()))), f"{what}: {refusal!r}"
    assert "\n" not in said, f"{what}: {refusal!r}"
    return "refused"


def tried(function, valid: dict, names: list[str], chance: random.Random, count: int | None):
    """Each argument with ``count`` odd values drawn at random, or with all of them."""
    results = set()
    for name in names:
        values = odd_values(chance)
        for value in values if count is None else chance.sample(values, count):
            results.add(check(function, valid, name, value, getattr(function, "__name__", "call")))
    assert "refused" in results


def names_of(function) -> list[str]:
    """Of its arguments, all of them."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


SHORT_AND_LONG = pytest.mark.parametrize("count", [25, pytest.param(None, marks=pytest.mark.slow)])


@SHORT_AND_LONG
def test_plan(chance, count):
    valid = {"shape": (HEADS, TOKENS, HEAD_DIM), "num_labels": COUNT}
    tried(nf.plan, valid, names_of(nf.plan), chance, count)


@SHORT_AND_LONG
def test_random_walk(chance, count):
    q, k = torch.randn(2, HEADS, TOKENS, HEAD_DIM)
    valid = {
        "q": q,
        "k": k,
        "prior": torch.rand(TOKENS, COUNT),
        "grid": GRID,
        "config": nf.NerveConfig(steps=1),
    }
    names = [name for name in names_of(nf.random_walk) if name != "on_step"]
    tried(nf.random_walk, valid, names, chance, count)


@SHORT_AND_LONG
@pytest.mark.parametrize("function", [nf.head_entropy, nf.cosine_affinity, nf.local_affinity])
def test_other_operations(chance, function, count):
    q, k = torch.randn(2, HEADS, TOKENS, HEAD_DIM)
    names = names_of(function)
    valid = {"q": q, "k": k, "grid": GRID}
    tried(function, {n: x for n, x in valid.items() if n in names}, names, chance, count)


SETTINGS = {
    nf.NerveConfig: {},
    nf.PriorConfig: {"name": "naclip"},
    ModelSettings: {},
    SegmentSettings: {"images": ["a.png"], "labels": ["a"], "output": "out"},
    EvaluationSettings: {"dataset": "tiny"},
    AblationSettings: {"dataset": "tiny", "names": ["steps"]},
}


@SHORT_AND_LONG
@pytest.mark.parametrize("kind", SETTINGS)
def test_settings(chance, kind, count):
    # What names files and models is looked at where it is used.
    places = ("images", "output", "root", "document", "models", "clip", "diffusion", "graph")
    unchecked = (*places, "layers", "device", "command", "dataset", "compile")
    names = [name for name in names_of(kind) if name not in unchecked]
    tried(kind, SETTINGS[kind], names, chance, count)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [12, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["__call__", "encode"])
def test_pipeline(pipe, chance, method, count):
    image = generate(960_002, 128)[0].resize((24, 20))
    function = getattr(pipe, method)
    names = names_of(function)
    valid = {
        "image": image,
        "labels": ["grass", "ball"],
        "config": nf.NerveConfig(steps=1),
        "global_keys": None,
        "max_memory": "2GB",
        "processing_resolution": 32,  # Few tokens are quick.
    }
    valid = {name: value for name, value in valid.items() if name in names}
    tried(function, valid, names, chance, count)

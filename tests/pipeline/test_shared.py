"""One image whose tiles, windows and walk several processes share."""

import sys

import pytest
import torch

import nerve_fast as nf
from nerve_fast.bench.harness.together import together
from nerve_fast.errors import InputError
from nerve_fast.numerics import ERROR_BOUNDS, relative_error
from nerve_fast.tiny.scenes import generate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and finds by a file")

LABELS = ["grass", "water", "ball"]
CALLS = {
    "tiles": {"tile": 64},
    "clusters": {"tile": 64, "global_keys": 20, "max_key_error": 0.2},
    "one tile": {},
    "seeds": {"labels": None, "points": {"a": [(10, 10)], "b": [(70, 90), (40, 20)]}},
    "words and seeds": {"tile": 64, "points": {"ball": [(20, 20)]}, "return_steps": [1]},
}


def segmented(name, group=None, pipe=None):
    """What a call gives, as tensors and texts."""
    call = {"labels": LABELS, "processing_resolution": 0, **CALLS[name]}
    pipe = pipe or nf.NervePipeline.from_pretrained("tiny", device="cpu")
    out = pipe(generate(970_020, (128, 192))[0], **call, group=group)
    if out is None:
        return None
    return {
        "label_map": out.label_map,
        "walked": out.walked,
        "prior": out.prior,
        "steps": list(out.steps.values()),
        "plan": str(out.plan),
        "keys": out.plan.walk.problem.columns,
        "entropy_error": out.plan.entropy_error,
    }


def everything(group):
    pipe = nf.NervePipeline.from_pretrained("tiny", device="cpu")
    found = {name: segmented(name, group, pipe) for name in CALLS}
    found["refused"] = []
    features = pipe.encode(generate(970_020, 64)[0])
    for image, changes in (
        (features, {}),
        (generate(970_020, 64)[0], {"max_memory": 1 if group.rank() else None}),
    ):
        try:
            pipe(image, LABELS, group=group, **changes)
        except InputError as error:
            found["refused"].append(str(error))
    return found


@pytest.fixture(scope="module")
def found():
    return together(2, everything)


@pytest.mark.parametrize("name", CALLS)
def test_two_processes_give_what_one_gives(found, pipe, name):
    alone = segmented(name, pipe=pipe)
    first, other = (one[name] for one in found)
    assert other is None
    for part in ("prior", "walked"):
        assert first[part].shape == alone[part].shape
        assert relative_error(first[part], alone[part]) <= ERROR_BOUNDS[torch.float32]
    for mine, expected in zip(first["steps"], alone["steps"], strict=True):
        assert relative_error(mine, expected) <= ERROR_BOUNDS[torch.float32]
    assert (first["label_map"] == alone["label_map"]).double().mean() > 0.999
    assert first["keys"] == alone["keys"]
    assert first["entropy_error"] == pytest.approx(alone["entropy_error"], rel=1e-2)
    assert 0 < first["entropy_error"] < 0.1
    assert f"standard error {first['entropy_error']:.1e} nats" in first["plan"]


def test_what_cannot_be_shared_is_refused_by_every_process(found):
    for one in found:
        encoded, memory = one["refused"]
        assert encoded.startswith("image holds what encode gave, and group is given")
        assert "max_memory is 1" in memory

"""Plans hold: what a call takes stays within what its plan says, in a process of its own."""

import sys

import pytest
import torch

import nerve_fast as nf
from nerve_fast.bench.harness.isolated import isolated
from nerve_fast.bench.harness.memory import Memory
from nerve_fast.pipeline import budget as budgets
from nerve_fast.tiny.scenes import generate

LABELS = ["grass", "water", "ball"]


def planned_and_taken(side, normalization, max_memory, prior="naclip"):
    """Bytes: of the plan, and resident beyond what is there once a small image has been done."""
    pipe = nf.NervePipeline.from_pretrained("tiny", device="cpu", prior=prior)
    config = nf.NerveConfig(normalization=normalization)
    image = generate(960_002, 128)[0].resize((side, side))
    pipe(image.resize((128, 128)), LABELS)
    memory = Memory("cpu")
    out = pipe(image, LABELS, config=config, processing_resolution=0, max_memory=max_memory)
    return out.plan.peak_memory, memory.peak()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("side", "normalization", "max_memory"),
    [
        (768, "shift", None),
        (384, "softmax", "500MB"),
        pytest.param(1024, "shift", "700MB", marks=pytest.mark.slow),
        pytest.param(512, "softmax", "600MB", marks=pytest.mark.slow),
    ],
)
def test_a_call_stays_within_its_plan(own_cache, side, normalization, max_memory):
    planned, taken = isolated(planned_and_taken, side, normalization, max_memory)
    assert taken <= planned
    assert taken >= planned / 8


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_prior_that_keeps_maps_of_all_heads_stays_within_its_plan(own_cache):
    # CLIP takes more than all that follows: 44 × 44 patches, whose maps are 150 MB.
    prior = nf.PriorConfig("cliper", resolution=352)
    planned, taken = isolated(planned_and_taken, 128, "shift", None, prior)
    assert taken <= planned
    assert taken >= planned / 4


def test_less_memory_means_fewer_tiles_together_and_narrower_features(monkeypatch):
    pipe = nf.NervePipeline.from_pretrained("tiny", device="cpu", dtype=torch.float32)
    request = budgets.Request(
        prior=pipe.prior,
        source=pipe.graph,
        backend="auto",
        images=1,
        image_size=(1024, 1024),
        words=3,
        labels=3,
        config=nf.NerveConfig(normalization="shift"),
        tile=256,
        overlap=32,
        global_keys="auto",
        processing_resolution=0,
    )
    monkeypatch.setattr(budgets, "CPU_PIXELS", 1 << 22)
    sizes = [1_670_000_000, 970_000_000, 530_000_000]
    plans = [request.planned(size) for size in sizes]
    assert all(plan.peak_memory <= size for plan, size in zip(plans, sizes, strict=True))
    batches = [plan.tile_batch for plan in plans]
    assert batches[0] == len(plans[0].tiling) > batches[1] > batches[2]
    dtypes = [plan.feature_dtype for plan in plans]
    assert dtypes == [torch.float32, torch.float32, torch.bfloat16]
    assert f"{batches[0]} tiles" in str(plans[0])
    with pytest.raises(budgets.DoesNotFitError, match=r"a processing resolution of \d+ would fit"):
        request.planned("300MB")

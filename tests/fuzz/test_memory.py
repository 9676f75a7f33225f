"""Plans are bounds: random settings, sizes and outputs, each in a process of its own."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nerve_fast as nf
from nerve_fast.bench.harness.isolated import isolated
from nerve_fast.bench.harness.memory import Memory
from nerve_fast.tiny.scenes import generate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

GRIDS = [(40, 40), (7, 300), (64, 64), (1, 900), (900, 1), (50, 30), (96, 96), (3, 3)]
MOST_WEIGHTS = 25_000_000
"""Entries of local weights that a case may have, which bounds its time."""

LABELS = ["grass", "water", "ball", "sky, air"]


def random_walk_case(chance: random.Random) -> dict:
    backend = chance.choice(["blocked", "blocked", "blocked", "reference"])
    grid = chance.choice(GRIDS)
    if backend == "reference" and grid[0] * grid[1] > 2000:
        grid = (45, 40)
    radii = [1, 2, 4, 8, 30, 1000]
    while (2 * min(radii[-1], max(grid) - 1) + 1) ** 2 * grid[0] * grid[1] > MOST_WEIGHTS:
        radii.pop()
    normalization = chance.choice(["softmax", "relu", "l1", "shift"])
    routes = ["dense", "streaming", *["factorized"] * (normalization in ("l1", "shift"))]
    radius = chance.choice(radii)
    return {
        "batch": chance.choice([1, 1, 3]),
        "heads": chance.choice([1, 2, 5]),
        "head_dim": chance.choice([8, 40]),
        "labels": chance.choice([1, 21, 150]),
        "grid": grid,
        "dtype": chance.choice([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
        "config": {
            "steps": chance.choice([0, 1, 3, None]),
            "alpha": chance.choice([0.3, 0.5]),
            "tolerance": 0.1,
            "radius": radius,
            "beta": chance.choice([0.0, 0.5, 1.0]),
            "normalization": normalization,
            "global_keys": chance.choice([None, None, 1, 50, 700, 10**6]),
            "sharpness": chance.choice([0.0, 1.0]),
        },
        "backend": backend,
        "route": chance.choice(routes) if backend == "blocked" else "dense",
        "weighted": chance.random() < 0.5,
        # A plan that knows no grid counts the windows of the thinnest one.
        "planned_for_the_grid": radius > 30 or chance.random() < 0.7,
    }


def walk_and_measure(case: dict) -> tuple[int, int]:
    """Bytes of the plan, and resident beyond the inputs."""
    config = nf.NerveConfig(**case["config"])
    heads, labels, dtype = case["heads"], case["labels"], case["dtype"]
    weights = torch.full((case["batch"], heads), 1 / heads) if case["weighted"] else None

    def inputs(grid):
        tokens = grid[0] * grid[1]
        q, k = torch.randn(2, case["batch"], heads, tokens, case["head_dim"]).to(dtype)
        return q, k, torch.rand(case["batch"], tokens, labels).to(dtype)

    with torch.inference_mode():
        nf.random_walk(*inputs((4, 4)), (4, 4), head_weights=weights, backend=case["backend"])
        q, k, prior = inputs(case["grid"])
        plan = nf.plan(
            q.shape,
            labels,
            config=config,
            dtype=dtype,
            backend=case["backend"],
            route=case["route"],
            weights_given=case["weighted"],
            grid=case["grid"] if case["planned_for_the_grid"] else None,
            max_memory="100GB",
        )
        memory = Memory("cpu")
        nf.random_walk(q, k, prior, case["grid"], config, head_weights=weights, plan=plan)
        return plan.peak_memory, memory.peak()[0]


def measured(measure, cases: list) -> list[tuple[int, int]]:
    """Of each case, all in one process; what one leaves on the heap is given back before the next.

    A case that finds memory that another left would seem to take less, never more.
    """
    return [measure(case) for case in cases]


@pytest.mark.parametrize("count", [6, pytest.param(300, marks=pytest.mark.slow)])
def test_walks_stay_within_their_plans(chance, count):
    cases = [random_walk_case(chance) for _ in range(count)]
    for case, (planned, taken) in zip(
        cases, isolated(measured, walk_and_measure, cases), strict=True
    ):
        assert taken <= planned, case


@pytest.mark.parametrize(
    ("grid", "changes"),
    [
        ((48, 48), {"radius": 8, "normalization": "softmax"}),
        ((40, 40), {"radius": 30, "normalization": "shift"}),
        ((8, 8), {"radius": 1000}),
        ((8, 8), {"global_keys": 1_000_000}),
    ],
)
def test_no_setting_takes_memory_for_its_own_size(grid, changes):
    case = {
        "batch": 1,
        "heads": 2,
        "head_dim": 16,
        "labels": 4,
        "grid": grid,
        "dtype": torch.float32,
        "config": {"steps": 2, **changes},
        "backend": "blocked",
        "route": "streaming",
        "weighted": True,
        "planned_for_the_grid": True,
    }
    planned, taken = isolated(walk_and_measure, case)
    assert taken <= planned < 400 << 20


def random_call(chance: random.Random) -> dict:
    return {
        "size": (chance.choice([64, 200, 330]), chance.choice([64, 150, 400])),
        "prior": chance.choice(["naclip", "maskclip", "sclip", "clearclip"]),
        "labels": chance.choice([2, 4]),
        "images": chance.choice([1, 1, 2]),
        "return_steps": chance.choice([(), (1, 2, 5)]),
        "resolution": chance.choice([None, 0, 256]),
        "max_memory": chance.choice([None, "1GB"]),
        "config": {
            "steps": chance.choice([1, 2]),
            "radius": chance.choice([1, 4, 6]),
            "normalization": chance.choice(["softmax", "relu", "l1", "shift"]),
            "global_keys": chance.choice([None, None, 1, 100, 1000]),
        },
    }


def call_and_measure(case: dict) -> tuple[int, int]:
    """Bytes of the plan, and resident beyond what there is once a small image has been done."""
    pipe = nf.NervePipeline.from_pretrained("tiny", device="cpu", prior=case["prior"])
    scene = generate(960_002, 128)[0]
    labels = LABELS[: case["labels"]]
    images = [scene.resize(case["size"])] * case["images"]
    pipe(scene.resize((64, 64)), labels)
    memory = Memory("cpu")
    out = pipe(
        images,
        labels,
        config=nf.NerveConfig(**case["config"]),
        processing_resolution=case["resolution"],
        batch_size=case["images"],
        return_steps=case["return_steps"],
        max_memory=case["max_memory"],
    )
    return out[0].plan.peak_memory, memory.peak()[0]


@pytest.mark.parametrize("count", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_calls_stay_within_their_plans(own_cache, chance, count):
    cases = [random_call(chance) for _ in range(count)]
    for case, (planned, taken) in zip(
        cases, isolated(measured, call_and_measure, cases), strict=True
    ):
        assert taken <= planned, case


def draw_and_measure(case: tuple) -> tuple[int, int]:
    """Bytes of the bound, and resident beyond the image while results are drawn and written."""
    from nerve_fast.pipeline.asked import SegmentSettings
    from nerve_fast.pipeline.budget import drawing_memory
    from nerve_fast.pipeline.output import SegmentationOutput
    from nerve_fast.pipeline.results import write

    folder, size, labels, pictures = case

    def results(size):
        maps = torch.rand(labels, 8, 8).softmax(0)
        return SegmentationOutput(
            label_map=torch.randint(-1, labels, size[::-1]),
            labels=tuple(f"label {number}" for number in range(labels)),
            image=Image.effect_noise(size, 50).convert("RGB"),
            prior=maps,
            walked=maps,
            steps={10: maps},
            steps_taken=10,
            plan=None,
        )

    asked = SegmentSettings(
        images=["a.png"],
        labels=["a", "b"],
        output=folder,
        save_heatmaps=pictures,
        save_steps=pictures,
        save_probabilities=pictures,
    )
    # Fonts and encoders.
    write(results((32, 32)), Path(folder) / "small", asked, {})
    out = results(size)
    memory = Memory("cpu")
    write(out, Path(folder) / "large", asked, {})
    bound = drawing_memory(size, labels, heat_maps=pictures, steps=pictures, probabilities=pictures)
    # The label map is there before.
    return bound, memory.peak()[0] + 8 * size[0] * size[1]


@pytest.mark.parametrize(
    "sizes",
    [
        [((900, 600), 3), ((3, 6_000), 5), ((4_000, 2), 30)],
        # Probabilities of many labels take minutes to compress, and no more memory than one's.
        pytest.param(
            [((3, 60_000), 5), ((40_000, 2), 30), ((6000, 6000), 3)], marks=pytest.mark.slow
        ),
    ],
)
def test_results_are_drawn_and_written_within_the_bound(tmp_path, sizes):
    cases = [(str(tmp_path), *size, pictures) for size in sizes for pictures in (False, True)]
    cases.append((str(tmp_path), sizes[-1][0], 171, False))
    for case, (bound, taken) in zip(
        cases, isolated(measured, draw_and_measure, cases), strict=True
    ):
        assert taken <= bound, case


def test_written_probabilities_are_those_of_the_result(pipe, tmp_path):
    image = generate(960_002, 128)[0].resize((150, 90))
    out = pipe(image, LABELS, processing_resolution=0)
    out.save(tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as arrays:
        assert sorted(arrays) == ["label_map", "labels", "probabilities"]
        np.testing.assert_allclose(
            arrays["probabilities"], out.probabilities.numpy(), rtol=1e-6, atol=1e-7
        )
        assert np.array_equal(arrays["label_map"], out.label_map.numpy())
        assert arrays["labels"].tolist() == LABELS


def test_segment_refuses_results_that_cannot_be_drawn_within_the_memory(
    own_cache, tmp_path, caplog
):
    from nerve_fast.cli.main import main

    Image.new("RGB", (4000, 4000), "green").save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), "--labels", "grass; water", "-o", str(tmp_path / "out")]
    options = ["--models", "tiny", "--device", "cpu", "--max-memory", "400MB"]
    assert main(["segment", *arguments, *options]) == 2
    assert "drawing and writing the results of 4000 × 4000 pixels" in caplog.text
    assert not list((tmp_path / "out").glob("a.*"))


def resident_after_calls(calls: int, seed: int) -> list[int]:
    """Resident bytes after each call of random size, beyond those after the first."""
    chance = random.Random(seed)
    pipe = nf.NervePipeline.from_pretrained("tiny", device="cpu")
    scene = generate(960_002, 128)[0]
    config = nf.NerveConfig(steps=2)
    pipe(scene.resize((500, 500)), LABELS, config=config, processing_resolution=0)
    memory = Memory("cpu")
    resident = []
    for _ in range(calls):
        size = chance.randrange(40, 500), chance.randrange(40, 500)
        pipe(scene.resize(size), LABELS, config=config, processing_resolution=0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * os.sysconf("SC_PAGE_SIZE") - memory.before)
    return resident


@pytest.mark.slow
def test_calls_of_many_sizes_leave_no_more_than_one_leaves(own_cache, chance):
    """No limit of the machine: what the slack of a plan says that the allocator keeps."""
    resident = isolated(resident_after_calls, 300, chance.randrange(2**31))
    print([size >> 20 for size in resident])
    assert max(resident) <= 256 << 20
    # And there is no growth: the last calls leave what the first ones leave.
    assert max(resident[-100:]) <= max(resident[:100]) + (64 << 20)


def test_words_in_memory_have_a_bound(pipe, monkeypatch):
    from nerve_fast.backbones import words as module

    words = pipe.prior.clip
    monkeypatch.setattr(words, "_embeddings", {})
    monkeypatch.setattr(module, "MOST_WORDS", 3)
    expected = words.encode_words(["a", "b", "c", "d", "e"])
    assert [word for _, word in words._embeddings] == ["c", "d", "e"]
    assert torch.equal(words.encode_words(["e", "a"]), expected[[4, 0]])
    assert [word for _, word in words._embeddings] == ["d", "e", "a"]


def test_words_on_disk_have_a_bound(tmp_path, monkeypatch):
    from nerve_fast.backbones import text_cache

    monkeypatch.setattr(text_cache, "MOST_FILES", 3)
    monkeypatch.setattr(text_cache, "LOOKED_AFTER", 1)
    cache = text_cache.TextCache(tmp_path, {"model": "one"})
    foreign = tmp_path / "text" / "notes.safetensors"
    foreign.parent.mkdir()
    foreign.write_text("somebody's")
    for word in "abcde":
        cache.write(word, torch.rand(4))
        for file in (tmp_path / "text").glob("?" * 64 + ".safetensors"):
            # Time stamps of files that are written at once may be equal.
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 10))
    kept = [word for word in "abcde" if cache.read(word) is not None]
    assert kept == ["c", "d", "e"]
    assert foreign.exists()


def test_the_panel_is_bounded_as_the_plan_says():
    from nerve_fast.imaging import visualize

    narrow = Image.new("RGB", (1, 50_000))
    sheet = visualize.heat_maps(narrow, np.full((2, 4, 4), 0.5, np.float32), ["a", "b"])
    assert sheet.height <= visualize.MAX_PANEL_ASPECT * visualize.PANEL_WIDTH + 40

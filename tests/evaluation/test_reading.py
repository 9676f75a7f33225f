"""An image too large for the memory ends no run; what is counted for a pixel is enough."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from nerve_fast.bench.harness.isolated import isolated
from nerve_fast.bench.harness.memory import Memory
from nerve_fast.cli.main import main
from nerve_fast.evaluation import reading
from nerve_fast.tiny.scenes import NAMES


def arguments(root, out, *flags):
    given = ("--dataset", "folder", "--root", root, "--models", "tiny", "--device", "cpu")
    return [str(part) for part in ("evaluate", *given, "-o", out, *flags)]


def with_a_large_image(make_folder_set, side):
    """The root of two small scenes and, between them, an image of ``side`` × ``side`` pixels."""
    root = make_folder_set([990_300, 990_301])
    (root / "images" / "scene1.png").rename(root / "images" / "z.png")
    (root / "masks" / "scene1.png").rename(root / "masks" / "z.png")
    Image.new("RGB", (side, side), "green").save(root / "images" / "vast.png")
    truth = np.random.default_rng(0).integers(0, len(NAMES), (side, side), dtype=np.uint8)
    Image.fromarray(truth).save(root / "masks" / "vast.png")
    return root


@pytest.mark.parametrize("command", ["evaluate", "ablate"])
def test_an_image_too_large_for_the_memory_is_named(
    make_folder_set, tmp_path, monkeypatch, capsys, command
):
    root = with_a_large_image(make_folder_set, 300)
    free = reading.memory_of((300, 300), 1, None) - 1
    monkeypatch.setattr(reading, "free_memory", lambda device: free)
    given = arguments(root, tmp_path / "out", "--refiner", "none")
    if command == "ablate":
        given = ["ablate", "steps", *given[1:-2]]
    assert main(given) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "vast.png" in line]
    assert len(said) == 1
    assert "300 × 300 pixels take up to" in said[0]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["failed"] == 1
    assert results["images"] == 2


def planned_and_taken(root, out, refiner):
    """Bytes of an evaluation of the large image, beyond those of one that has loaded all."""
    assert main(arguments(root, out / "warm", "--refiner", refiner, "--limit", 1)) == 0
    planned, memory_of = [], reading.memory_of
    reading.memory_of = lambda *given: planned.append(memory_of(*given)) or planned[-1]
    memory = Memory("cpu")
    assert main(arguments(root, out / "whole", "--refiner", refiner, "--draw", 1)) == 0
    return max(planned), memory.peak()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("refiner", ["walk", "pamr"])
def test_what_is_counted_for_a_pixel_is_enough(make_folder_set, tmp_path, refiner):
    root = with_a_large_image(make_folder_set, 2600)
    planned, taken = isolated(planned_and_taken, root, tmp_path, refiner)
    assert planned / 4 <= taken <= planned

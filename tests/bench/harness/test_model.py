"""The model of times: what of a kernel's work overlaps, by what it was compiled to."""

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)

from nerve_fast.bench.harness import floors, model
from nerve_fast.bench.harness.case import Setting
from nerve_fast.bench.harness.chips import CHIPS
from nerve_fast.kernels.compiled import Compiled
from nerve_fast.kernels.instructions import Instructions
from nerve_fast.kernels.launch import Config, Launch

H100 = CHIPS["sm_90"]
SETTING = Setting(16_384, dtype="bfloat16")


def predicted(name="streaming_step", programs=132, **changes):
    fields = {
        "target": "sm_90",
        "dtype": "bfloat16",
        "kernel": name,
        "variant": "",
        "warps": 8,
        "stages": 2,
        "registers": 128,
        "shared": 200 << 10,
        "spilled": 0,
        "matrix": "wgmma",
        "instructions": Instructions({}, (changes.pop("depth", 0),), 0, 0, {}, {}, {"16": 1}),
    }
    compiled = Compiled(**{**fields, **changes})
    kernel = SimpleNamespace(__name__=f"{name}_kernel")
    started = Launch(kernel, programs, {}, Config.of(8, 2, BM=128, BN=64))
    return model.predict(H100, SETTING, started, compiled)


def test_parts_are_work_over_rates():
    found = predicted()
    cycles = 132 * 1.755e9
    pairs = 16_384**2
    assert found.parts["products"] == pytest.approx(2 * pairs * (320 + 32) / (4096 * cycles))
    assert found.parts["exponentials"] == pytest.approx(pairs / (16 * cycles))
    # K and the values once for each of 128 row tiles.
    assert found.parts["cache"] == pytest.approx(128 * 16_384 * (320 + 32) * 2 / 5.5e12)
    assert found.floor == pytest.approx(
        floors.streaming_step(16_384).seconds(4096 * cycles, 3.35e12)
    )


def test_copies_that_are_waited_for_where_they_are_issued_hide_behind_nothing():
    two, three = predicted(depth=0), predicted(depth=6)
    parts = two.parts
    computing = parts["products"] + parts["exponentials"]
    launch = parts["launch"]
    assert two.seconds == pytest.approx(computing + parts["cache"] + launch)
    assert three.seconds == pytest.approx(max(computing, parts["cache"]) + launch)


def test_a_second_program_hides_exponentials_and_copies():
    found = predicted(shared=100 << 10)
    assert found.resident == 2
    parts = found.parts
    most = max(parts["products"], parts["exponentials"], parts["cache"])
    assert found.seconds == pytest.approx(most + parts["launch"])


def test_registers_warps_and_shared_memory_limit_what_is_resident():
    assert predicted(shared=0, registers=32).resident == 8
    assert predicted(shared=0, registers=255).resident == 1
    assert predicted(shared=50 << 10, registers=32).resident == 4


def test_a_last_round_that_is_not_full_counts_as_one():
    full, more = predicted(programs=132), predicted(programs=133)
    assert more.parts["products"] == pytest.approx(full.parts["products"] * 2 * 132 / 133)


def test_the_older_instruction_is_slower_and_no_model_is_said():
    assert predicted(matrix="mma").parts["products"] > predicted().parts["products"]
    assert predicted("no_such") is None


def test_every_kernel_that_starts_has_a_model():
    for target in CHIPS:
        for one in model.launches(target, Setting(256, dtype="bfloat16")):
            name = one.kernel.__name__.removesuffix("_kernel")
            known = model.works(SETTING, dict(one.config.blocks), 0)
            assert name in known, f"{name}: add its work to bench/harness/model.py"


def test_the_command_prints_prediction_beside_floor():
    command = [sys.executable, "-m", "bench.harness.model", "--target", "sm_90"]
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [*command, "--tokens", "4096", "--kernel", "spread"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "H100 (sm_90), bfloat16, N = 4,096"
    assert second.split()[0] == "spread"
    assert "floor" in second
    assert "registers" in second

import dataclasses

import pytest

from nerve_fast.bench.harness.case import Setting
from nerve_fast.bench.harness.row import Row
from nerve_fast.bench.pages import bars


def test_bars_and_regret(document):
    judged = {bar.what: bar for bar in bars.judge(document)}
    regret = judged["auto takes blocked dense, N = 4,096, softmax, float32: of the best time"]
    assert regret.value == 1
    assert regret.met
    reference = judged["shift, factorized, float32, N = 16,384: times faster than the reference"]
    assert reference.met is None
    assert "not measured" in str(reference)
    document["rows"][1]["seconds"] = 0.1
    (regret,) = [bar for bar in bars.judge(document) if bar.what.startswith("auto takes")]
    assert regret.value == 2
    assert regret.met is False
    assert str(regret).startswith("MISSED")


def test_a_bar_finds_its_rows(document, row):
    ways = {"normalization": "shift"}
    for one in (
        row("blocked factorized", 0.1, 16_384, **ways),
        row("reference", 30.0, 16_384, **ways),
    ):
        document["rows"].append(dataclasses.asdict(one))
    judged = {bar.what: bar for bar in bars.judge(document)}
    what = "shift, factorized, float32, N = 16,384"
    assert judged[f"{what}: times faster than the reference"].value == pytest.approx(300)
    assert judged[f"{what}: share of its memory"].met is False


@pytest.mark.parametrize(
    ("mine", "other", "named"),
    [
        # Seconds of the first run, and rounds.
        ((0.1, 8), (30.0, 1), True),
        ((0.3, 1), (30.0, 1), True),
        ((0.1, 1), (30.0, 1), False),
        ((0.1, 8), (60.0, 1), False),
        ((0.1, 8), (30.0, 3), False),
    ],
)
def test_a_cold_run_beside_a_warm_one_is_named(document, row, mine, other, named):
    for who, seconds, (first_seconds, rounds) in (
        ("blocked factorized", 0.1, mine),
        ("reference", 30.0, other),
    ):
        timed = row(who, seconds, 16_384, normalization="shift")
        timed = dataclasses.replace(timed, rounds=rounds, first_seconds=first_seconds)
        document["rows"].append(dataclasses.asdict(timed))
    judged = {bar.what: bar for bar in bars.judge(document)}
    who = "the reference's first run" if named else "the reference"
    what = f"shift, factorized, float32, N = 16,384: times faster than {who}"
    assert judged[what].value == pytest.approx(300)


def test_gpu_bars_take_single_steps_from_differences(document):
    document["machine"]["kind"] = "cuda"
    rows = []
    for steps, seconds in ((1, 1e-3), (50, 50e-3)):
        setting = Setting(16_384, steps=steps, dtype="bfloat16", device="cuda")
        rows.append(
            dataclasses.asdict(
                Row("walk", "triton streaming", dataclasses.asdict(setting), seconds=seconds)
            )
        )
    document["rows"] = rows
    judged = {bar.what: bar for bar in bars.judge(document)}
    bar = judged["streaming step, N = 16,384: TFLOP/s, bfloat16"]
    # 2 N² (320 + 32) operations in a millisecond.
    assert bar.value == pytest.approx(2 * 16_384**2 * 352 / 1e-3 / 1e12)
    assert judged["whole stage, N = 4,096: µs, float16"].met is None

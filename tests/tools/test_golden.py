"""The committed table of what kernels are compiled to, in a process that does not interpret."""

import os
import subprocess
import sys

import pytest

from tools import golden


def run(*arguments):
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.golden", *arguments]
    done = subprocess.run(
        command, cwd=golden.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == golden.NO_TABLE:
        pytest.skip(done.stdout.strip())
    return done


def test_a_few_kernels_are_compiled_to_what_the_table_says():
    done = run("--check", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels compiled by triton" in done.stdout


@pytest.mark.slow
def test_all_kernels_are_compiled_to_what_the_table_says():
    done = run("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_change_shows_as_a_line_before_and_after():
    lines = [
        ' "sm_90 bfloat16 pack": {"registers": 46}',
        ' "sm_90 float16 pack": {"registers": 46}',
    ]
    assert golden.differences(lines, lines) == []
    shown = golden.differences(lines, [lines[0], lines[1].replace("46", "47")])
    assert [line[0] for line in shown] == ["-", "+"]
    assert '"registers": 47' in shown[1]
    assert golden.differences(lines, lines[:1]) == [f"-{lines[1]}"]


def test_the_tables_say_what_fast_kernels_need():
    tables = sorted(golden.FOLDER.glob("triton-*.json"))
    assert tables
    for path in tables:
        for key, row in golden.read(path).items():
            target, _, kernel = key.split()[:3]
            if target == "sm_90":
                assert row["spilled"] == 0, key
            if "SPLIT=True" in key:
                # The last to arrive sees what the others wrote.
                assert row["atomics"] == {"atom.global.gpu.acq_rel.add.u32": 1}, key
            if kernel in ("streaming_step", "dense_step", "numerators", "head_entropy"):
                assert row["matrix"], key
                assert row["loads"]["16"] > 0, key

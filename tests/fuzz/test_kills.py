"""Runs that are killed at random moments: the next one gives what an unbroken one gives."""

import json
import multiprocessing
import signal
import sys
import time

import numpy as np
import pytest
from PIL import Image

from nerve_fast.cli.main import main
from nerve_fast.utils.files import TEMPORARY_PREFIX

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")

LONGEST = 300
"""Seconds that no run takes, however busy the machine is."""

# Runs start in a process that has imported everything and computed nothing.
CONTEXT = multiprocessing.get_context("forkserver") if sys.platform != "win32" else None

RUN = """
import os, sys
import nerve_fast.pipeline.batch, nerve_fast.evaluation.evaluate
from nerve_fast.cli.main import main

sys.stdout = sys.stderr = open({log!r}, "a", buffering=1)
left = [{calls}]

def counted(call):
    def instead(*given, **named):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), {signal})
        return call(*given, **named)
    return instead

for name in ("open", "fsync", "replace", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
code = main({arguments!r})
left[0] = -1
sys.exit(code)
"""


def started(arguments, log, calls=-1, number=signal.SIGKILL):
    """A run in a process of its own; it sends itself a signal before its ``calls``-th file call."""
    code = RUN.format(
        log=str(log), calls=calls, signal=int(number), arguments=[str(part) for part in arguments]
    )
    process = CONTEXT.Process(target=exec, args=(code, {"__name__": "run"}))
    process.start()
    return process


@pytest.fixture(scope="module")
def root(make_folder_set):
    return make_folder_set(range(990_200, 990_204))


MODELS = ("--models", "tiny", "--device", "cpu")


def segment(root, out):
    saves = ("--save-probabilities", "--save-heatmaps", "--steps", 2, "--resume")
    return ("segment", root / "images", "--labels", "grass; ball", "-o", out, *MODELS, *saves)


def evaluate(root, out):
    given = ("--dataset", "folder", "--root", root, "--refiner", "none", "--draw", 1)
    return ("evaluate", *given, "-o", out, *MODELS)


COMMANDS = {"segment": segment, "evaluate": evaluate}


def results(command, out) -> dict:
    """What a run left, by the names of files."""
    if command == "segment":
        return {path.name: path.read_bytes() for path in out.iterdir()}
    figures = json.loads((out / "results.json").read_text(encoding="utf-8"))
    figures["run"].pop("commit")
    pictures = {path.name: path.read_bytes() for path in out.glob("*.png")}
    return {"figures": figures, **pictures}


def check_whole(out):
    """Whatever has a name of a result is a whole file."""
    for path in out.glob("*") if out.exists() else ():
        if path.name.startswith(TEMPORARY_PREFIX):
            continue
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                assert all(arrays[name].size for name in arrays.files)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))


def temporary(out) -> list[str]:
    return [path.name for path in out.rglob(f"{TEMPORARY_PREFIX}*")] if out.exists() else []


@pytest.fixture(scope="module")
def unbroken(root, tmp_path_factory, own_cache):
    """Results of an unbroken run of each command, and how long it takes where all is loaded."""
    CONTEXT.set_forkserver_preload(["nerve_fast.pipeline.batch", "nerve_fast.evaluation.evaluate"])
    found = {}
    for name, command in COMMANDS.items():
        out = tmp_path_factory.mktemp(name) / "out"
        begun = time.monotonic()
        process = started(command(root, out), out.parent / "log")
        process.join(LONGEST)
        assert process.exitcode == 0, (out.parent / "log").read_text()
        found[name] = results(name, out), time.monotonic() - begun
    return found


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("count", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_a_killed_run_is_gone_on_with(root, unbroken, tmp_path, chance, capsys, command, count):
    expected, seconds = unbroken[command]
    for number in range(count):
        out, log = tmp_path / str(number) / "out", tmp_path / str(number) / "log"
        out.parent.mkdir()
        kills = []
        for _ in range(chance.choice([1, 1, 2])):
            if chance.randrange(3):
                calls = chance.randrange(1, 60)
                kills.append(f"before file call {calls}")
                process = started(COMMANDS[command](root, out), log, calls)
            else:
                delay = chance.uniform(0, 1.2 * seconds)
                kills.append(f"after {delay:.2f} s")
                process = started(COMMANDS[command](root, out), log)
                process.join(delay)
                process.kill()
            process.join(LONGEST)
            assert process.exitcode in (0, -signal.SIGKILL), (kills, log.read_text())
            check_whole(out)
        which = f"{number}: {command}, {', '.join(kills)}"
        assert main([str(part) for part in COMMANDS[command](root, out)]) == 0, which
        found = results(command, out)
        assert sorted(found) == sorted(expected), which
        for name in expected:
            assert found[name] == expected[name], f"{which}: {name}"
        assert temporary(out) == [], which
    capsys.readouterr()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("count", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_an_interrupted_run_leaves_nothing_half_written(
    root, unbroken, tmp_path, chance, command, count
):
    for number in range(count):
        out, log = tmp_path / str(number) / "out", tmp_path / str(number) / "log"
        out.parent.mkdir()
        calls = chance.randrange(1, 60)
        process = started(COMMANDS[command](root, out), log, calls, signal.SIGINT)
        process.join(LONGEST)
        said = log.read_text()
        assert process.exitcode in (0, 130), (calls, said)
        assert "Traceback" not in said, (calls, said)
        assert ("nerve-fast: interrupted" in said) == (process.exitcode == 130), (calls, said)
        check_whole(out)
        assert temporary(out) == [], calls

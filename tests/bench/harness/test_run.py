"""The command `nerve-fast bench`."""

import subprocess
import sys
from pathlib import Path

import pytest

from nerve_fast.bench.harness import run
from nerve_fast.bench.harness.results import Results, load


def test_an_interruption_within_a_run(machine, tmp_path, monkeypatch, capsys, row):
    output = tmp_path / "here.json"
    earlier = '{\n "schema": 1}'
    output.write_text(earlier)
    monkeypatch.setattr(run, "Machine", lambda device: machine)
    monkeypatch.setattr(machine, "measure_ceilings", lambda: None)
    measured = []

    def measure(case, *others):
        if measured:
            raise KeyboardInterrupt
        measured.append(case)
        return row("blocked dense", 1.0)

    monkeypatch.setattr(run, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        run.bench(machine.device, "quick", ["walk"], [64], output)
    assert output.read_text() == earlier
    unfinished = tmp_path / "here.unfinished.json"
    assert len(load(unfinished)["rows"]) == 1
    assert f"what was measured is in {unfinished}" in capsys.readouterr().out


def test_a_part_is_not_measured_where_it_could_not_be_kept(
    machine, tmp_path, monkeypatch, capsys, row
):
    from nerve_fast.cli.main import main

    monkeypatch.setattr(run, "results_folder", lambda: tmp_path)
    command = ["bench", "--op", "head entropy", "--tokens", "64", "--device", "cpu", "--update"]
    assert main(command) == 2
    assert "not results that can be read" in capsys.readouterr().err
    results = Results(machine, tmp_path / f"{machine.slug}.json", tier="full")
    results.document["machine"]["torch"] = "1.0"
    results.add(row("ours", 1.0))
    results.finish()
    assert main(command) == 2
    assert "is of torch 1.0, here is" in capsys.readouterr().err


def test_the_command_measures_in_processes_of_their_own(tmp_path):
    output = tmp_path / "here.json"
    command = [sys.executable, "-m", "nerve_fast", "bench", "--quick", "--op", "head entropy"]
    done = subprocess.run(
        [*command, "--tokens", "64", "--output", str(output)],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    assert done.returncode == 0, done.stderr
    assert f"3 rows, 0 failed; written to {output}" in done.stdout
    rows = load(output)["rows"]
    assert {one["contender"] for one in rows} == {"blocked", "reference", "SDPA"}
    assert all(one["seconds"] and one["resident"] is not None for one in rows)


def test_mistakes_are_named(capsys):
    from nerve_fast.cli.main import main

    assert main(["bench", "--op", "sorting"]) == 2
    assert "--op is 'sorting'; expected one of walk, graph stage" in capsys.readouterr().err
    assert main(["bench", "--tokens", "3"]) == 2
    assert "--tokens is 3; expected 16 or more" in capsys.readouterr().err
    assert main(["bench", "--update"]) == 2
    assert "--update goes with --op or --tokens" in capsys.readouterr().err
    assert main(["bench", "--compare", "no.json", "no.json"]) == 2
    assert "no.json: not results that can be read" in capsys.readouterr().err
    assert main(["bench", "--quick", "-o", str(Path(__file__) / "x.json")]) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert main(["bench", "--quick", "-o", str(Path(__file__).parent)]) == 2
    assert "is a folder; expected the name of a file" in capsys.readouterr().err
    assert main(["bench", "--quick", "--op", "local walk"]) == 2
    assert "tier quick has no cases of local walk; leave out --quick" in capsys.readouterr().err

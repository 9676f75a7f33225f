import dataclasses
import itertools
import json
import logging

import pytest
import torch
from triton.runtime.errors import OutOfResources

from nerve_fast.dispatch import tuning
from nerve_fast.kernels import configs, entropy

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """An empty cache folder, and a process that has measured nothing."""
    monkeypatch.setenv("NERVE_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(configs, "tuned", {})
    tuning.load.cache_clear()
    yield
    tuning.load.cache_clear()


@pytest.fixture
def run(make_qk):
    q, k = make_qk(1, 64, 16, dtype=torch.float16)
    return lambda: entropy.head_entropy(q, k)


def candidates():
    """The configurations of :func:`run` that so few tokens have programs for."""
    return [one for one in configs.CANDIDATES["head_entropy"]["16"] if dict(one.blocks)["BM"] <= 64]


def slow_but(fastest):
    """A clock that finds the ``fastest``-th of its measurements the fastest."""
    turn = itertools.count()
    return lambda function: float(next(turn) != fastest)


@pytest.mark.parametrize("fastest", [0, 2])
def test_the_fastest_is_used_and_kept(run, fastest):
    timings = list(tuning.tune(run, slow_but(fastest)))
    ((key, best),) = configs.tuned.items()
    options = candidates()
    assert len(timings) == len(options)
    assert best == options[fastest]
    assert dataclasses.asdict(best) == timings[fastest].config
    assert key.startswith("cpu: head_entropy float16 2^7")
    tuning.save(CPU)
    configs.tuned.clear()
    tuning.load(CPU)
    assert configs.tuned == {key: best}
    x = torch.empty(0, dtype=torch.float16)
    shape = {"kept": 32, "aligned": True, "most": 64}
    assert configs.config_for("head_entropy", x, 100, **shape) == best
    assert configs.config_for("head_entropy", x, 1000, **shape) == options[0]


def test_a_configuration_that_does_not_fit_is_left_out(run, caplog):
    turn = itertools.count()

    def clock(function):
        if next(turn) == 0:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return 1.0

    options = candidates()
    with caplog.at_level(logging.WARNING, logger="nerve_fast"):
        assert len(list(tuning.tune(run, clock))) == len(options) - 1
    assert list(configs.tuned.values()) == [options[1]]
    assert "shared memory" in caplog.text


def test_fixed_configurations_on_request(run, monkeypatch, caplog):
    list(tuning.tune(run, slow_but(1)))
    tuning.save(CPU)
    configs.tuned.clear()
    monkeypatch.setenv("NERVE_FAST_TUNING", "fixed")
    tuning.load(CPU)
    assert not configs.tuned
    tuning.load.cache_clear()
    monkeypatch.setenv("NERVE_FAST_TUNING", "fixd")
    with caplog.at_level(logging.WARNING, logger="nerve_fast"):
        tuning.load(CPU)
    assert configs.tuned
    assert "NERVE_FAST_TUNING is 'fixd'; expected 'fixed', or nothing" in caplog.text


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": {"blocks": 1}}', '{"a": 1}'])
def test_a_damaged_file_is_a_warning(text, caplog):
    path = tuning.tuning_file(CPU)
    path.parent.mkdir()
    path.write_text(text)
    with caplog.at_level(logging.WARNING, logger="nerve_fast"):
        tuning.load(CPU)
    assert f"{path} cannot be read, or is damaged: run `nerve-fast tune` again" in caplog.text
    assert not configs.tuned


def test_a_configuration_of_another_version_is_not_taken():
    x = torch.empty(0, dtype=torch.float16)
    key = configs.tuning_key("spread", x, 100)
    configs.tuned[key] = configs.Config.of(1, 1, BM=8)
    assert configs.config_for("spread", x, 100) == configs.CANDIDATES["spread"][""][0]


def test_every_operation_is_tuned():
    timings = list(tuning.tune_operations((2, 12, 16), 2, CPU, torch.float16, lambda run: 1.0))
    kernels = {timing.key.split()[1] for timing in timings}
    assert kernels >= {
        "cosine_affinity",
        "local_affinity",
        "head_entropy",
        "numerators",
        "dense_step",
        "streaming_step",
        "row_statistic",
        "moments",
        "factorized_step",
    }
    assert json.loads(tuning.save(CPU).read_text()).keys() == configs.tuned.keys()

import itertools
import logging
import re

import pytest
import torch

import nerve_fast as nf
from nerve_fast.dispatch import machine, planning
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.numerics import steps_to_limit
from nerve_fast.utils.units import format_bytes, format_seconds, parse_bytes

SHAPE = (5, 16384, 64)


def config(normalization):
    return nf.NerveConfig(normalization=normalization)


def plan(*arguments, **options):
    return nf.plan(*arguments, **{"max_memory": "16GB", **options})


@pytest.mark.parametrize(
    ("normalization", "route"),
    [("shift", "factorized"), ("l1", "factorized"), ("softmax", "dense"), ("relu", "dense")],
)
def test_the_fastest_exact_route_is_taken(normalization, route):
    chosen = plan(SHAPE, 21, config=config(normalization))
    assert (chosen.backend, chosen.route) == ("blocked", route)


def test_the_budget_turns_the_dial_from_dense_to_streaming():
    budgets = ["16GB", "1GB", "600MB", "400MB"]
    plans = [plan(SHAPE, 21, max_memory=budget) for budget in budgets]
    stored = [chosen.stored_rows for chosen in plans]
    assert stored[0] == 16384
    assert stored == sorted(stored, reverse=True)
    assert len(set(stored)) == 4
    assert all(
        chosen.peak_memory <= parse_bytes(budget)
        for chosen, budget in zip(plans, budgets, strict=True)
    )
    seconds = [chosen.seconds for chosen in plans]
    assert seconds == sorted(seconds)
    assert "keeping" in plans[1].reason
    smallest = plan(SHAPE, 21, route="streaming").peak_memory
    assert plan(SHAPE, 21, max_memory=smallest).route == "streaming"


def test_a_budget_too_small_is_refused_with_what_would_do():
    with pytest.raises(nf.InputError, match=r"max_memory is 50 MB; this walk needs at least") as e:
        plan(SHAPE, 21, max_memory="50MB")
    needed = str(e.value).split("at least ")[1].split(" (")[0]
    assert parse_bytes(needed) == pytest.approx(
        plan(SHAPE, 21, route="streaming").peak_memory, 0.01
    )


def test_auto_never_fails_for_want_of_memory(monkeypatch):
    monkeypatch.setattr(planning, "free_memory", lambda device: 1280)
    chosen = nf.plan(SHAPE, 21)
    assert chosen.route == "streaming"
    assert "more than the 1.02 KB free" in chosen.reason


@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_an_explicit_backend_is_kept(backend):
    chosen = plan((5, 1024, 64), 21, config=config("shift"), backend=backend)
    assert chosen.backend == backend
    with nf.use_backend(backend):
        assert plan((5, 1024, 64), 21).backend == backend


@pytest.mark.parametrize("route", ["dense", "streaming", "factorized"])
def test_an_explicit_route_is_kept(route):
    assert plan((5, 1024, 64), 21, config=config("l1"), route=route).route == route


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (SHAPE, 21),
            {"route": "factorized"},
            "not exact with normalization 'softmax'; it is with",
        ),
        ((SHAPE, 21), {"route": "fast"}, "route is 'fast'; expected one of"),
        ((SHAPE, 21), {"backend": "reference", "route": "streaming"}, "'blocked' has it"),
        (
            (SHAPE, 21),
            {"backend": "triton", "dtype": torch.float64},
            "'triton' takes float16, .*not float64",
        ),
        ((SHAPE, 21), {"max_memory": "lots"}, 'expected a size above 0 such as "6GB"'),
        ((SHAPE, 21), {"max_memory": 0}, "max_memory is 0"),
        ((SHAPE, 0), {}, "num_labels is 0; expected 1 or more"),
        (((5, 0, 64), 21), {}, r"shape is \(5, 0, 64\); expected"),
        (((4096, 64), 21), {}, r"shape is \(4096, 64\); expected \(…, H, N, D\)"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments, options, message):
    with pytest.raises(nf.InputError, match=message):
        plan(*arguments, **options)


def test_a_plan_reads_as_a_sentence_and_lists_every_route():
    chosen = plan(SHAPE, 21)
    assert str(chosen).startswith("blocked / dense: the fastest of")
    assert str(chosen).endswith("beyond the inputs.")
    table = chosen.table().splitlines()
    assert len(table) == 8
    for line in table[1:4]:
        assert re.search(r"^triton .* [MG]B +- +\w", line)
    assert "not exact with 'softmax'" in table[4]
    assert "taken" in table[5]
    assert "slower" in table[6]
    assert "needs more than the 16 GB there are" in table[7]


def test_the_walk_follows_its_plan_and_logs_it(make_qk, make_prior, caplog):
    q, k = make_qk(1, 12, 4)
    with caplog.at_level(logging.DEBUG, logger="nerve_fast"):
        nf.random_walk(q, k, make_prior(12, 2), (3, 4), config("shift"))
    assert "blocked / factorized" in caplog.text


def test_sixteen_bits_halve_a_stored_matrix(monkeypatch):
    from nerve_fast.blocked import precision

    monkeypatch.setattr(precision, "bfloat16_pays", lambda: True)
    wide, narrow = (
        plan((5, 16384, 64), 21, dtype=dtype).peak_memory
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert narrow < 0.65 * wide


def test_a_control_group_limits_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    cpu = torch.device("cpu")
    unlimited = machine.free_memory(cpu)
    assert unlimited > 1 << 20
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert machine.free_memory(cpu) == 2000000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory(cpu) > 1 << 20
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("5000")
    (tmp_path / "memory/memory.usage_in_bytes").write_text("6000")
    assert machine.free_memory(cpu) == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GB", 6 * 10**9), ("1.5 GiB", 3 << 29), ("512mib", 512 << 20), (1000, 1000), ("7", 7)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_bytes(text) == size


def test_sizes_and_times_are_written_with_units():
    assert [format_bytes(n) for n in (999, 1500, 2.5e9, 3e15)] == [
        "999 B",
        "1.5 KB",
        "2.5 GB",
        "3e+03 TB",
    ]
    assert [format_seconds(s) for s in (0.0123, 2.5, 150, 9000)] == [
        "12 ms",
        "2.5 s",
        "2 min",
        "2.5 h",
    ]


def test_clusters_are_what_a_plan_counts():
    exact, clustered, more = (
        plan(SHAPE, 4, config=nf.NerveConfig(global_keys=n), route="dense", backend="blocked")
        for n in (None, 512, 10**6)
    )
    assert exact.bytes == SHAPE[-2] // 512 * clustered.bytes
    assert (more.bytes, more.peak_memory) == (exact.bytes, exact.peak_memory)
    assert clustered.flops < exact.flops
    with pytest.raises(nf.errors.InputError, match="expected h · w = 4096"):
        plan((5, 4096, 64), 4, grid=(64, 63))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"shape": 5}, TypeError, r"shape is 5; expected \(…, H, N, D\)"),
        ({"shape": (5, 16.0, 64)}, TypeError, "shape is .*; expected whole numbers"),
        ({"shape": (True, 16, 64)}, TypeError, "shape is .*; expected whole numbers"),
        ({"num_labels": 2.5}, TypeError, "num_labels is 2.5; expected a whole number"),
        ({"num_labels": None}, TypeError, "num_labels is None; expected a whole number"),
        ({"config": {"alpha": 1}}, TypeError, "config is a dict; expected a nerve_fast.Nerve"),
        ({"device": "gpu9"}, ValueError, "device is 'gpu9'; expected a torch.device or its name"),
        ({"device": 1.5}, ValueError, "device is 1.5; expected a torch.device or its name"),
        ({"dtype": "float32"}, TypeError, "dtype is 'float32'; expected a floating torch.dtype"),
        ({"dtype": torch.int64}, TypeError, "dtype is torch.int64; expected a floating"),
        ({"backend": None}, ValueError, "backend is None; expected one of auto"),
        ({"route": 3}, ValueError, "route is 3; expected one of auto"),
        ({"weights_given": 1}, TypeError, "weights_given is 1; expected True or False"),
        ({"requires_grad": "no"}, TypeError, "requires_grad is 'no'; expected True or False"),
        ({"grid": 4096}, TypeError, "grid is 4096; expected"),
        ({"grid": (4, 4, 256)}, ValueError, r"grid is \(4, 4, 256\); expected h · w = 4096"),
        ({"grid": (-64, -64)}, ValueError, "expected h · w = 4096"),
        ({"grid": (64.0, 64)}, TypeError, "grid is .*; expected whole numbers"),
    ],
)
def test_arguments_of_a_plan_are_checked(changes, error, message):
    arguments = {"shape": (5, 4096, 64), "num_labels": 4, **changes}
    with pytest.raises(error, match=message):
        nf.plan(**arguments)


def test_the_limit_is_planned_with_the_steps_that_its_tolerance_can_take():
    steps = steps_to_limit(0.9, 1e-3)
    assert 2 * 0.9**steps <= 1e-3 < 2 * 0.9 ** (steps - 1)
    fixed, limit = (
        plan(SHAPE, 21, config=nf.NerveConfig(steps=n, tolerance=1e-3)) for n in (steps, None)
    )
    assert (limit.flops, limit.bytes, limit.route) == (fixed.flops, fixed.bytes, fixed.route)


@pytest.mark.parametrize("backend", ["auto", "blocked", "reference"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_every_corner_of_the_settings_has_a_plan_that_can_be_said(normalization, backend):
    """Also where there is nothing to compute."""
    corners = itertools.product((0, 1, None), (0.0, 0.9), (0.0, 0.5, 1.0), (0.0, 1.0), (None, 7))
    for steps, alpha, beta, sharpness, keys in corners:
        settings = nf.NerveConfig(
            steps=steps,
            alpha=alpha,
            beta=beta,
            sharpness=sharpness,
            global_keys=keys,
            normalization=normalization,
        )
        for tokens, labels, weights_given in ((1, 1, True), (64, 3, True), (64, 3, False)):
            shape = (2, tokens, 8)
            chosen = plan(
                shape, labels, config=settings, backend=backend, weights_given=weights_given
            )
            assert str(chosen).startswith(chosen.backend)


@pytest.mark.parametrize("radius", [1, 2, 8])
def test_without_a_grid_the_bound_is_that_of_any(radius):
    config = nf.NerveConfig(radius=radius, normalization="shift")
    settings = {"config": config, "device": "cpu", "backend": "blocked", "max_memory": "8GB"}
    bound = nf.plan((5, 4096, 64), 21, **settings).peak_memory
    for grid in ((4096, 1), (2048, 2), (512, 8), (64, 64), (8, 512), (1, 4096)):
        assert nf.plan((5, 4096, 64), 21, grid=grid, **settings).peak_memory <= bound, grid

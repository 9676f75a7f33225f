"""The check of a first use finds what is wrong with kernels, done to them on purpose."""

import math

import pytest
import torch
import triton
import triton.language as tl

from nerve_fast.dispatch import selfcheck
from nerve_fast.kernels import affinity, dense, entropy, factorized, operands, streaming
from nerve_fast.kernels.steps import collect


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A shape that is interpreted in seconds, with columns in two splits."""
    monkeypatch.setattr(selfcheck, "SHAPE", (1, 16, (7, 11), 3))
    monkeypatch.setattr(operands.Operands, "_splits", lambda self, tiles, block_columns: 2)


@triton.jit
def collect_but_one(PARTIAL, ARRIVED, i_out, splits, BM: tl.constexpr, BK: tl.constexpr):
    return collect(PARTIAL, ARRIVED, i_out, splits - 1, BM, BK)


@pytest.fixture
def failed(device, monkeypatch):
    """``failed(dtype, *names)``: what is found wrong among what is so called, or among all."""

    def failed(dtype, *names):
        def chosen(*arguments):
            return (x for x in everything(*arguments) if not names or x[0] in names)

        everything = selfcheck._comparisons
        with monkeypatch.context() as patch:
            patch.setattr(selfcheck, "_comparisons", chosen)
            found = selfcheck.check(device, dtype)
        assert found
        return {x.what: x for x in found if not x.passed}

    return failed


def test_right_kernels_pass(failed, dtype):
    assert failed(dtype) == {}


def test_a_dropped_split_is_found(failed, monkeypatch):
    for room in (streaming, dense, factorized):
        monkeypatch.setattr(room, "collect", collect_but_one)
    routes = [f"random_walk, {name}" for name in ("streaming", "dense", "factorized")]
    found = failed(torch.float16, *routes)
    assert list(found) == routes
    one = found["random_walk, dense"]
    assert one.error > 10 * one.bound
    assert str(one).startswith("random_walk, dense in float16 is off by ")
    assert str(one).endswith(" where 0.002 is allowed")


def test_a_tile_that_is_not_written_is_found(failed, monkeypatch):
    def launch_fewer(kernel, programs, config, **arguments):
        right(kernel, programs - 1, config, **arguments)

    right = affinity.launch
    monkeypatch.setattr(affinity, "launch", launch_fewer)
    names = ["cosine_affinity", "local_affinity"]
    assert list(failed(torch.float32, *names)) == names


def test_other_bits_in_a_second_run_are_found(failed, monkeypatch):
    runs = []

    def restless(q, k, scale=None):
        runs.append(q)
        return right(q, k, scale) * (1 + 1e-6 * (len(runs) % 2))

    right = entropy.head_entropy
    monkeypatch.setattr(entropy, "head_entropy", restless)
    found = failed(torch.float32, "head_entropy", "local_affinity")
    assert set(found) == {"head_entropy"}
    assert str(found["head_entropy"]) == (
        "head_entropy in float32 gives other bits in a second run"
    )


def test_a_kernel_that_does_not_run_is_found(failed, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no image for this device\nand more")

    monkeypatch.setattr(affinity, "cosine_affinity", broken)
    found = failed(torch.float16, "head_entropy", "cosine_affinity")
    assert set(found) == {"cosine_affinity"}
    assert math.isnan(found["cosine_affinity"].error)
    assert str(found["cosine_affinity"]) == (
        "cosine_affinity in float16 fails (RuntimeError: no image for this device)"
    )


def test_nan_is_found(failed, monkeypatch):
    def spoilt(q, k, scale=None):
        out = right(q, k, scale)
        out[0] = torch.nan
        return out

    right = entropy.head_entropy
    monkeypatch.setattr(entropy, "head_entropy", spoilt)
    assert set(failed(torch.float16, "head_entropy", "cosine_affinity")) == {"head_entropy"}

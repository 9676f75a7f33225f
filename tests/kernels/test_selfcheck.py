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


def failed(device, dtype):
    return {found.what: found for found in selfcheck.check(device, dtype) if not found.passed}


def test_right_kernels_pass(device, dtype):
    assert failed(device, dtype) == {}


def test_a_dropped_split_is_found(device, monkeypatch):
    for room in (streaming, dense, factorized):
        monkeypatch.setattr(room, "collect", collect_but_one)
    found = failed(device, torch.float16)
    assert set(found) == {"random_walk, streaming", "random_walk, dense", "random_walk, factorized"}
    one = found["random_walk, dense"]
    assert one.error > 10 * one.bound
    assert str(one).startswith("random_walk, dense in float16 is off by ")
    assert str(one).endswith(" where 0.002 is allowed")


def test_a_tile_that_is_not_written_is_found(device, monkeypatch):
    def launch_fewer(kernel, programs, config, **arguments):
        right(kernel, programs - 1, config, **arguments)

    right = affinity.launch
    monkeypatch.setattr(affinity, "launch", launch_fewer)
    assert {"cosine_affinity", "local_affinity"} <= set(failed(device, torch.float32))


def test_other_bits_in_a_second_run_are_found(device, monkeypatch):
    runs = []

    def restless(q, k, scale=None):
        runs.append(q)
        return right(q, k, scale) * (1 + 1e-6 * (len(runs) % 2))

    right = entropy.head_entropy
    monkeypatch.setattr(entropy, "head_entropy", restless)
    found = failed(device, torch.float32)
    assert set(found) == {"head_entropy"}
    assert str(found["head_entropy"]) == (
        "head_entropy in float32 gives other bits in a second run"
    )


def test_a_kernel_that_does_not_run_is_found(device, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no image for this device\nand more")

    monkeypatch.setattr(affinity, "cosine_affinity", broken)
    found = failed(device, torch.float16)
    assert set(found) == {"cosine_affinity"}
    assert math.isnan(found["cosine_affinity"].error)
    assert str(found["cosine_affinity"]) == (
        "cosine_affinity in float16 fails (RuntimeError: no image for this device)"
    )


def test_nan_is_found(device, monkeypatch):
    def spoilt(q, k, scale=None):
        out = right(q, k, scale)
        out[0] = torch.nan
        return out

    right = entropy.head_entropy
    monkeypatch.setattr(entropy, "head_entropy", spoilt)
    assert set(failed(device, torch.float16)) == {"head_entropy"}

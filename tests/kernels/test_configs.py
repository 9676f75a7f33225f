import pytest
import torch

from nerve_fast.kernels import configs, launch
from nerve_fast.kernels.launch import SHARED_MEMORY, Config


@pytest.fixture(autouse=True)
def unforced(monkeypatch):
    """As outside tests."""
    monkeypatch.setattr(configs, "_forced", {})
    monkeypatch.setattr(configs, "tuned", {})


@pytest.fixture(params=SHARED_MEMORY)
def target(request, monkeypatch):
    monkeypatch.setattr(configs, "target_of", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", configs.CANDIDATES)
def test_there_is_always_one(target, name, kind):
    x = torch.empty(0, dtype=kind)
    for shape in (
        {},
        {"kept": 320, "labels": 32},
        {"kept": 20_000, "labels": configs.LABEL_BLOCK[kind.itemsize]},
        {"loaded": 20_000},
        {"aligned": False},
    ):
        config = configs.config_for(name, x, 4096, **shape)
        assert config.num_warps in (4, 8)
        for block, size in config.blocks:
            assert size & (size - 1) == 0, block


@pytest.mark.parametrize("channels", [64, 320, 640, 1280, 5120])
def test_what_is_kept_of_a_row_fits_shared_memory(target, channels):
    for dtype in (torch.float16, torch.float32):
        x = torch.empty(0, dtype=dtype)
        config = configs.config_for("streaming_step", x, 4096, kept=channels, labels=32)
        if config["RESIDENT"] and target != "gfx942":
            assert dtype.itemsize * config["BM"] * channels < SHARED_MEMORY[target]
    widest = configs.config_for(
        "streaming_step", torch.empty(0, dtype=torch.float16), 4096, kept=5120, labels=32
    )
    assert not widest["RESIDENT"]


def test_few_tiles_are_made_smaller(target):
    x = torch.empty(0, dtype=torch.float16)
    assert configs.config_for("head_entropy", x, 16_384, kept=64, most=128)["BM"] == 128
    assert configs.config_for("head_entropy", x, 4096, kept=64, most=64)["BM"] == 64


def test_wide_tiles_of_labels_get_fewer_rows(target):
    x = torch.empty(0, dtype=torch.float16)
    for name in ("streaming_step", "dense_step", "factorized_step"):
        config = configs.config_for(name, x, 4096, labels=128)
        assert config["BM"] * 128 <= configs.ACCUMULATORS * config.num_warps


def test_forcing_ends_with_its_block():
    x = torch.empty(0, dtype=torch.float16)
    usual = configs.config_for("spread", x)
    other, another = Config.of(1, 1, BM=16), Config.of(2, 1, BM=16)
    with configs.forcing("spread", other):
        with configs.forcing("spread", another):
            assert configs.config_for("spread", x) == another
        assert configs.config_for("spread", x) == other
    assert configs.config_for("spread", x) == usual


def test_nearby_sizes_share_a_measurement():
    x = torch.empty(0, dtype=torch.float16)
    keys = {configs.tuning_key("spread", x, tokens) for tokens in (4096, 5000, 8191)}
    assert len(keys) == 1
    assert configs.tuning_key("spread", x, 8192) not in keys


def test_products_of_float32_are_exact_unless_the_caller_allows_less(target, monkeypatch):
    monkeypatch.setattr(launch, "target_of", lambda device: target)
    single, half = torch.empty(0), torch.empty(0, dtype=torch.float16)
    exact, short = ("ieee", "ieee") if target == "gfx942" else ("tf32x3", "tf32")
    assert launch.precision(single) == exact
    assert launch.precision(half) == short
    torch.set_float32_matmul_precision("high")
    try:
        assert launch.precision(single) == short
    finally:
        torch.set_float32_matmul_precision("highest")

"""Kernels run on the GPU where there is one, else in Triton's interpreter on the CPU."""

import importlib.util

import numpy as np
import pytest
import torch

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from triton import language as tl
    from triton.runtime import interpreter

    from nerve_fast.bench.harness.poison import poisoned
    from nerve_fast.kernels import configs, launch, operands
    from nerve_fast.kernels.launch import Config
    from nerve_fast.numerics import ERROR_BOUNDS


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """The same blocks every time, and so few processors that columns are split in two."""
    small = {
        "cosine_affinity": Config.of(4, 1, BM=64, BN=32, BC=64),
        "local_affinity": Config.of(4, 1, BM=64),
        "pack": Config.of(4, 1, BM=64),
        "head_entropy": Config.of(4, 1, BM=64, BN=32),
        "weigh": Config.of(4, 1, BT=2),
        "transition": Config.of(4, 1, BM=64),
        "streaming_step": Config.of(4, 1, BM=64, BN=32, BC=64, RESIDENT=True),
        "row_statistic": Config.of(4, 1, BM=64, BN=32, BC=64, RESIDENT=True),
        "numerators": Config.of(4, 1, BM=64, BN=64, BC=64),
        "dense_step": Config.of(4, 1, BM=64, BN=32),
        "moments": Config.of(4, 1, BC=64, BN=32),
        "factorized_step": Config.of(4, 1, BM=64, BC=64),
        "local_step": Config.of(4, 1, BM=64),
        "local_matmul": Config.of(4, 1, BM=64),
        "spread": Config.of(4, 1, BM=64),
    }
    monkeypatch.setattr(configs, "_forced", small)
    monkeypatch.setattr(operands, "multiprocessors", lambda device: 12)


@pytest.fixture(autouse=True)
def poison():
    """What nobody has written is NaN."""
    with poisoned():
        yield


@pytest.fixture(autouse=True)
def exact_float32():
    """float32 products as exact as the default has them."""
    assert torch.get_float32_matmul_precision() == "highest"
    assert launch.precision(torch.empty(0)) in ("tf32x3", "ieee")


@pytest.fixture(autouse=True)
def bfloat16_as_on_gpus(monkeypatch):
    """The interpreter keeps bfloat16 as its bits: it would multiply those, and does not round."""
    builder = interpreter.InterpreterBuilder
    product, cast = builder.create_dot, builder.cast_impl

    def rounded(self, x, kind):
        if x.dtype.scalar != tl.float32 or kind.scalar != tl.bfloat16:
            return cast(self, x, kind)
        values = torch.from_numpy(np.ascontiguousarray(x.data)).bfloat16()
        bits = values.view(torch.int16).numpy().view(np.uint16)
        return interpreter.TensorHandle(bits, tl.bfloat16)

    def of_values(self, a, b, *others):
        a, b = (
            self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)
        )
        return product(self, a, b, *others)

    monkeypatch.setattr(builder, "create_dot", of_values)
    monkeypatch.setattr(builder, "cast_impl", rounded)


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def pytest_generate_tests(metafunc):
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


@pytest.fixture
def bound(dtype):
    """What the relative error in the dtype may be."""
    return ERROR_BOUNDS[dtype]

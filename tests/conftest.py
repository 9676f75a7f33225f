import importlib.util
import os
import random
from pathlib import Path

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Workers that each take all cores wait for one another; read when torch is imported.
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // workers, 1)))

import pytest
import torch

from nerve_fast.tiny import MODELS

NEEDS_TRITON = (
    "bench/test_gpu.py",
    "cli/test_doctor.py",
    "dispatch/test_costs.py",
    "dispatch/test_select.py",
    "dispatch/test_selfcheck.py",
    "dispatch/test_tuning.py",
    "kernels",
    "tools/test_golden.py",
    "tools/test_hub_kernels.py",
)
"""What is tested only where Triton is, which is on Linux; all the rest must pass everywhere."""

collect_ignore = list(NEEDS_TRITON) if importlib.util.find_spec("triton") is None else []

if not torch.cuda.is_available():
    # Triton reads it when kernels are defined: without a GPU they run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    folder = Path(__file__).parent
    homes = {folder / name for name in NEEDS_TRITON}
    for item in items:
        if homes & {item.path, *item.path.parents}:
            item.add_marker("needs_triton")


@pytest.fixture
def generator():
    """Fresh random inputs each run; the seed is printed with a failure and can be set again."""
    seed = int(os.environ.get("NERVE_FAST_TEST_SEED", random.randrange(2**31)))
    print(f"NERVE_FAST_TEST_SEED={seed}")
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def make_qk(generator):
    """``make_qk(*shape, dtype)``: random queries and keys."""

    def make(*shape, dtype=torch.float64):
        q, k = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        return q.to(dtype), k.to(dtype)

    return make


@pytest.fixture
def make_prior(generator):
    """``make_prior(*shape, dtype)``: random distributions over the last dimension."""

    def make(*shape, dtype=torch.float64):
        logits = 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return logits.softmax(-1).to(dtype)

    return make


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Tests neither use nor leave text embeddings in the user's cache."""
    os.environ["NERVE_FAST_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def pipe(own_cache):
    from nerve_fast import NervePipeline

    return NervePipeline.from_pretrained("tiny", device="cpu")


@pytest.fixture
def copied_models(tmp_path):
    """A copy of the shipped models that a test may damage."""
    import shutil

    return shutil.copytree(MODELS, tmp_path / "models")

import numpy as np
import pytest
import torch

from nerve_fast.bench.harness import profiling

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs bench.gpu itself")


def test_steps_are_told(pipe):
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    profile = profiling.profiled(lambda: pipe(pixels, ["a", "b"]))
    steps = profiling.steps_of(profile)
    assert set(steps) == {"prior", "VAE", "UNet", "entropy", "walk", "resampling"}
    assert all(seconds > 0 for seconds in steps.values())

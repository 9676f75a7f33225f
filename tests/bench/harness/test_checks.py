import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)

from nerve_fast.bench.harness.checks import checked, routes
from nerve_fast.normalization import NORMALIZATIONS


def test_a_failed_check_is_named_and_nan_fails(capsys):
    shape = [1, 2, 3, 4]
    assert not checked("x", torch.float16, shape, float("nan"))["passed"]
    assert checked("y", torch.float16, shape, 1e-3)["passed"]
    out = capsys.readouterr().out
    assert "WRONG x, float16" in out
    assert "y" not in out


def test_linear_normalizations_have_the_factorized_route():
    for name, normalization in NORMALIZATIONS.items():
        assert (("factorized", 0) in routes(name, 8)) == normalization.linear

import pytest

from nerve_fast.bench.pages import tables


def test_exponents():
    assert tables.exponent([(10, 3e-3), (100, 3e-1), (1000, 30.0)]) == pytest.approx(2)

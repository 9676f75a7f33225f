from nerve_fast.bench.harness.machine import quantiles, rounds_for


def test_rounds_and_quantiles():
    assert (rounds_for(1e-6), rounds_for(0.05), rounds_for(10)) == (100, 10, 3)
    assert quantiles([3.0]) == (3.0, 3.0, 3.0)
    median, low, high = quantiles([float(i) for i in range(11)])
    assert (median, low, high) == (5, 2, 8)

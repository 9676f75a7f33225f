import pytest

from nerve_fast.bench.harness.isolated import isolated


def fail():
    raise ValueError("no\nway")


def die():
    import os

    os._exit(9)


def test_processes_that_fail_or_die_are_told():
    with pytest.raises(RuntimeError, match="ValueError: no"):
        isolated(fail)
    with pytest.raises(MemoryError, match="was killed, most likely for want of memory"):
        isolated(die)

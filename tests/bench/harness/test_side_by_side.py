import os
import time

from nerve_fast.bench.harness.side_by_side import side_by_side


def job(what):
    if what == "fail":
        raise ValueError("no\nway")
    if what == "die":
        os._exit(9)
    if what == "hang":
        time.sleep(600)
    return what.upper()


def test_each_failure_is_its_own():
    shares = [(what,) for what in ("die", "a", "fail", "b", "hang", "c")]
    found = {
        share[0]: (result, problem) for share, result, problem in side_by_side(job, shares, 40)
    }
    assert {what: found[what] for what in "abc"} == {
        "a": ("A", ""),
        "b": ("B", ""),
        "c": ("C", ""),
    }
    assert found["die"] == (None, "its process died")
    assert found["fail"] == (None, "ValueError: no")
    assert found["hang"] == (None, "TimeoutError: it has not answered in time")


def test_without_time_nothing_is_started():
    assert [problem for *_, problem in side_by_side(job, [("a",)], 0)] == [
        "TimeoutError: there was no time left to start it"
    ]

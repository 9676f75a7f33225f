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
    shares = [(what,) for what in ("die", "a", "fail", "b", "c")]
    found = list(side_by_side(job, shares, 600))
    assert [share for share, *_ in found] == shares
    assert [answer for _, *answer in found] == [
        [None, "its process died"],
        ["A", ""],
        [None, "ValueError: no"],
        ["B", ""],
        ["C", ""],
    ]


def test_one_that_hangs_is_ended():
    ((_, result, problem),) = side_by_side(job, [("hang",)], 1)
    assert (result, problem) == (None, "TimeoutError: it has not answered in time")


def test_without_time_nothing_is_started():
    ((_, result, problem),) = side_by_side(job, [("a",)], 0)
    assert (result, problem) == (None, "TimeoutError: there was no time left to start it")

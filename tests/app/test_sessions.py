import pytest

from nerve_fast.app import sessions as module
from nerve_fast.app.sessions import Sessions
from nerve_fast.app.settings import AppSettings


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def sessions(pipe, tmp_path, clock):
    return Sessions(pipe, AppSettings(), tmp_path, clock=lambda: clock[0])


def test_each_page_has_its_own(sessions):
    one, other = sessions.of("a"), sessions.of("b")
    assert one is not other
    assert one.folder != other.folder
    assert sessions.of("a") is one


def test_the_one_unused_for_longest_goes(sessions, monkeypatch):
    monkeypatch.setattr(module, "MOST", 2)
    first, second = sessions.of("a"), sessions.of("b")
    sessions.of("a")
    sessions.of("c")
    assert second.closed
    assert not first.closed
    assert len(sessions) == 2


def test_idle_ones_go(sessions, clock):
    idle = sessions.of("a")
    clock[0] = module.IDLE + 1
    sessions.of("b")
    assert idle.closed
    assert sessions.of("a") is not idle


def test_a_page_that_is_left_goes_at_once(sessions):
    left = sessions.of("a")
    sessions.close("a")
    sessions.close("a")
    sessions.close(None)
    assert left.closed
    assert len(sessions) == 0

import logging

import pytest
import torch

import nerve_fast as nf
from nerve_fast import blocked, dispatch, reference
from nerve_fast.dispatch import backend_for, use_backend


def test_the_order_is_argument_context_environment_auto(monkeypatch):
    assert backend_for("auto") is blocked
    monkeypatch.setenv("NERVE_FAST_BACKEND", "reference")
    assert backend_for("auto") is reference
    with use_backend("blocked"):
        assert backend_for("auto") is blocked
        assert backend_for("reference") is reference
        with use_backend("auto"):
            assert backend_for("auto") is reference
    assert backend_for("auto") is reference


def test_the_context_ends_with_an_error_too():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert backend_for("auto") is blocked


def test_wrong_names_are_refused_where_they_stand(monkeypatch):
    with (
        pytest.raises(nf.InputError, match="backend is 'x'; expected one of auto"),
        use_backend("x"),
    ):
        pass
    monkeypatch.setenv("NERVE_FAST_BACKEND", "y")
    with pytest.raises(nf.InputError, match="variable NERVE_FAST_BACKEND is 'y'; expected one"):
        backend_for("auto")


def test_the_reason_is_raised_when_asked_for_and_logged_when_not(caplog):
    with caplog.at_level(logging.DEBUG, logger="nerve_fast"):
        assert not dispatch.CAN_RUN["triton"]()
    with pytest.raises(nf.InputError) as raised:
        backend_for("triton")
    assert caplog.messages == [str(raised.value)]


def test_the_context_reaches_the_operations(make_qk, monkeypatch):
    calls = []
    monkeypatch.setattr(reference, "head_entropy", lambda *a: calls.append(a) or torch.zeros(1))
    q, k = make_qk(1, 6, 4)
    nf.head_entropy(q, k)
    assert not calls
    with use_backend("reference"):
        nf.head_entropy(q, k)
    assert len(calls) == 1

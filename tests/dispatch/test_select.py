import importlib.util
import logging
import os
import subprocess
import sys

import pytest
import torch
import triton

import nerve_fast as nf
from nerve_fast import blocked, dispatch, reference
from nerve_fast.dispatch import backend_for, choose, select, selfcheck, use_backend
from nerve_fast.kernels import launch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
X = torch.ones(1)


def test_the_order_is_argument_context_environment_auto(monkeypatch):
    assert backend_for("auto", X) is blocked
    monkeypatch.setenv("NERVE_FAST_BACKEND", "reference")
    assert backend_for("auto", X) is reference
    with use_backend("blocked"):
        assert backend_for("auto", X) is blocked
        assert backend_for("reference", X) is reference
        with use_backend("auto"):
            assert backend_for("auto", X) is reference
    assert backend_for("auto", X) is reference


def test_the_context_ends_with_an_error_too():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert backend_for("auto", X) is blocked


def test_wrong_names_are_refused_where_they_stand(monkeypatch):
    with (
        pytest.raises(nf.InputError, match="backend is 'x'; expected one of auto"),
        use_backend("x"),
    ):
        pass
    monkeypatch.setenv("NERVE_FAST_BACKEND", "y")
    with pytest.raises(nf.InputError, match="variable NERVE_FAST_BACKEND is 'y'; expected one"):
        backend_for("auto", X)


@pytest.fixture
def compiled(monkeypatch):
    """As without ``TRITON_INTERPRET``."""
    monkeypatch.setattr(launch, "interpreted", lambda: False)


@pytest.fixture
def capability(compiled, monkeypatch):
    """``capability(major, minor)``: as if the GPU were such a one."""

    def set_capability(*version):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: version)

    set_capability(9, 0)
    monkeypatch.setattr(launch, "obstacle", lambda device: None)
    monkeypatch.setattr(selfcheck, "obstacle", lambda device, dtype: None)
    return set_capability


def test_the_reason_is_raised_when_asked_for_and_logged_when_not(caplog, compiled):
    with caplog.at_level(logging.DEBUG, logger="nerve_fast"):
        assert not dispatch.CAN_RUN["triton"](CPU, torch.float32, False)
    with pytest.raises(nf.InputError) as raised:
        backend_for("triton", X)
    assert caplog.messages == [str(raised.value)]
    assert str(raised.value) == (
        "backend 'triton' runs on CUDA and ROCm GPUs, not on cpu (TRITON_INTERPRET=1: for tests); "
        "'blocked' and 'reference' can: pass one, or 'auto'"
    )


def test_auto_takes_kernels_on_a_gpu(capability):
    assert choose("auto", CUDA, torch.bfloat16) == "triton"
    assert choose("auto", CUDA, torch.bfloat16, requires_grad=True) == "blocked"
    assert choose("auto", CUDA, torch.float64) == "blocked"
    assert choose("auto", CPU, torch.float32) == "blocked"
    capability(7, 5)
    assert choose("auto", CUDA, torch.float16) == "blocked"


def test_auto_does_not_interpret(monkeypatch):
    monkeypatch.setattr(launch, "interpreted", lambda: True)
    assert choose("auto", CPU, torch.float32) == "blocked"
    assert choose("triton", CPU, torch.float32) == "triton"


def test_kernels_asked_for_by_name_are_never_replaced(capability, monkeypatch):
    for kind, message in (
        ((CUDA, torch.float64), "takes float16, bfloat16, float32, not float64"),
        ((CUDA, torch.float32, True), "has no gradients, and an input requires one"),
        ((torch.device("mps"), torch.float32), "runs on CUDA and ROCm GPUs, not on mps"),
    ):
        with pytest.raises(nf.InputError, match=message):
            choose("triton", *kind)
    capability(7, 5)
    with pytest.raises(nf.InputError, match="capability 8.0 or newer, not 7.5"):
        choose("triton", CUDA, torch.float16)
    monkeypatch.setattr(launch, "interpreted", lambda: True)
    with pytest.raises(nf.InputError, match="bfloat16 in Triton's interpreter"):
        choose("triton", CPU, torch.bfloat16)
    with pytest.raises(nf.InputError, match="takes a radius of at most 4, not 5"):
        choose("triton", CPU, torch.float32, False, 5)


@pytest.fixture
def looked_for(monkeypatch):
    """Triton is looked for again, in this test alone."""
    select._missing_triton.cache_clear()
    yield
    select._missing_triton.cache_clear()


def test_no_triton_or_an_old_one(looked_for, capability, monkeypatch):
    monkeypatch.setattr(triton, "__version__", "3.5.1")
    with pytest.raises(nf.InputError, match="needs triton 3.6 or newer, not 3.5.1"):
        choose("triton", CUDA, torch.float16)
    select._missing_triton.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(nf.InputError, match="needs the package triton, which is not installed"):
        choose("triton", CUDA, torch.float16)
    assert choose("auto", CUDA, torch.float16) == "blocked"


def test_a_machine_on_which_no_kernel_starts(capability, monkeypatch):
    monkeypatch.setattr(launch, "obstacle", lambda device: "cannot start kernels here (no cc)")
    with pytest.raises(nf.InputError, match=r"'triton' cannot start kernels here \(no cc\)"):
        choose("triton", CUDA, torch.float16)
    assert choose("auto", CUDA, torch.float16) == "blocked"


def test_windows_wider_than_the_kernels_take(make_qk):
    q, k = make_qk(1, 30, 4, dtype=torch.float32)
    with pytest.raises(nf.InputError, match="takes a radius of at most 4, not 5"):
        nf.local_affinity(q, k, (5, 6), radius=5, backend="triton")
    with pytest.raises(nf.InputError, match="takes a radius of at most 4, not 9"):
        nf.plan((1, 30, 4), 2, config=nf.NerveConfig(radius=9), backend="triton")


def test_gradients_take_the_backend_that_has_them(make_qk, monkeypatch):
    q, k = make_qk(1, 6, 4, dtype=torch.float32)
    with pytest.raises(nf.InputError, match="has no gradients"):
        nf.head_entropy(q.requires_grad_(), k, backend="triton")
    with torch.no_grad():
        nf.head_entropy(q, k, backend="triton")


def test_the_context_reaches_the_operations(make_qk, monkeypatch):
    calls = []
    monkeypatch.setattr(reference, "head_entropy", lambda *a: calls.append(a) or torch.zeros(1))
    q, k = make_qk(1, 6, 4)
    nf.head_entropy(q, k)
    assert not calls
    with use_backend("reference"):
        nf.head_entropy(q, k)
    assert len(calls) == 1


def test_on_a_cpu_triton_is_not_even_imported():
    code = (
        "import sys, torch, nerve_fast as nf; q = torch.randn(1, 4, 8); "
        "nf.random_walk(q, q, torch.rand(4, 2), (2, 2)); sys.exit('triton' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)

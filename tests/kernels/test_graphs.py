"""Replay from CUDA graphs: its bookkeeping with a graph that only counts, the rest on a GPU."""

import functools
import types

import pytest
import torch

import nerve_fast as nf
from nerve_fast.kernels import backend, graphs
from nerve_fast.normalization import NORMALIZATIONS

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def nothing_is_recorded(monkeypatch):
    for name in ("_recorded", "_seen", "_refused"):
        monkeypatch.setattr(graphs, name, type(getattr(graphs, name))())


@pytest.fixture
def counted(monkeypatch):
    """Graphs that run what they recorded again, and the list of functions that were recorded."""
    recorded = []

    def record(function, tensors):
        inputs = [None if x is None else x.clone() for x in tensors]
        outputs = function(*inputs)
        recorded.append(function)

        def replay():
            for mine, new in zip(outputs, function(*inputs), strict=True):
                mine.copy_(new)

        return graphs._Recorded(types.SimpleNamespace(replay=replay), inputs, outputs)

    stream = types.SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(graphs, "_record", record)
    monkeypatch.setattr(graphs, "_worth_recording", lambda device, tensors, workspace: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return recorded


def double(x, y):
    return (2 * x if y is None else x + y,)


def replayed(settings, tensors):
    (out,) = graphs.replayed(double, settings, tensors)
    return out


def test_the_second_call_records_and_later_ones_replay(counted):
    outputs = [replayed("a", (torch.full((3,), float(i)), None)) for i in range(4)]
    assert len(counted) == 1
    # Each caller's result is its own.
    for i, out in enumerate(outputs):
        assert torch.equal(out, torch.full((3,), 2.0 * i))


def test_other_settings_shapes_strides_and_dtypes_are_other_graphs(counted):
    x = torch.ones(4, 4)
    for tensors, settings in (
        ((x, None), "a"),
        ((x, None), "b"),
        ((x[:2], None), "a"),
        ((x.T[:2], None), "a"),
        ((x.double(), None), "a"),
        ((x, x), "a"),
    ):
        before = len(counted)
        for _ in range(3):
            (expected,) = double(*tensors)
            assert torch.equal(replayed(settings, tensors), expected)
        assert len(counted) == before + 1


def test_few_graphs_are_kept(counted):
    for i in range(graphs.KEPT + 3):
        for _ in range(2):
            replayed(i, (torch.ones(1), None))
    assert len(graphs._recorded) == graphs.KEPT
    assert len(counted) == graphs.KEPT + 3
    replayed(graphs.KEPT + 2, (torch.ones(1), None))
    assert len(counted) == graphs.KEPT + 3


def test_a_failed_recording_is_a_warning(counted, monkeypatch, caplog):
    def fail(function, tensors):
        raise RuntimeError("capture failed")

    monkeypatch.setattr(graphs, "_record", fail)
    for _ in range(4):
        out = replayed("a", (torch.ones(1), None))
        assert torch.equal(out, torch.full((1,), 2.0))
    assert not graphs._recorded
    assert caplog.text.count("no CUDA graph of this walk: capture failed") == 1


def test_recorded_in_inference_mode_and_used_outside(counted):
    with torch.inference_mode():
        for _ in range(2):
            replayed("a", (torch.ones(2), None))
    out = replayed("a", (torch.full((2,), 5.0), None))
    assert torch.equal(out, torch.full((2,), 10.0))
    assert not out.is_inference()
    out += 1


def test_much_memory_is_not_kept_in_graphs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    cuda, few = torch.device("cuda"), (torch.ones(2), None)
    assert graphs._worth_recording(cuda, few, 0)
    assert not graphs._worth_recording(cuda, few, graphs.MAX_BYTES)


def test_on_a_cpu_nothing_is_recorded():
    for _ in range(3):
        assert torch.equal(replayed("a", (torch.ones(1), None)), torch.full((1,), 2))
    assert not graphs._seen


@pytest.mark.parametrize("weight", [1, 60])
def test_the_backend_passes_on_what_it_is_given(make_qk, make_prior, device, weight):
    q, k = (x.to(device) for x in make_qk(2, 35, 16, dtype=torch.float32))
    G = make_prior(35, 3, dtype=torch.float32).to(device)
    w = weight * make_prior(2, dtype=torch.float32).to(device)
    config = nf.NerveConfig(steps=2)
    expected = nf.random_walk(q, k, G, (5, 7), config, head_weights=w, backend="reference")
    for stored in (0, 35):
        route = "dense" if stored else "streaming"
        steps = []
        walked = backend.random_walk(
            q,
            k,
            G,
            (5, 7),
            config,
            w,
            route=route,
            stored_rows=stored,
            return_steps=(3, 1),
            on_step=functools.partial(steps.append, 1),
        )
        torch.testing.assert_close(walked.probabilities, expected, rtol=weight * 1e-4, atol=1e-5)
        assert (walked.steps_taken, len(steps), list(walked.at_steps)) == (2, 2, [1, 3])
        one = nf.random_walk(
            q, k, G, (5, 7), config.replace(steps=1), head_weights=w, backend="reference"
        )
        torch.testing.assert_close(walked.at_steps[1], one, rtol=weight * 1e-4, atol=1e-5)


@needs_gpu
@pytest.mark.parametrize("given", [True, False])
def test_replays_are_equal_to_the_first_call(make_qk, make_prior, device, given):
    config = nf.NerveConfig(steps=3)
    for _ in range(4):
        q, k = (x.to(device) for x in make_qk(2, 143, 64, dtype=torch.float16))
        G = make_prior(143, 5, dtype=torch.float32).to(device)
        w = torch.tensor([0.5, 0.5], device=device) if given else None
        out = backend.random_walk(q, k, G, (11, 13), config, w, route="streaming").probabilities
        expected = nf.random_walk(
            q.double(), k.double(), G.double(), (11, 13), config, head_weights=w
        )
        assert ((out - expected).norm() / expected.norm()).item() <= 2e-3
    assert len(graphs._recorded) == 1


@needs_gpu
@pytest.mark.parametrize("given", [True, False])
def test_a_graph_of_the_callers_own(make_qk, make_prior, device, given):
    q, k = (x.to(device) for x in make_qk(2, 143, 64, dtype=torch.float16))
    G = make_prior(143, 5, dtype=torch.float32).to(device)
    w = torch.tensor([0.3, 0.7], device=device) if given else None
    expected = nf.random_walk(q, k, G, (11, 13), head_weights=w)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = nf.random_walk(q, k, G, (11, 13), head_weights=w)
    graph.replay()
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_weights_that_cannot_be_looked_at(make_qk, make_prior, device, monkeypatch, normalization):
    monkeypatch.setattr(backend, "is_capturing", lambda device: True)
    q, k = make_qk(2, 35, 16, dtype=torch.float32)
    G, w = make_prior(35, 3, dtype=torch.float32), make_prior(2, dtype=torch.float32)
    config = nf.NerveConfig(normalization=normalization, steps=2)
    given = (x.to(device) for x in (q, k, G))
    out = backend.random_walk(*given, (5, 7), config, w.to(device), route="streaming")
    out = out.probabilities
    expected = nf.random_walk(q, k, G, (5, 7), config, head_weights=w, backend="reference")
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-6)

"""Replay from CUDA graphs: its bookkeeping on devices that only pretend, the rest on a GPU."""

import contextlib
import functools
import types

import pytest
import torch

import nerve_fast as nf
from nerve_fast.kernels import backend, graphs
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.numerics import ERROR_BOUNDS, relative_error

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def nothing_is_recorded(monkeypatch):
    monkeypatch.setattr(graphs, "_graphs", {})


class Machine:
    """``torch.cuda`` of two devices whose kernels are functions, started or recorded.

    As on a GPU, a kernel is recorded by the graph that captures the current stream of the current
    device, and started where none does; a replay starts what its graph holds.
    """

    def __init__(self):
        self.device = torch.device("cuda", 0)
        self.streams = {}
        self.capturing = {}
        self.made = []
        self.reserved = 0
        self.grows = 0

    def current_stream(self, device=None):
        return self.streams.get(device or self.device, "default")

    def launch(self, kernel):
        graph = self.capturing.get((self.device, self.current_stream()))
        if graph is None:
            kernel()
        else:
            graph.kernels.append(kernel)

    @contextlib.contextmanager
    def on_device(self, device):
        self.device, before = device, self.device
        yield
        self.device = before

    @contextlib.contextmanager
    def on_stream(self, stream):
        before = self.streams.get(stream.device)
        self.streams[stream.device] = stream
        yield
        self.streams[stream.device] = before

    def stub(self):
        machine = self

        class Stream:
            def __init__(self, device):
                self.device = device

            def wait_stream(self, other):
                pass

        class Graph:
            def __init__(self):
                self.kernels = []
                machine.made.append(self)

            def capture_begin(self, pool, capture_error_mode):
                self.pool, self.mode = pool, capture_error_mode
                self.where = machine.device, machine.current_stream()
                machine.capturing[self.where] = self

            def capture_end(self):
                del machine.capturing[self.where]
                machine.reserved += machine.grows

            def replay(self):
                for kernel in self.kernels:
                    kernel()

        return {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "device": self.on_device,
            "stream": self.on_stream,
            "current_stream": lambda device=None: types.SimpleNamespace(
                wait_stream=lambda other: None
            ),
            "is_current_stream_capturing": lambda: (
                (self.device, self.current_stream()) in self.capturing
            ),
            "graph_pool_handle": object,
            "memory_reserved": lambda device: self.reserved,
        }


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    for name, stand_in in machine.stub().items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(graphs, "_device_of", lambda tensors: machine.device)
    return machine


@pytest.fixture
def double(machine):
    """``double(settings, *tensors)``: twice the first, or the sum of two."""

    def kernel(x, y, out):
        out.copy_(2 * x if y is None else x + y)

    def function(x, y):
        out = torch.empty_like(x)
        machine.launch(functools.partial(kernel, x, y, out))
        return (out,)

    def call(settings, x, y=None):
        (out,) = graphs.replayed(function, settings, (x, y))
        return out

    return call


def test_the_third_call_records_and_later_ones_replay(machine, double):
    outputs = []
    for i in range(6):
        outputs.append(double("a", torch.full((3,), float(i))))
        assert len(machine.made) == (i >= 2)
    # Each caller's result is its own.
    for i, out in enumerate(outputs):
        assert torch.equal(out, torch.full((3,), 2.0 * i))
    assert machine.made[0].mode == "thread_local"


def test_other_settings_shapes_strides_and_dtypes_are_other_graphs(machine, double):
    x = torch.ones(4, 4)
    for settings, *tensors in (
        ("a", x),
        ("b", x),
        ("a", x[:2]),
        ("a", x.T[:2]),
        ("a", x.double()),
        ("a", x, x),
    ):
        before = len(machine.made)
        for _ in range(4):
            assert torch.equal(double(settings, *tensors), 2 * tensors[0])
        assert len(machine.made) == before + 1


def test_every_device_records_on_a_stream_of_its_own(machine, double):
    for index in (0, 1, 0, 1):
        machine.device = torch.device("cuda", index)
        for i in range(4):
            assert torch.equal(double("a", torch.full((2,), float(i))), torch.full((2,), 2.0 * i))
    assert len(machine.made) == 2
    (first, first_stream), (second, second_stream) = (graph.where for graph in machine.made)
    assert (first.index, second.index) == (0, 1)
    assert (first_stream.device, second_stream.device) == (first, second)
    assert all(graph.kernels for graph in machine.made)


def test_graphs_of_a_device_share_a_pool(machine, double):
    for settings in "ab":
        for _ in range(3):
            double(settings, torch.ones(1))
    first, second = machine.made
    assert first.pool is second.pool


def test_few_graphs_are_kept(machine, double):
    for i in range(graphs.KEPT + 3):
        for _ in range(3):
            double(i, torch.ones(1))
    (device,) = graphs._graphs.values()
    assert list(device.known) != []
    assert len(device.known) == graphs.KEPT
    assert len(machine.made) == graphs.KEPT + 3
    double(graphs.KEPT + 2, torch.ones(1))
    assert len(machine.made) == graphs.KEPT + 3


def test_a_failed_recording_is_a_warning(machine, double, monkeypatch, caplog):
    def fail(self, pool, capture_error_mode):
        raise RuntimeError("capture failed")

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", fail)
    for _ in range(5):
        assert torch.equal(double("a", torch.ones(1)), torch.full((1,), 2.0))
    assert len(machine.made) == 1
    assert caplog.text.count("no CUDA graph of this walk: capture failed") == 1


def test_a_stream_that_does_not_record_is_refused(machine, double, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for i in range(4):
        assert torch.equal(double("a", torch.full((1,), float(i))), torch.full((1,), 2.0 * i))
    assert caplog.text.count("does not record") == 1


@pytest.mark.parametrize("fault", ["nothing recorded", "one kernel lost", "stale input"])
def test_a_replay_that_differs_turns_graphs_off(machine, double, monkeypatch, caplog, fault):
    replay = torch.cuda.CUDAGraph.replay

    def wrong(graph):
        if fault == "nothing recorded":
            graph.kernels.clear()
        elif fault == "one kernel lost":
            graph.kernels.pop()
        else:
            graph.kernels[-1].args[0].zero_()
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", wrong)
    for settings in "ab":
        for i in range(1, 5):
            x = torch.full((3,), float(i))
            assert torch.equal(double(settings, x), 2 * x)
    assert len(machine.made) == 1
    assert caplog.text.count("CUDA graphs on cuda:0 are off") == 1


def test_nan_is_no_difference(machine, double, caplog):
    for _ in range(4):
        assert double("a", torch.full((2,), torch.nan)).isnan().all()
    assert len(machine.made) == 1
    assert not caplog.text


def test_recorded_in_inference_mode_and_used_outside(machine, double):
    with torch.inference_mode():
        for _ in range(3):
            double("a", torch.ones(2))
    out = double("a", torch.full((2,), 5.0))
    assert len(machine.made) == 1
    assert torch.equal(out, torch.full((2,), 10.0))
    assert not out.is_inference()
    out += 1


def test_much_memory_is_not_kept_in_graphs(machine):
    few = (torch.ones(2), None)
    assert graphs._worth_recording(machine.device, few, 0)
    assert not graphs._worth_recording(machine.device, few, graphs.MAX_BYTES)


def test_memory_of_all_graphs_is_counted(machine, double):
    machine.grows = graphs.MAX_BYTES // 2 - 100
    for settings in "abc":
        for _ in range(4):
            assert torch.equal(double(settings, torch.ones(1)), torch.full((1,), 2.0))
    (device,) = graphs._graphs.values()
    assert len(device.known) == 2
    # The third was made, found to be too much, and is not made again.
    assert len(machine.made) == 3


def test_nothing_is_recorded_within_a_graph_of_the_callers(machine, double):
    machine.capturing[machine.device, "default"] = types.SimpleNamespace(kernels=[])
    for _ in range(4):
        double("a", torch.ones(1))
    assert not machine.made


def test_whether_a_device_records_is_asked_of_that_device(machine):
    other = torch.device("cuda", 1)
    machine.capturing[other, "default"] = None
    assert graphs.is_capturing(other)
    assert not graphs.is_capturing(machine.device)
    assert not graphs.is_capturing(torch.device("cpu"))


def test_on_a_cpu_nothing_is_recorded():
    for _ in range(4):
        (out,) = graphs.replayed(lambda x: (2 * x,), "a", (torch.ones(1),))
        assert torch.equal(out, torch.full((1,), 2.0))
    assert not graphs._graphs


@pytest.mark.parametrize("weight", [1, 60])
def test_the_backend_passes_on_what_it_is_given(make_qk, make_prior, device, weight):
    q, k = (x.to(device) for x in make_qk(2, 35, 16, dtype=torch.float32))
    G = make_prior(35, 3, dtype=torch.float32).to(device)
    w = weight * make_prior(2, dtype=torch.float32).to(device)
    config = nf.NerveConfig(steps=2)
    one, two = (
        nf.random_walk(
            q, k, G, (5, 7), config.replace(steps=steps), head_weights=w, backend="reference"
        )
        for steps in (1, 2)
    )
    for stored in (0, 35):
        steps = []
        walked = backend.random_walk(
            q,
            k,
            G,
            (5, 7),
            config,
            w,
            route="dense" if stored else "streaming",
            stored_rows=stored,
            return_steps=(3, 1),
            on_step=functools.partial(steps.append, 1),
        )
        torch.testing.assert_close(walked.probabilities, two, rtol=weight * 1e-4, atol=1e-5)
        assert (walked.steps_taken, len(steps), list(walked.at_steps)) == (2, 2, [1, 3])
        torch.testing.assert_close(walked.at_steps[1], one, rtol=weight * 1e-4, atol=1e-5)


def test_the_backend_walks_to_the_limit(make_qk, make_prior, device):
    q, k = (x.to(device) for x in make_qk(2, 35, 16, dtype=torch.float32))
    G = make_prior(35, 3, dtype=torch.float32).to(device)
    config = nf.NerveConfig(alpha=0.5, steps=None, tolerance=1e-3)
    steps = []
    walked = backend.random_walk(
        q, k, G, (5, 7), config, None, route="streaming", on_step=lambda: steps.append(1)
    )
    assert len(steps) == walked.steps_taken
    far = nf.random_walk(q, k, G, (5, 7), config.replace(steps=60), backend="reference")
    assert (walked.probabilities - far).abs().sum(-1).max() < config.tolerance


@needs_gpu
@pytest.mark.parametrize("given", [True, False])
def test_replays_are_equal_to_the_first_call(make_qk, make_prior, device, given):
    config = nf.NerveConfig(steps=3)
    for _ in range(5):
        q, k = (x.to(device) for x in make_qk(2, 143, 64, dtype=torch.float16))
        G = make_prior(143, 5, dtype=torch.float32).to(device)
        w = torch.tensor([0.5, 0.5], device=device) if given else None
        out = backend.random_walk(q, k, G, (11, 13), config, w, route="streaming").probabilities
        expected = nf.random_walk(
            q.double(), k.double(), G.double(), (11, 13), config, head_weights=w
        )
        assert relative_error(out, expected) <= ERROR_BOUNDS[torch.float16]
    assert sum(len(device.known) for device in graphs._graphs.values()) == 1


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
    expected = nf.random_walk(q, k, G, (5, 7), config, head_weights=w, backend="reference")
    torch.testing.assert_close(out.probabilities.cpu(), expected, rtol=1e-4, atol=1e-6)

"""The GPU's clock with a stubbed driver: in which order it asks, and what it takes off."""

import pytest
import torch

from nerve_fast.bench.harness.gpu_clock import GpuClock


class Driver:
    """A GPU's queue whose time is told; events cost a microsecond."""

    def __init__(self):
        self.seconds, self.asked = 0.0, []

    def event(self, enable_timing):
        assert enable_timing
        return Event(self)

    def sleep(self, cycles):
        assert cycles > 0
        self.asked.append("wait")

    def sum(self, x, out):
        self.asked.append(f"read {x.nbytes}")

    def work(self, seconds):
        self.asked.append("run")
        self.seconds += seconds


class Event:
    def __init__(self, driver):
        self.driver, self.at = driver, None

    def record(self):
        self.driver.asked.append("event")
        self.driver.seconds += 1e-6
        self.at = self.driver.seconds

    def synchronize(self):
        self.driver.asked.append("done")

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.fixture
def driver(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "Event", driver.event)
    monkeypatch.setattr(torch.cuda, "_sleep", driver.sleep)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "sum", driver.sum)
    return driver


def test_the_cache_is_read_and_the_queue_is_held_before_each_run(driver):
    clock = GpuClock(torch.device("cpu"), 1 << 10)
    seconds = clock(lambda: driver.work(1e-3), 3)
    # Twice the cache; the first run tells how long Python takes.
    assert driver.asked == ["run"] + 3 * ["read 2048", "wait", "event", "run", "event", "done"]
    assert seconds == pytest.approx([1e-3 + 1e-6] * 3)


def test_the_launch_is_taken_off(driver):
    clock = GpuClock(torch.device("cpu"), 1 << 10)
    clock.launch = {"kernel": 1e-6, "graph": 5e-6}
    assert clock(lambda: driver.work(1e-3), 1) == pytest.approx([1e-3])
    assert clock(lambda: driver.work(1e-3), 1, replayed=True) == pytest.approx([1e-3 - 4e-6])
    assert clock(lambda: None, 1, replayed=True) == [0.0]


def test_a_graphs_launch_is_what_it_takes_longer_for_the_same_kernel(driver, monkeypatch):
    clock = GpuClock(torch.device("cpu"), 1 << 10)

    def recorded(run):
        def replay():
            run()
            driver.seconds += 7e-6

        return replay

    monkeypatch.setattr("nerve_fast.bench.harness.gpu_clock.recorded", recorded)
    clock.calibrate()
    assert clock.launch == pytest.approx({"kernel": 1e-6, "graph": 8e-6})

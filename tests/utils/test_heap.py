import platform
import subprocess
import sys
import threading

import pytest

from nerve_fast.utils import heap

FAULTS = """
import resource, torch
from nerve_fast.utils.heap import kept

def faults():
    '''Pages that the system gives for eight tensors of 64 MB, one after the other.'''
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

faults()
outside = faults()
at_first = resident()
with kept():
    faults()
    inside = faults()
print(outside, inside, resident() - at_first)
"""


@pytest.fixture
def tuned(monkeypatch):
    """What glibc is told; as if it was the C library and no user had set anything."""
    said = []
    monkeypatch.setattr(heap, "_of_libc", lambda name: lambda *told: said.append((name, *told)))
    for name in (*heap.TUNED_BY, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    return said


def test_memory_is_given_back_around_work_of_another_size(monkeypatch):
    said = []
    monkeypatch.setattr(heap, "give_back", lambda: said.append("back"))
    kept = heap.Heap()
    for size in ((2, 2), (2, 2), (3, 2)):
        with kept.work(size):
            said.append(size)
    assert said == ["back", (2, 2), "back", (2, 2), "back", (3, 2), "back"]


def test_a_failure_gives_it_back_too(monkeypatch):
    said = []
    monkeypatch.setattr(heap, "give_back", lambda: said.append("back"))
    with pytest.raises(ValueError, match="wrong"), heap.Heap().work(1):
        raise ValueError("wrong")
    assert said == ["back", "back"]


def test_giving_back_is_safe_anywhere():
    heap.give_back()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is another C library")
def test_what_is_freed_is_used_again_and_given_back_at_the_end():
    told = subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True
    ).stdout
    outside, inside, left = map(int, told.split())
    assert outside >= 8 * 16
    # One of the tensors may not fit where the last was.
    assert inside < outside / 4
    assert left < 16 << 20


def test_after_a_failure_nothing_is_kept(tuned):
    with pytest.raises(ValueError, match="wrong"), heap.kept():
        raise ValueError("wrong")
    assert ("mallopt", heap.MMAP_MAX, heap.MMAPS) in tuned
    assert tuned[-1] == ("malloc_trim", 0)


def test_memory_is_kept_until_the_last_thread_is_done(tuned):
    first, second = threading.Event(), threading.Event()

    def another():
        with heap.kept():
            first.set()
            second.wait(10)

    def limits():
        return [told[2] for told in tuned if told[:2] == ("mallopt", heap.MMAP_MAX)]

    with heap.kept():
        thread = threading.Thread(target=another)
        thread.start()
        assert first.wait(10)
    assert limits() == [0]
    second.set()
    thread.join(10)
    assert limits() == [0, heap.MMAPS]


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, "1000") for name in heap.TUNED_BY), ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=9")],
)
def test_what_a_user_has_set_stays(tuned, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with heap.kept():
        pass
    assert {told[0] for told in tuned} == {"malloc_trim"}


def test_without_glibc_nothing_is_tuned(monkeypatch):
    monkeypatch.setattr(heap, "_of_libc", lambda name: None)
    with heap.kept():
        pass

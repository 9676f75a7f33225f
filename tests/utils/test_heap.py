import pytest

from nerve_fast.utils import heap


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

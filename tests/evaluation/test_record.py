import pytest
import torch

from nerve_fast.errors import InputError
from nerve_fast.evaluation.record import add_line, begin, decoded, drop_cut_off, encoded, read_lines


def test_a_line_that_was_cut_off_is_skipped_and_dropped(tmp_path):
    path = tmp_path / "lines.jsonl"
    lines = [{"a": 1}, {"b": [2, "ä"]}]
    for line in lines:
        add_line(path, line)
    whole = path.read_bytes()
    for length in (len(whole), len(whole) - 1, whole.index(b"\n"), 0):
        path.write_bytes(whole[:length])
        kept = whole[:length].count(b"\n")
        for _ in range(2):
            found = []
            read_lines(path, found.append)
            assert found == lines[:kept]
            drop_cut_off(path)
        for line in lines[kept:]:
            add_line(path, line)
        assert path.read_bytes() == whole


def test_a_place_that_cannot_be_had_is_named(tmp_path):
    for access in (
        lambda path: add_line(path, {}),
        lambda path: read_lines(path, print),
        drop_cut_off,
    ):
        with pytest.raises(InputError, match=f"{tmp_path}: cannot be .*irectory"):
            access(tmp_path)


def test_counts_are_kept_sparse(generator):
    matrix = torch.randint(0, 2, (3, 4), generator=generator) * 2**40
    kept = encoded(matrix)
    assert len(kept) == int((matrix != 0).sum())
    row, column, count = decoded(kept, (3, 4)).T
    assert torch.equal(torch.zeros_like(matrix).index_put((row, column), count), matrix)
    assert decoded(encoded(torch.zeros(3, 4, dtype=torch.int64)), (3, 4)).shape == (0, 3)
    for place in ([3, 0, 1], [0, 4, 1], [-1, 0, 1]):
        with pytest.raises(ValueError, match="outside"):
            decoded([place], (3, 4))


def test_another_commit_goes_on_and_another_setting_does_not(tmp_path):
    run = {"settings": {"window": 224}, "commit": "abc1234"}
    begin(tmp_path, run)
    begin(tmp_path, {**run, "commit": "def5678"})
    with pytest.raises(InputError, match=r"settings.window was 224 and is 336"):
        begin(tmp_path, {**run, "settings": {"window": 336}})

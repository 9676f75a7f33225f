import pytest
import torch

from nerve_fast.errors import InputError
from nerve_fast.evaluation.record import add, begin, decoded, done, encoded


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


def test_a_run_of_another_shape_is_named(tmp_path):
    begin(tmp_path, {"settings": {}})
    deep = "[" * 100_000 + "]" * 100_000
    for text in ("[]", "3", '"x"', '{"dataset": 5}', '{"models": []}', deep, "{", "\0"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(InputError, match=r"run\.json: .*; start over with --fresh"):
            begin(tmp_path, {"settings": {}})
    (tmp_path / "run.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"run\.json: cannot be read"):
        begin(tmp_path, {"settings": {}})


def test_every_flipped_bit_is_found_or_drops_the_image(tmp_path, generator):
    begin(tmp_path, {"settings": {}})
    for name in ("a", "b"):
        counts = torch.randint(0, 9, (2, 3), generator=generator), torch.ones(2, 2).long()
        add(tmp_path, 0, name, counts)
    path = tmp_path / "images-0.jsonl"
    whole, known = path.read_bytes(), done(tmp_path, 2)
    for place in torch.randint(0, 8 * len(whole), (200,), generator=generator).tolist():
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        if flipped.endswith(b"\n"):
            with pytest.raises(InputError, match="images-0.jsonl: line [12] is damaged"):
                done(tmp_path, 2)
        else:
            # The end of the last line: it counts as cut off, and its image is done again.
            found = done(tmp_path, 2)
            assert set(found) == {"a"}
            assert torch.equal(found["a"][0], known["a"][0])


def test_files_of_others_are_neither_read_nor_written(tmp_path):
    (tmp_path / "images-7.jsonl").write_text("mine")
    begin(tmp_path, {"settings": {}}, processes=2)
    assert done(tmp_path, 2) == {}
    assert (tmp_path / "images-7.jsonl").read_text() == "mine"
    with pytest.raises(InputError, match=r"images-7\.jsonl: was not made by a run"):
        begin(tmp_path, {"settings": {}}, processes=8)
    other = tmp_path / "other"
    other.mkdir()
    (other / "results.json").write_text("mine")
    with pytest.raises(InputError, match=r"results\.json: was not made by a run"):
        begin(other, {"settings": {}})
    assert (other / "results.json").read_text() == "mine"

import json

import pytest

from nerve_fast.errors import InputError
from nerve_fast.utils.lines import add_line, drop_cut_off, read_json, read_lines, write_json


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


def test_lines_of_others_are_damaged(tmp_path):
    path = tmp_path / "lines.jsonl"
    add_line(path, {"a": 1})
    whole = path.read_bytes()
    for line in (b"{}", b'{"a":1}', b"", b"null", b'{"a":1,"sha256":"' + b"0" * 64 + b'"}'):
        path.write_bytes(whole + line + b"\n")
        with pytest.raises(InputError, match=r"lines.jsonl: line 2 is damaged"):
            read_lines(path, lambda line: None)


def test_what_take_cannot_make_sense_of_is_damaged(tmp_path):
    path = tmp_path / "lines.jsonl"
    add_line(path, {"a": 1})
    for take in (lambda line: line["b"], lambda line: line["a"].b, lambda line: line["a"][0]):
        with pytest.raises(InputError, match="line 1 is damaged"):
            read_lines(path, take)


def test_records_are_not_written_through_links(tmp_path):
    target, link = tmp_path / "target", tmp_path / "lines.jsonl"
    target.write_bytes(b"mine, without an end")
    link.symlink_to(target)
    for write in (lambda: add_line(link, {"a": 1}), lambda: drop_cut_off(link)):
        with pytest.raises(InputError, match="it is a symbolic link"):
            write()
    assert target.read_bytes() == b"mine, without an end"
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="it is a symbolic link"):
        add_line(link, {"a": 1})
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["plain", "größe", "\udcff\udc80"])
def test_documents_hold_any_name(tmp_path, name):
    write_json(tmp_path / "a.json", {"name": name})
    assert read_json(tmp_path / "a.json") == {"name": name}
    json.loads((tmp_path / "a.json").read_bytes())


def test_documents_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"", b"{", b"\xff", b"[" * 10**6, b"9" * 5000):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.json: cannot be read: .*; try again"):
            read_json(path, advice="try again")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)

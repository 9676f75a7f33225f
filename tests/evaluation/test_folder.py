import os

import pytest

from nerve_fast.errors import InputError
from nerve_fast.evaluation.folder import LIST, claim, made, remove_made, seal


def make(folder, name, text="ours"):
    claim(folder, [name])
    (folder / name).write_text(text)
    seal(folder, name)


def test_only_what_was_made_is_removed(tmp_path):
    for name in ("worst-01-a.png", "best-01-a.png", "run.json"):
        make(tmp_path, name)
    for name in ("worst-02-mine.png", "best-notes.txt", "images-0.jsonl"):
        (tmp_path / name).write_text("mine")
    remove_made(tmp_path, starting=("worst-", "best-"))
    assert set(os.listdir(tmp_path)) == {
        LIST,
        "run.json",
        "worst-02-mine.png",
        "best-notes.txt",
        "images-0.jsonl",
    }
    assert list(made(tmp_path)) == ["run.json"]
    remove_made(tmp_path)
    assert made(tmp_path) == {}
    assert not (tmp_path / "run.json").exists()


def test_what_took_the_place_of_a_result_stays(tmp_path):
    make(tmp_path, "worst-01-a.png")
    make(tmp_path, "worst-02-b.png")
    (tmp_path / "worst-01-a.png").write_text("mine now")
    (tmp_path / "worst-02-b.png").unlink()
    (tmp_path / "worst-02-b.png").symlink_to(tmp_path / "worst-01-a.png")
    for name in ("worst-01-a.png", "worst-02-b.png"):
        with pytest.raises(InputError, match=f"{name}: (was not made|is a symbolic link)"):
            claim(tmp_path, [name])
    remove_made(tmp_path)
    assert (tmp_path / "worst-01-a.png").read_text() == "mine now"
    assert (tmp_path / "worst-02-b.png").is_symlink()


def test_a_removed_name_may_be_somebody_elses_later(tmp_path):
    claim(tmp_path, ["images-0.jsonl"])
    (tmp_path / "images-0.jsonl").write_text("ours")
    remove_made(tmp_path)
    (tmp_path / "images-0.jsonl").write_text("mine")
    with pytest.raises(InputError, match="was not made by a run"):
        claim(tmp_path, ["images-0.jsonl"])
    remove_made(tmp_path)
    assert (tmp_path / "images-0.jsonl").read_text() == "mine"


def test_a_claim_that_was_cut_off_is_forgotten(tmp_path):
    claim(tmp_path, ["a", "b"])
    path = tmp_path / LIST
    path.write_bytes(path.read_bytes()[:-5])
    claim(tmp_path, ["c"])
    assert list(made(tmp_path)) == ["a", "c"]


def test_a_list_names_files_of_its_folder_alone(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "outside").write_text("mine")
    from nerve_fast.utils.lines import add_line

    for name in ("../outside", str(tmp_path / "outside"), ".", ".."):
        add_line(folder / LIST, {"name": name, "digest": None})
    remove_made(folder)
    assert (tmp_path / "outside").read_text() == "mine"

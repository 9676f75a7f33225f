import os

import pytest

from nerve_fast import InputError
from nerve_fast.datasets import NAMES, label_files, labels_of
from nerve_fast.datasets.vocabulary import classes_of
from nerve_fast.utils.labels import parse_labels


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.txt"


def test_a_data_set_by_its_name():
    for name in NAMES:
        assert labels_of(name) == classes_of(name)
        parse_labels(labels_of(name))
    assert labels_of("voc21")[:2] == ("background", "aeroplane")


def test_synonyms_comments_and_escaped_commas(path):
    path.write_bytes(
        "\ufeff# my labels\n\ncat, kitten  # small\r\nsalt\\, pepper, spice\n".encode()
        + "  C#\rköttbullar\n".encode()
    )
    labels = labels_of(path)
    assert labels == ("cat, kitten", "salt\\, pepper, spice", "C#", "köttbullar")
    assert parse_labels(labels) == [
        ["cat", "kitten"],
        ["salt, pepper", "spice"],
        ["C#"],
        ["köttbullar"],
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no label"),
        (b" \n# nothing\n", "holds no label"),
        ("köttbullar".encode("latin-1"), "is not UTF-8 text at byte 1"),
        (b"cat\nCat\n", "the name 'Cat' stands twice, in label 1 and 2"),
        (b"cat,,dog", "label 1 is 'cat,,dog'; it holds an empty name"),
        (b"cat\n\0\n", "label 2 is '\\\\x00'; it holds a line break or another character"),
    ],
)
def test_what_is_no_file_of_labels_is_refused(path, content, said):
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as refused:
        labels_of(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_what_cannot_be_read_is_refused(path, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="is a folder; expected a file of labels"):
        labels_of(tmp_path)
    with pytest.raises(InputError, match="labels are '.*'; expected a file, or one of voc21"):
        labels_of(path)
    os.symlink(tmp_path / "nowhere", path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        labels_of(path)
    path.unlink()
    monkeypatch.setattr(label_files, "LARGEST_FILE", 1 << 20)
    path.write_bytes(b"cat " * (1 << 18) + b"x")
    with pytest.raises(InputError, match="is larger than 1 MiB"):
        labels_of(path)

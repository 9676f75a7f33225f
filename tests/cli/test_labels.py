import numpy as np
import pytest
from PIL import Image

from nerve_fast import InputError
from nerve_fast.cli import main as cli
from nerve_fast.cli.labels import labels_of, threshold_of
from nerve_fast.tiny.scenes import generate

LABELS = "grass; water, sea; ball"


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "in" / "scene.png"
    path.parent.mkdir()
    generate(980_000, 64)[0].save(path)
    return path


def segment(scene, folder, *flags, labels=LABELS):
    words = ("segment", scene, "-o", folder, "--labels", labels, *flags)
    return cli.main([str(word) for word in (*words, "--models", "tiny", "--device", "cpu")])


def map_in(folder):
    return np.asarray(Image.open(folder / "scene.labels.png"))


def test_thresholds_are_read():
    assert threshold_of(None) is None
    assert threshold_of(" 0.3 ") == 0.3
    assert threshold_of("cat: 0.4; dog: 0.25;") == {"cat": 0.4, "dog": 0.25}
    assert threshold_of("scale 1:2: 0.5") == {"scale 1:2": 0.5}
    for text in ("", "much", "cat: ", ": 0.3", "cat: 0.3; dog", ":", "; :"):
        with pytest.raises(InputError, match="--threshold is .*; expected a number from 0 to 1"):
            threshold_of(text)
    with pytest.raises(InputError, match="--threshold names 'cat' twice"):
        threshold_of("cat: 0.4; cat: 0.25")


def test_pixels_under_the_threshold_have_no_label_or_the_background(scene, tmp_path, capsys):
    out = tmp_path / "out"

    def written(*flags):
        capsys.readouterr()
        assert segment(scene, out, "--resume", *flags) == 0
        return int(capsys.readouterr().out.split()[0])

    assert written() == 1
    plain = map_in(out)
    # Another threshold is another run, and the same is not.
    assert [written("--threshold", 0.9), written("--threshold", 0.9)] == [1, 0]
    under = map_in(out) == 255
    assert under.any()
    assert np.array_equal(map_in(out)[~under], plain[~under])
    assert written("--threshold", 0.9, "--background", "sea") == 1
    assert np.array_equal(map_in(out), np.where(under, 1, plain))
    assert written("--threshold", "ball: 0.9; sea: 0.1") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--threshold", "2"), "--threshold is 2.0; expected a number from 0 to 1"),
        (("--threshold", "nan"), "--threshold is nan; expected a number from 0 to 1"),
        (("--threshold", "moon: 0.3"), "--threshold names 'moon', which is none of the labels"),
        (("--threshold", "0.3", "--background", "moon"), "--background is 'moon', which is none"),
        (("--background", "ball"), "set --threshold too"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(scene, tmp_path, capsys, flags, said):
    assert segment(scene, tmp_path / "out", *flags) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def labels_in(folder):
    with Image.open(folder / "scene.labels.png") as image:
        return image.text["labels"].split("\n")


def test_labels_by_name_or_from_a_file(scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("grass\nwater, sea\n# none\n")
    assert labels_of("voc21")[0] == "background"
    assert labels_of("mine") == labels_of(str(tmp_path / "mine")) == ["grass", "water, sea"]
    # The name of a folder may be a label, as may what holds a semicolon.
    assert labels_of("in") == ["in"]
    assert labels_of("mine; in") == ["mine", "in"]
    assert labels_of("a\0b") == ["a\0b"]
    assert labels_of(None) == []
    assert segment(scene, tmp_path / "out", labels="mine") == 0
    assert labels_in(tmp_path / "out") == ["grass", "water, sea"]


def test_wrong_labels_are_one_line_and_leave_nothing(scene, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"k\xf6tt")
    (tmp_path / "many.txt").write_text("\n".join(f"label {i}" for i in range(65_536)))
    cases = {
        tmp_path: "is a folder; expected a file of labels",
        tmp_path / "empty.txt": "empty.txt: holds no label",
        tmp_path / "latin.txt": "latin.txt: is not UTF-8 text at byte 1",
        tmp_path / "none.txt": "none.txt: cannot be read: No such file",
        tmp_path / "many.txt": "65,536 labels are given; a label map holds at most 65,535",
    }
    for labels, said in cases.items():
        assert segment(scene, out, labels=labels) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
    assert segment(scene, out, "--top", 0) == 2
    assert "--top is 0; expected 1 or more" in capsys.readouterr().err
    assert not out.exists()

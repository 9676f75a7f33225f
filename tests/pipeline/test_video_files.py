"""Videos as files: what is written, what is refused, and what is left behind."""

import av
import numpy as np
import pytest
from PIL import Image

from nerve_fast.cli import main as cli
from nerve_fast.imaging import videos
from nerve_fast.tiny.scenes import generate

LABELS = "grass; snow; water; ball; box; heart; house; tree"
FLAGS = ("--models", "tiny", "--device", "cpu", "--steps", 2, "--resolution", 64)


@pytest.fixture
def clip(make_film):
    """Three frames at no fixed rate, with sound; their sides are even."""
    return make_film(scene(3), stamps=[0, 40, 300], audio=True)


def scene(count, height=64, width=64):
    pixels = np.asarray(generate(1_300_002, 64)[0])[:height, :width]
    return [np.roll(pixels, 4 * number, 1) for number in range(count)]


def run(*words, labels=LABELS):
    return cli.main([str(word) for word in ("segment", *words, "--labels", labels, *FLAGS)])


def test_an_overlaid_film_its_legend_and_the_labels(clip, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert run(clip, "-o", out, "--threshold", 0.3, "--frames-in-graph", 1) == 0
    said = capsys.readouterr()
    assert said.out == f"1 video written to {out}\n"
    assert f"{clip}: its sound is left out" in said.err
    names = ["clip.labels.npz", "clip.legend.png", "clip.overlay.mp4"]
    assert sorted(path.name for path in out.iterdir()) == names
    with np.load(out / "clip.labels.npz") as stack:
        assert stack["labels"].tolist() == LABELS.split("; ")
        assert np.allclose(stack["times"], [0, 0.04, 0.3], atol=0.002)
        maps = [stack[f"{number:06}"] for number in range(3)]
    assert all(one.shape == (64, 64) and one.dtype == np.uint8 for one in maps)
    with videos.opened(out / "clip.overlay.mp4") as film:
        assert not film.has_audio
        shown = [(np.asarray(image), float(stamp * film.unit)) for image, stamp in film.frames()]
    assert np.allclose([time for _, time in shown], [0, 0.04, 0.3], atol=0.002)
    from nerve_fast.imaging.visualize import coloured

    # Compressed, so within some grey levels.
    for (pixels, _), frame, label_map in zip(shown, scene(3), maps, strict=True):
        numbers = np.where(label_map == 255, -1, label_map.astype(int))
        expected = np.asarray(coloured(Image.fromarray(frame), numbers, LABELS.split("; ")))
        assert np.abs(pixels.astype(int) - expected).mean() < 12
    # Own results are replaced.
    assert run(clip, "-o", out, labels="grass; ball") == 0
    with np.load(out / "clip.labels.npz") as stack:
        assert stack["labels"].tolist() == ["grass", "ball"]


def test_odd_sides_and_the_likeliest_few(make_film, tmp_path):
    path = make_film(scene(2, 63, 61), "odd.mkv", pix_fmt="yuv444p")
    assert run(path, "-o", tmp_path / "out", "--top", 2) == 0
    with np.load(tmp_path / "out" / "odd.labels.npz") as stack:
        assert stack["000001"].shape == (63, 61)
        assert stack["labels"].size == 8
        assert np.unique(stack["000001"]).size <= 2
    with av.open(str(tmp_path / "out" / "odd.overlay.mp4")) as film:
        assert (film.streams.video[0].width, film.streams.video[0].height) == (62, 64)


def test_a_bad_video_stops_nothing_and_leaves_nothing(make_film, tmp_path, capsys):
    out = tmp_path / "out"
    good, cut = make_film(scene(1)), make_film(scene(4), "cut.mp4", movflags="faststart")
    cut.write_bytes(cut.read_bytes()[:-200])
    (tmp_path / "text.avi").write_text("no film")
    assert run(cut, tmp_path / "text.avi", tmp_path / "gone.mp4", good, "-o", out) == 2
    said = capsys.readouterr()
    assert said.out == f"1 video written to {out}, 3 could not be done\n"
    errors = [line for line in said.err.splitlines() if line.startswith("nerve-fast: ")]
    assert len(errors) == 3
    for name in ("cut.mp4: is damaged or truncated", "text.avi: is damaged", "gone.mp4: no such"):
        assert sum(f"{tmp_path}/{name}" in line for line in errors) == 1
    assert {path.name.split(".")[0] for path in out.iterdir()} == {"clip"}


@pytest.mark.parametrize("size", [300, 3000, 7000])
def test_a_full_disk_leaves_nothing(size, make_film, tmp_path, small_disk, capsys):
    noise = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
    clip, out = make_film(list(noise)), tmp_path / "out"
    small_disk(size)
    assert run(clip, "-o", out, "--frames-in-graph", 0) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"nerve-fast: {clip}: {out}/clip.")
    assert line.endswith("cannot be written: File too large")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--save-heatmaps",), "--save-heatmaps is not for videos; leave it out"),
        (("--resume",), "--resume is not for videos"),
        (("--batch-size", 2), "--batch-size is not for videos"),
        (("--points", "ball: 3,3"), "a video takes words alone"),
        (("--export", "csv"), "--export is not for videos"),
        (("--frames-in-graph", -1), "--frames-in-graph is -1; expected 0 or more"),
        (("-o", "out.mp4"), "--output is out.mp4; expected a folder"),
        (("-o", "/proc/x"), "the output folder /proc/x cannot be written"),
        (("photo.jpg",), "are given together; run the command once for each kind"),
        (("--max-memory", "100kB"), "reading and writing films of 64 × 64 pixels takes up to"),
        (("--max-memory", "9MB"), "segmenting 64 × 64 pixels"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words, said, make_film, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    clip = make_film(scene(1))
    assert run(clip, *words, *(() if "-o" in words else ("-o", "out"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert {path.name for path in tmp_path.rglob("*")} <= {"clip.mp4", "out"}


def test_files_of_others_are_left_alone(make_film, tmp_path, capsys):
    clip, out = make_film(scene(1)), tmp_path / "out"
    out.mkdir()
    for name in ("clip.labels.npz", "clip.legend.png", "clip.overlay.mp4"):
        (out / name).write_text("mine")
        assert run(clip, "-o", out) == 2
        assert f"{out / name}: was not made by this command" in capsys.readouterr().err
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    mine = clip.rename(tmp_path / "clip.overlay.mp4")
    other = make_film(scene(1))
    assert run(other, mine, "-o", tmp_path) == 2
    assert "would overwrite the input" in capsys.readouterr().err


def test_an_interruption_leaves_nothing(clip, tmp_path, monkeypatch):
    def interrupt(self, image, stamp):
        raise KeyboardInterrupt

    monkeypatch.setattr(videos.Writer, "write", interrupt)
    assert run(clip, "-o", tmp_path / "out") == 130
    assert list((tmp_path / "out").iterdir()) == []

"""Films in, from files as they are and as they should not be; and films out."""

import fractions
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from nerve_fast.errors import InputError
from nerve_fast.imaging import videos


def blocks(count, height=48, width=64):
    """Frames of large blocks, each of a colour of its own."""
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (count, height // 16, width // 16, 3), dtype=np.uint8)
    return list(coarse.repeat(16, 1).repeat(16, 2))


def read(path):
    with videos.opened(path) as film:
        return [(np.asarray(image), float(stamp * film.unit)) for image, stamp in film.frames()]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.ts"])
def test_frames_come_as_they_are_and_when_they_are_shown(name, make_film):
    frames = blocks(4)
    path = make_film(frames, name, audio=name == "a.mkv")
    found = read(path)
    assert np.allclose([time for _, time in found], [0, 0.04, 0.08, 0.12], atol=0.003)
    for (pixels, _), expected in zip(found, frames, strict=True):
        assert np.abs(pixels.astype(int) - expected).mean() < 12
    with videos.opened(path) as film:
        assert film.size == (64, 48)
        assert film.has_audio == (name == "a.mkv")
        assert film.expected == (4 if name in ("a.mp4", "a.mov") else None)


def test_frames_without_times_follow_one_another(make_film):
    found = [time for _, time in read(make_film(blocks(5), "a.avi"))]
    assert len(found) == 5
    assert found[0] == 0
    assert (np.diff(found) > 0).all()


def test_frames_at_no_fixed_rate_keep_their_times(make_film):
    found = read(make_film(blocks(4), stamps=[0, 40, 300, 310]))
    assert [round(time, 3) for _, time in found] == [0, 0.04, 0.3, 0.31]


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_film_that_is_to_be_turned_is_upright(quarters, make_film):
    path = make_film(blocks(2))
    lying = [pixels for pixels, _ in read(path)]
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    a, b, c, d = {1: (0, one, -one, 0), 2: (-one, 0, 0, -one), 3: (0, -one, one, 0)}[quarters]
    content[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    # The matrix turns clockwise, as a telephone's that is held upright.
    for (pixels, _), expected in zip(read(path), lying, strict=True):
        assert np.array_equal(pixels, np.rot90(expected, -quarters))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (0.01, "clip.mp4: "),
        (0.5, "clip.mp4: is damaged or truncated: it ends after"),
        (0.97, "clip.mp4: is damaged or truncated: it ends after"),
    ],
)
def test_a_truncated_film_is_refused(part, said, make_film):
    path = make_film(blocks(12), movflags="faststart")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(InputError, match=said) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_where_the_number_of_frames_is_not_known_a_truncated_film_is_said(make_film, caplog):
    path = make_film(blocks(6), "clip.mkv", stamps=[0, 1000, 2000, 3000, 4000, 9000])
    assert len(read(path)) == 6
    assert caplog.messages == []
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    assert 1 <= len(read(path)) < 6
    assert "s before the end that the file names; it may be truncated" in caplog.text


def test_a_damaged_film_is_one_line(make_film):
    path = make_film(blocks(6))
    content = path.read_bytes()
    start = content.index(b"mdat") + 20
    noise = np.random.default_rng(0).bytes(len(content))
    end = content.index(b"moov") - 4
    path.write_bytes(content[:start] + noise[: end - start] + content[end:])
    with pytest.raises(InputError, match=r"clip.mp4: is damaged") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_what_holds_no_film_says_so(tmp_path):
    import av

    with av.open(str(tmp_path / "sound.mp4"), "w") as film:
        sound = film.add_stream("aac", rate=8000)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.rate, frame.pts = 8000, 0
        film.mux(sound.encode(frame))
        film.mux(sound.encode(None))
    (tmp_path / "text.mp4").write_text("no film " * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    for name, said in {
        "sound.mp4": "holds no film, only audio",
        "text.mp4": "is damaged, truncated, or no film that is read",
        "empty.mp4": "the file is empty",
        "folder.mp4": "is a folder",
        "gone.mp4": "no such file",
    }.items():
        with pytest.raises(InputError, match=f"{name}: {said}"):
            read(tmp_path / name)


def test_a_film_without_frames_says_so(tmp_path):
    import av

    with av.open(str(tmp_path / "none.mkv"), "w") as film:
        stream = film.add_stream("libx264")
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        film.start_encoding()
    with pytest.raises(InputError, match="none.mkv: holds no frame"):
        read(tmp_path / "none.mkv")


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r'pip install "nerve-fast\[video\]"'):
        videos.need()


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_what_is_written_comes_back(size, tmp_path):
    frames = [frame[: size[0], : size[1]] for frame in blocks(3)]
    with videos.Writer(tmp_path / "out.mp4", fractions.Fraction(1, 1000)) as writer:
        for frame, stamp in zip(frames, (0, 40, 300), strict=True):
            writer.write(Image.fromarray(frame), stamp)
    found = read(tmp_path / "out.mp4")
    assert [round(time, 3) for _, time in found] == [0, 0.04, 0.3]
    for (pixels, _), expected in zip(found, frames, strict=True):
        assert pixels.shape == (48, 64, 3)
        assert np.abs(pixels[: size[0], : size[1]].astype(int) - expected).mean() < 12
    assert videos.MARK in (tmp_path / "out.mp4").read_bytes()[:4096]


def test_a_disk_that_is_full_is_an_os_error(tmp_path, small_disk):
    small_disk(2000)
    frames = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)

    def write():
        with videos.Writer(tmp_path / "out.mp4", fractions.Fraction(1, 25)) as writer:
            for number, frame in enumerate(frames):
                writer.write(Image.fromarray(frame), number)

    with pytest.raises(OSError, match="File too large"):
        write()

"""Films by PyAV: frames in, upright and in RGB, one after another; and a film out."""

import contextlib
import dataclasses
import fractions
import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from nerve_fast.errors import InputError
from nerve_fast.imaging.decoding import opened_file
from nerve_fast.utils.files import shown
from nerve_fast.utils.text import plain

logger = logging.getLogger(__name__)

ENCODER = "libx264"

LOOK_AHEAD = 10
"""Frames that the encoder keeps to plan with, in place of its usual 40."""

BYTES_PER_PIXEL = 128
"""What decoding and encoding hold of a film for each pixel of a frame, at most about."""

USUAL_RATE = 25
"""Frames a second, where a file says nothing at all."""

MOST_MISSING = 2.0
"""Seconds from the last frame to the end that a film without a number of frames names."""

MARK = b"nerve-fast"
"""What films that are written here hold at their start: the name of the track's handler."""


def need() -> None:
    """Raise an :class:`InputError` where PyAV is not installed."""
    if importlib.util.find_spec("av") is None:
        raise InputError('av (PyAV) is not installed; get it: pip install "nerve-fast[video]"')


class Frame(NamedTuple):
    """A frame of a film.

    Attributes:
        image: RGB, upright.
        stamp: when it is shown, in units of :attr:`Film.unit`, from the first frame on.
    """

    image: Image.Image
    stamp: int


@dataclasses.dataclass(frozen=True, eq=False)
class Film:
    """A film that is open for reading.

    Attributes:
        path: of the file.
        size: ``(width, height)`` of the frames, before they are turned upright.
        unit: of the frames' stamps, in seconds.
        expected: how many frames the file says that it has; ``None`` where it does not.
        has_audio: whether there is sound.
    """

    path: Path
    size: tuple[int, int]
    unit: fractions.Fraction
    expected: int | None
    has_audio: bool
    _container: Any
    _stream: Any

    @property
    def memory(self) -> int:
        """Bytes that reading it, and writing another of its size, take at most, about."""
        return BYTES_PER_PIXEL * self.size[0] * self.size[1]

    def frames(self) -> Iterator[Frame]:
        """The frames in the order of showing, one in memory at a time.

        Raises:
            InputError: the film holds no frame, is damaged, or ends before the file says.
        """
        first: int | None = None
        last = 0
        damaged = False
        rate = self._stream.average_rate or self._stream.guessed_rate or USUAL_RATE
        step = max(round(1 / (rate * self.unit)), 1)
        with _reading(self.path):
            for frame in self._decoded():
                damaged = damaged or frame.is_corrupt
                if first is None:
                    first = frame.pts or 0
                elif frame.pts is None:  # Old containers name no times.
                    last += step
                else:
                    last = max(frame.pts - first, last + 1)
                pixels = upright(frame.to_ndarray(format="rgb24"), frame.rotation)
                del frame
                yield Frame(Image.fromarray(pixels), last)
        if first is None:
            raise InputError(f"{shown(self.path)}: holds no frame")
        if damaged:
            logger.warning(
                "%s: frames are damaged, and taken as FFmpeg mended them", shown(self.path)
            )
        # Sound, which may go on, is in it: no reason to refuse the film.
        missing = (self._container.duration or 0) / 1e6 - float(last * self.unit)
        if self.expected is None and missing > MOST_MISSING:
            logger.warning(
                "%s: its last frame is %.1f s before the end that the file names; it may be "
                "truncated",
                *(shown(self.path), missing),
            )

    def _decoded(self) -> Iterator[Any]:
        """The decoder's frames.

        Raises:
            InputError: there are fewer than the file says.
        """
        frames = unseen = 0
        for packet in self._container.demux(self._stream):
            unseen += packet.is_discard
            for frame in packet.decode():
                frames += 1
                yield frame
        if self.expected is not None and frames < self.expected - unseen:
            raise InputError(
                f"{shown(self.path)}: is damaged or truncated: it ends after {frames} of "
                f"{self.expected} frames"
            )


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Film]:
    """A film, opened for reading.

    Raises:
        InputError: PyAV is not installed; the file is missing, unreadable or damaged, or holds no
            film.
    """
    need()
    import av

    with opened_file(path) as file, contextlib.ExitStack() as closing:
        with _reading(path):
            container = closing.enter_context(av.open(file, "r", metadata_errors="replace"))
            pictures = av.stream.Disposition.attached_pic
            streams = [one for one in container.streams.video if not one.disposition & pictures]
            if not streams:
                raise InputError(f"{shown(path)}: holds no film, only {_kinds(container)}")
            stream = streams[0]
            stream.thread_type = "AUTO"
            unit, size = stream.time_base, (stream.codec_context.width, stream.codec_context.height)
        yield Film(
            path=Path(path),
            size=size,
            unit=unit,
            # In others it is a guess, or counts gaps.
            expected=stream.frames or None if "mp4" in container.format.name else None,
            has_audio=bool(container.streams.audio),
            _container=container,
            _stream=stream,
        )


def _kinds(container: Any) -> str:
    return " and ".join(sorted({stream.type for stream in container.streams})) or "no stream"


def upright(pixels: np.ndarray, degrees: int) -> np.ndarray:
    """``(H, W, 3)`` turned by a film's rotation, a multiple of 90° counter-clockwise."""
    return np.rot90(pixels, round(degrees / 90) % 4)


@contextlib.contextmanager
def _reading(path: str | os.PathLike) -> Iterator[None]:
    import av

    try:
        yield
    except InputError:
        raise
    except EOFError:
        raise InputError(f"{shown(path)}: holds no frame") from None
    except (av.FFmpegError, ValueError) as error:
        said = plain(getattr(error, "strerror", None) or " ".join(str(error).split()))
        raise InputError(
            f"{shown(path)}: is damaged, truncated, or no film that is read ({said})"
        ) from None


class Writer:
    """A film that is being written: H.264 in MP4, without sound.

    Sides that are odd get one more row or column, a copy of the last: H.264 as players take it has
    even ones.

    Args:
        path: that is written to.
        unit: of the frames' stamps, in seconds.

    Raises:
        InputError: this PyAV has no H.264 encoder.
    """

    def __init__(self, path: Path, unit: fractions.Fraction):
        need()
        import av

        if ENCODER not in av.codecs_available:
            raise InputError(
                f"this PyAV has no encoder {ENCODER}; the one of PyPI has: pip install av"
            )
        self._unit = unit
        # What describes the film comes first, so that players on the web need not fetch all of it.
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        self._stream: Any = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, error, trace) -> None:
        with _writing() if error is None else contextlib.suppress(Exception):
            if error is None and self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()

    def write(self, image: Image.Image, stamp: int) -> None:
        """Add a frame, RGB, of the size of the first one.

        Raises:
            OSError: it cannot be written.
        """
        import av

        pixels = np.asarray(image)
        height, width = pixels.shape[:2]
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._container.add_stream(
                ENCODER, options={"crf": "18", "rc-lookahead": str(LOOK_AHEAD)}
            )
            self._stream.height, self._stream.width = pixels.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            self._stream.metadata["handler_name"] = MARK.decode()
            self._stream.codec_context.time_base = self._unit
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = stamp, self._unit
        with _writing():
            self._container.mux(self._stream.encode(frame))


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Turn what FFmpeg cannot write into an :class:`OSError`."""
    import av

    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from None

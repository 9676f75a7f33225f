"""The label maps of a film in one ``.npz`` file, written frame by frame."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class LabelStack:
    """A ``.npz`` file that grows by one label map at a time.

    ``numpy.load`` reads from it, each when it is asked for: the label map of the frame ``n`` as
    ``f"{n:06}"``, ``(H, W)`` uint8 (uint16 with more than 255 labels), whose largest value stands
    for no label; ``times``, ``(T,)`` float64, seconds from the first frame on; ``labels``.

    Args:
        path: that is written to.
        labels: ``K`` names.
        mark: an extra field of the archive's first member, by which the file is known again.
    """

    def __init__(self, path: Path, labels: Sequence[str], mark: bytes):
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6)
        self._dtype = np.uint8 if len(labels) <= 255 else np.uint16
        self._times: list[float] = []
        self._write("labels", np.array(labels), mark)

    def __enter__(self) -> "LabelStack":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if error is None:
                self._write("times", np.array(self._times))
            self._archive.close()
        except OSError:
            if error is None:
                raise

    def write(self, label_map: np.ndarray, time: float) -> None:
        """Add a frame.

        Args:
            label_map: ``(H, W)`` integers, −1 where there is no label.
            time: in seconds from the first frame on.

        Raises:
            OSError: it cannot be written.
        """
        self._write(f"{len(self._times):06}", label_map.astype(self._dtype))
        self._times.append(time)

    def _write(self, name: str, values: np.ndarray, mark: bytes = b"") -> None:
        member = zipfile.ZipInfo(f"{name}.npy")
        member.compress_type = zipfile.ZIP_DEFLATED
        member.extra = mark
        with self._archive.open(member, "w", force_zip64=True) as file:
            np.lib.format.write_array(file, values)

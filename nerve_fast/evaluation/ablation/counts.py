"""Confusion matrices of each setting on each image, kept on disk."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from nerve_fast.evaluation import record
from nerve_fast.utils.lines import add_line, drop_cut_off, read_lines


class Counts:
    """Confusion matrices of images and settings, in a file that grows by a line an image.

    A run that was stopped goes on where it was: what is not whole of the last line is dropped.

    Args:
        path: of the file; it need not be there.
        classes: ``K``.
        keys: of the settings that are asked for; of others in the file nothing is known.

    Raises:
        InputError: the file cannot be read or written.
    """

    def __init__(self, path: Path, classes: int, keys: Collection[str]):
        self.path = path
        self.classes = classes
        self.keys = keys
        self.known: dict[tuple[str, str], Tensor] = {}
        if path.exists():
            drop_cut_off(path)
            read_lines(path, self._take)

    def _take(self, line: dict) -> None:
        image, counts = line["image"], line["counts"]
        for key in self.keys:
            if key in counts:
                self.known[image, key] = record.decoded(
                    counts[key], (self.classes, self.classes + 1)
                )

    def __contains__(self, of: tuple[str, str]) -> bool:
        return of in self.known

    def matrix(self, image: str, key: str) -> Tensor:
        """``(K, K+1)`` int64 of an image and the key of a setting, rows are the truth."""
        truth, prediction, count = self.known[image, key].T
        matrix = torch.zeros(self.classes, self.classes + 1, dtype=torch.int64)
        matrix[truth, prediction] = count
        return matrix

    def add(self, image: str, matrices: dict[str, Tensor]) -> None:
        """Keep the matrices of an image, by the keys of settings."""
        counts = {key: record.encoded(matrix) for key, matrix in matrices.items()}
        line = {"image": image, "counts": counts}
        add_line(self.path, line)
        self._take(line)

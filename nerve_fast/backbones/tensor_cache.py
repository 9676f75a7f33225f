"""Tensors kept on disk under all that they depend on; what is damaged counts as absent."""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nerve_fast.errors import InputError
from nerve_fast.utils.files import written_whole
from nerve_fast.utils.locks import claimed

logger = logging.getLogger(__name__)

NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
"""Of a cache's files; nothing else in its folder is touched."""


class TensorCache:
    """One file for each word, of the tensors that a model has of it.

    A file that is damaged, or was written for something else, counts as absent. A folder that
    cannot be written costs a warning, not the run. Where there are too many files the oldest go.

    Args:
        folder: where the files lie.
        model: whatever tells one model from another, JSON-able: id, revision, fingerprint,
            settings.
        what: the tensors are, for messages.
        most: files that are kept, those of all models together.
        looked_after: files after which a process looks whether there are more, the first time
            after one.
    """

    def __init__(self, folder: Path, model: Any, what: str, most: int, looked_after: int):
        self.folder = folder
        self.model = model
        self.what = what
        self.most = most
        self.looked_after = looked_after
        self.writable = True
        self.written = 0

    def load(self, word: str) -> dict[str, Tensor] | None:
        """The tensors of ``word`` by name, or ``None``."""
        key = self._key(word)
        try:
            with safe_open(self._path(key), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        if metadata.get("key") != key or metadata.get("sha256") != _digest(tensors):
            return None
        return tensors

    def save(self, word: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of ``word``."""
        if not self.writable:
            return
        key = self._key(word)
        kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
        metadata = {"key": key, "sha256": _digest(kept), "word": word}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with written_whole(self._path(key)) as path:
                save_file(kept, path, metadata=metadata)
            if self.written % self.looked_after == 0:
                self._remove_oldest()
            self.written += 1
        except (OSError, InputError, SafetensorError) as error:
            self.writable = False
            logger.warning(
                "%s are not kept: cannot write to %s (%s)", self.what, self.folder, error
            )

    def claimed(self, word: str, *, patient: bool) -> AbstractContextManager[bool]:
        """Keep others from making the tensors of ``word``; see :func:`claimed`.

        Whoever has it looks once more whether they are there.
        """
        return claimed(self._path(self._key(word)).with_suffix(".lock"), patient=patient)

    def _remove_oldest(self) -> None:
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if NAME.fullmatch(entry.name):
                    # Another process may remove files too.
                    with contextlib.suppress(FileNotFoundError):
                        files.append((entry.stat().st_mtime_ns, entry.path))
        for _, path in sorted(files)[: -self.most]:
            Path(path).unlink(missing_ok=True)

    def _key(self, word: str) -> str:
        return hashlib.sha256(json.dumps([self.model, word]).encode()).hexdigest()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""Text embeddings kept on disk, so that a label is encoded once a machine."""

import contextlib
import hashlib
import json
import logging
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nerve_fast.errors import InputError
from nerve_fast.utils.files import written_whole

logger = logging.getLogger(__name__)


def fingerprint(*modules: nn.Module) -> str:
    """SHA-256 of the modules' weights: names, dtypes, shapes and bytes.

    A folder's path does not change when its weights do.
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {value.dtype} {[*value.shape]}".encode())
            flat = value.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
"""Of the cache's files; nothing else in the folder is touched."""

MOST_FILES = 20_000
"""Embeddings that are kept on disk, those of all models together: 60 MB for ViT-L/14."""

LOOKED_AFTER = 1_000
"""Files after which a process looks whether there are more, the first time after one."""


class TextCache:
    """One small file for each ``(model, revision, templates, word)``.

    A file that is damaged, or was written for something else, counts as absent. A folder that
    cannot be written costs a warning, not the run. Beyond :data:`MOST_FILES` the oldest go.

    Args:
        folder: where the files lie.
        model: whatever tells one model from another, JSON-able: id, revision, fingerprint,
            templates.
    """

    def __init__(self, folder: Path, model: dict):
        self.folder = folder / "text"
        self.model = model
        self.writable = True
        self.written = 0

    def read(self, word: str) -> Tensor | None:
        """The embedding of ``word``, ``(E,)`` float32, or ``None``."""
        key = self._key(word)
        try:
            with safe_open(self._path(key), framework="pt") as file:
                embedding, metadata = file.get_tensor("embedding"), file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        if metadata.get("key") != key or metadata.get("sha256") != _digest(embedding):
            return None
        return embedding

    def write(self, word: str, embedding: Tensor) -> None:
        """Keep the embedding of ``word``, ``(E,)`` float32."""
        if not self.writable:
            return
        key = self._key(word)
        metadata = {"key": key, "sha256": _digest(embedding), "word": word}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with written_whole(self._path(key)) as path:
                save_file({"embedding": embedding.contiguous()}, path, metadata=metadata)
            if self.written % LOOKED_AFTER == 0:
                self._remove_oldest()
            self.written += 1
        except (OSError, InputError, SafetensorError) as error:
            self.writable = False
            logger.warning(
                "text embeddings are not kept: cannot write to %s (%s)", self.folder, error
            )

    def _remove_oldest(self) -> None:
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if NAME.fullmatch(entry.name):
                    # Another process may remove files too.
                    with contextlib.suppress(FileNotFoundError):
                        files.append((entry.stat().st_mtime_ns, entry.path))
        for _, path in sorted(files)[:-MOST_FILES]:
            Path(path).unlink(missing_ok=True)

    def _key(self, word: str) -> str:
        return hashlib.sha256(json.dumps([self.model, word]).encode()).hexdigest()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def _digest(embedding: Tensor) -> str:
    return hashlib.sha256(embedding.contiguous().view(torch.uint8).numpy().data).hexdigest()

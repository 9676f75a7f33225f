"""Text embeddings kept on disk, so that a label is encoded once a machine."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from nerve_fast.backbones.tensor_cache import TensorCache
from nerve_fast.utils.provenance import digest


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


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that a tokenizer's tokens depend on, whatever its last call asked for."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        # SentencePiece's: its vocabulary is what differs.
        return digest([type(tokenizer).__name__, tokenizer.get_vocab()])
    described = json.loads(backend.to_str())
    # Set anew by each call.
    for name in ("padding", "truncation"):
        described.pop(name, None)
    return digest(described)


MOST_FILES = 20_000
"""Embeddings that are kept on disk, those of all models together: 60 MB for ViT-L/14."""

LOOKED_AFTER = 1_000
"""Files after which a process looks whether there are more, the first time after one."""


class TextCache(TensorCache):
    """One small file for each ``(model, revision, templates, word)``.

    Args:
        folder: below which the files lie, in ``text``.
        model: whatever tells one model from another, JSON-able: id, revision, fingerprint,
            templates.
    """

    def __init__(self, folder: Path, model: dict):
        super().__init__(folder / "text", model, "text embeddings", MOST_FILES, LOOKED_AFTER)

    def read(self, word: str) -> Tensor | None:
        """The embedding of ``word``, ``(E,)`` float32, or ``None``."""
        tensors = self.load(word)
        return None if tensors is None else tensors.get("embedding")

    def write(self, word: str, embedding: Tensor) -> None:
        """Keep the embedding of ``word``, ``(E,)`` float32."""
        self.save(word, {"embedding": embedding})

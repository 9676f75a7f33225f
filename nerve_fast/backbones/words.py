"""Embeddings of words by a text encoder: each encoded once a machine."""

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from nerve_fast.backbones.templates import IMAGENET_TEMPLATES
from nerve_fast.backbones.text_cache import TextCache, fingerprint, tokenizer_digest
from nerve_fast.errors import InputError
from nerve_fast.utils.provenance import version

MOST_WORDS = 10_000
"""Words whose embeddings are kept in memory: 30 MB for ViT-L/14."""


class WordEncoder:
    """Base of the models of images and text: what they have in common are words.

    A model of its own overrides :meth:`text_parts` and :meth:`embed`.

    Args:
        model: on its device and in its dtype.
        tokenizer: its tokenizer.
        source: hub id or folder, for messages.
        cache: the folder for text embeddings.
        revision: of the hub's repository, where the model comes from one.

    Attributes:
        padding: how prompts are padded, as tokenizers take it.
        reader: the model's name, for messages.

    Raises:
        ValueError: the tokenizer has tokens that the model does not know.
    """

    padding: bool | str = True
    reader: str = "CLIP"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        source: str,
        cache: Path,
        revision: str | None = None,
    ):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.source = source
        self.revision = revision
        self._check_tokens()
        self._embeddings: dict[tuple[tuple[str, ...], str], Tensor] = {}
        self._cache_folder = cache
        self._caches: dict[tuple[str, ...], TextCache] = {}
        self._known_state: tuple = ()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @functools.cached_property
    def identity(self) -> str:
        """A digest of all weights, and the revision: what tells the model from others."""
        return f"sha256 {fingerprint(self.model)} revision {self.revision}"

    @property
    def context(self) -> int:
        """Tokens that the model reads at most."""
        return self.model.config.text_config.max_position_embeddings

    def text_parts(self) -> tuple[nn.Module, ...]:
        """The modules that an embedding depends on."""
        raise NotImplementedError

    def embed(self, tokens: BatchEncoding) -> Tensor:
        """Embeddings ``(n, E)`` of ``n`` prompts, of any norm."""
        raise NotImplementedError

    @torch.no_grad()
    def encode_words(
        self,
        words: Sequence[str],
        templates: Sequence[str] | None = None,
        *,
        progress: bool = False,
    ) -> Tensor:
        """Text embeddings: the mean over templates of normalised embeddings.

        Each word is encoded once: later calls take it from memory, later runs from disk.

        Args:
            words: names of things.
            templates: of prompts, each with ``{}`` for the word; ``None`` are OpenAI's 80.
            progress: show a progress bar, on a terminal, over the words not yet known.

        Returns:
            ``(len(words), E)`` float32 on the model's device, rows of norm 1.

        Raises:
            InputError: a word does not fit into the model's context.
        """
        prompts = IMAGENET_TEMPLATES if templates is None else tuple(templates)
        self._forget_if_changed()
        embeddings = self._embeddings
        known = {word: embeddings[prompts, word] for word in words if (prompts, word) in embeddings}
        missing = [word for word in dict.fromkeys(words) if word not in known]
        for word in tqdm(missing, "text", unit="word", disable=None if progress else True):
            if prompts not in self._caches:
                cache = TextCache(self._cache_folder, self._identity(prompts))
                self._caches = {**self._caches, prompts: cache}
            embedding = self._caches[prompts].read(word)
            if embedding is None:
                embedding = self._encode(word, prompts)
                self._caches[prompts].write(word, embedding)
            known[word] = embedding
        if missing:
            # Another dict, as other threads may be reading this one.
            latest = dict(self._embeddings)
            latest.update(((prompts, word), known[word]) for word in known)
            for key in list(latest)[:-MOST_WORDS]:
                del latest[key]
            self._embeddings = latest
        return torch.stack([known[word] for word in words]).to(self.device)

    def _encode(self, word: str, templates: Sequence[str]) -> Tensor:
        tokens = self._tokens([template.format(word) for template in templates])
        length = tokens.input_ids.shape[1]
        if length > self.context:
            raise InputError(
                f"the label {word!r} takes {length} tokens with its prompt, and {self.reader} "
                f"reads {self.context}: shorten it"
            )
        tokens = tokens.to(self.device)
        # What is kept must not depend on the caller's autocast.
        with torch.autocast(self.device.type, enabled=False):
            embeddings = normalize(self.embed(tokens).float(), dim=-1)
            return normalize(embeddings.mean(0), dim=-1).cpu()

    def _tokens(self, prompts: list[str]) -> BatchEncoding:
        return self.tokenizer(
            prompts,
            padding=self.padding,
            max_length=self.context if self.padding == "max_length" else None,
            return_tensors="pt",
            verbose=False,
        )

    def _check_tokens(self) -> None:
        most = max(self.tokenizer.get_vocab().values(), default=-1)
        known = self.model.config.text_config.vocab_size
        if most >= known:
            raise ValueError(
                f"the tokenizer has token {most}, and the model knows {known}: they belong to "
                "different models"
            )

    def _state(self) -> tuple:
        """Return a cheap fingerprint that changes when cached embeddings are out of date."""
        weights = itertools.chain.from_iterable(part.parameters() for part in self.text_parts())
        # Tensors that were made in inference mode do not count changes.
        versions = [
            (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
            for weight in weights
        ]
        return self.device, self.model.dtype, len(self.tokenizer), versions

    def _forget_if_changed(self) -> None:
        state = self._state()
        if state != self._known_state:
            self._known_state, self._embeddings, self._caches = state, {}, {}

    def _identity(self, templates: Sequence[str] = IMAGENET_TEMPLATES) -> dict:
        """All that an embedding depends on besides the word."""
        config = self.model.config.text_config.to_dict()
        for name in ("_name_or_path", "transformers_version"):
            config.pop(name, None)
        return {
            "revision": self.revision,
            "weights": fingerprint(*self.text_parts()),
            "config": json.dumps(config, sort_keys=True, default=str),
            "attention": self.model.config._attn_implementation,
            "tokenizer": tokenizer_digest(self.tokenizer),
            "padding": [
                self.tokenizer.pad_token_id,
                self.tokenizer.padding_side,
                self.tokenizer.model_max_length,
            ],
            "templates": templates,
            "computed": [self.device.type, str(self.model.dtype)],
            "versions": [version("torch"), version("transformers"), version("tokenizers")],
        }

"""From similarities of words to scores of labels, and to a distribution over them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nerve_fast.errors import InputError


def best_words(words: Tensor, classes: Sequence[Sequence[str]]) -> Tensor:
    """Return the score of each label's best word.

    Args:
        words: ``(…, words, h, w)``, scores of the words of all labels one after another.
        classes: the words of each of the ``K`` labels.

    Returns:
        ``(…, K, h, w)``.
    """
    labels = words.split([len(synonyms) for synonyms in classes], dim=-3)
    return torch.stack([synonyms.amax(-3) for synonyms in labels], dim=-3)


def as_distribution(scores: Tensor) -> Tensor:
    """Scores ``(…, K, h, w)`` of labels, not negative, made to sum to 1 over ``K``.

    Where all of them are 0 all labels are alike.
    """
    total = scores.sum(-3, keepdim=True)
    return torch.where(total > 0, scores / total.where(total > 0, 1), 1 / scores.shape[-3])


def apart(
    background: str | None, classes: Sequence[Sequence[str]]
) -> tuple[int | None, Sequence[Sequence[str]]]:
    """Say which label is the background, ``None`` where none is, and what the others' words are.

    Args:
        background: a word of it; ``None``: there is none.
        classes: the words of each of the ``K`` labels.

    Raises:
        InputError: there is no other label.
    """
    place = next((i for i, words in enumerate(classes) if background in words), None)
    others = [words for i, words in enumerate(classes) if i != place]
    if not others:
        raise InputError(f"the labels are the background {background!r} alone; name another one")
    return place, others

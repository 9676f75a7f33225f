"""From similarities of words to a distribution over labels, and from there to the tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor


def probabilities_of(
    similarity: Tensor, classes: Sequence[Sequence[str]], logit_scale: float
) -> Tensor:
    """The probability of each label at each place.

    Softmax over all words, synonyms included; a label's probability is that of its likeliest
    synonym; then the labels are made to sum to 1.

    Args:
        similarity: ``(B, words, h, w)``, of the words of all labels one after another.
        classes: the words of each of the ``K`` labels.
        logit_scale: similarities are multiplied by this.

    Returns:
        ``(B, K, h, w)``.
    """
    probabilities = torch.softmax(logit_scale * similarity, dim=1)
    labels = probabilities.split([len(synonyms) for synonyms in classes], dim=1)
    best = torch.stack([synonyms.amax(1) for synonyms in labels], dim=1)
    return best / best.sum(1, keepdim=True)

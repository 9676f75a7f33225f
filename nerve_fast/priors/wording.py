"""Prompts with the names of what is in an image, and which of their tokens stand for each."""

import dataclasses
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

BETWEEN = " and "
"""Between two names."""


@dataclasses.dataclass(frozen=True)
class Worded:
    """A prompt.

    Attributes:
        tokens: of the whole of it, without those that stand around it.
        places: of each name, of the tokens that count; the token before the prompt is at place 0.
    """

    tokens: list[int]
    places: list[list[int]]


def parts_of(name: str) -> tuple[str, str, str]:
    """What stands before, within and after square brackets; what counts is within.

    Of a name without brackets all of it counts.
    """
    before, *rest = re.split(r"\[(.*)\]", name, maxsplit=1)
    return (before, rest[0], rest[1]) if rest else ("", before, "")


def worded(tokenizer: PreTrainedTokenizerBase, prompt: str, names: Sequence[str]) -> Worded:
    """A prompt with names in it, joined by "and".

    Args:
        tokenizer: of the text encoder.
        prompt: with ``{}`` for the names.
        names: where a part of one stands in square brackets, as in ``"traffic [light]"``, its
            tokens alone count; otherwise all do.
    """

    def tokens_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    before, after = prompt.split("{}")
    tokens, places = tokens_of(before), []
    for number, name in enumerate(names):
        tokens += tokens_of(BETWEEN) if number else []
        before_it, counted, after_it = map(tokens_of, parts_of(name))
        first = 1 + len(tokens) + len(before_it)
        places.append([*range(first, first + len(counted))])
        tokens += before_it + counted + after_it
    return Worded(tokens + tokens_of(after), places)

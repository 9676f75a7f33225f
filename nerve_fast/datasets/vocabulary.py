"""The classes of each data set, and the words that stand for them.

``classes.json`` holds the plain names, and what the field's lists say instead: which sets have
their names glued ("trafficlight"), and which names are replaced by which words.
"""

import json
from pathlib import Path

from nerve_fast.datasets.dataset import Dataset
from nerve_fast.errors import InputError

_FACTS = json.loads(Path(__file__).with_name("classes.json").read_text(encoding="utf-8"))

NAMES = tuple(_FACTS["sets"])
"""The names of the published data sets."""

VOCABULARIES = ("plain", *_FACTS["replaced"])


def classes_of(name: str) -> tuple[str, ...]:
    """Return the plain class names of a published data set, in the order of its labels."""
    return tuple(word for part in _FACTS["sets"][name] for word in _FACTS["names"][part])


def words(dataset: Dataset, vocabulary: str) -> tuple[tuple[str, ...], ...]:
    """Return the words of each class for the text encoder; a class scores as its best word.

    Args:
        dataset: one of the field, or another, which has its plain words only.
        vocabulary: ``"plain"``, names as people write them; ``"sclip"``, the lists of SCLIP and
            NACLIP: names glued, 26 words of background in VOC21 and COCO-Object, a person in
            several clothes; ``"clearclip"``, ClearCLIP's: the same without what stands for
            background, person and TV monitor; ``"proxyclip"``, ClearCLIP's with 26 words of
            background in VOC21 and 17 in COCO-Object; ``"cliper"``, CLIPer's, see
            :func:`competing`; ``"groupvit"``, ``"clip-diy"``, ``"pixelclip"``,
            ``"car"``, ``"iseg"`` and ``"ovdiff"``, those of these systems. A word may stand in two
            classes: ``"bed"`` is background, and a bed, in SCLIP's COCO-Object.

    Returns:
        One tuple of words a class, in the order of the labels.

    Raises:
        InputError: there is no such vocabulary, or not of this data set.
    """
    if vocabulary not in VOCABULARIES:
        raise InputError(f"vocabulary is {vocabulary!r}; expected one of {', '.join(VOCABULARIES)}")
    if vocabulary == "plain":
        return dataset.synonyms or tuple((name,) for name in dataset.classes)
    if dataset.name not in NAMES:
        raise InputError(
            f"vocabulary is {vocabulary!r}; the data set {dataset.name} has only 'plain'"
        )
    replaced = _replaced(dataset.name, vocabulary)
    space = "" if dataset.name in _FACTS["glued"] else " "
    return tuple(tuple(replaced.get(name, [name.replace(" ", space)])) for name in dataset.classes)


def competing(dataset: Dataset, vocabulary: str) -> tuple[str, ...]:
    """Return words that compete with those of the classes though they stand for none of them.

    They are the words of the background: for iSeg, whose background is what no other class is, and
    for CLIPer on data sets without one.
    """
    if vocabulary != "iseg" and (vocabulary != "cliper" or dataset.has_background):
        return ()
    return tuple(_replaced(dataset.name, vocabulary).get("background", ["background"]))


def stuff(dataset: Dataset, vocabulary: str) -> tuple[str, ...]:
    """Return the first word of each class that CLIP as RNN takes for stuff, and looks for apart."""
    if vocabulary != "car":
        return ()
    names = _FACTS["apart"].get(dataset.name, ())
    pairs = zip(dataset.classes, words(dataset, vocabulary), strict=True)
    return tuple(synonyms[0] for name, synonyms in pairs if name in names)


def said(dataset: Dataset, vocabulary: str) -> tuple[tuple[str, str], ...]:
    """Return how iSeg's prompts call each class, by its first word, in the order of its authors."""
    if vocabulary != "iseg":
        return ()
    facts: dict = next((entry for entry in _FACTS["said"] if dataset.name in entry["sets"]), {})
    first = {
        name: synonyms[0]
        for name, synonyms in zip(dataset.classes, words(dataset, vocabulary), strict=True)
    }
    names = facts.get("words", {})
    order = facts.get("order", dataset.classes[int(dataset.has_background) :])
    return tuple((first[name], names.get(name, first[name])) for name in order)


def _replaced(name: str, vocabulary: str) -> dict[str, list[str]]:
    """The words of a vocabulary on a data set, by class, where they are not the class's name."""
    replaced: dict[str, list[str]] = {}
    for entry in _FACTS["replaced"][vocabulary]:
        if name in entry["sets"]:
            replaced |= entry["words"]
    return replaced

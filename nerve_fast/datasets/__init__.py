"""Images with their ground truth, in the layouts that people have on disk."""

from nerve_fast.datasets.dataset import Dataset, Sample
from nerve_fast.datasets.label_files import labels_of
from nerve_fast.datasets.loading import load
from nerve_fast.datasets.vocabulary import NAMES, VOCABULARIES, competing, said, stuff, words

__all__ = [
    "NAMES",
    "VOCABULARIES",
    "Dataset",
    "Sample",
    "competing",
    "labels_of",
    "load",
    "said",
    "stuff",
    "words",
]

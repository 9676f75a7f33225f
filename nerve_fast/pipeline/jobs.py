"""The arguments of a call, checked and sorted into images that are worked on together."""

import dataclasses
import itertools
import numbers
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from nerve_fast.certainty import Certainty, Threshold
from nerve_fast.config import NerveConfig
from nerve_fast.errors import InputError, quoted
from nerve_fast.imaging.images import load_image
from nerve_fast.numerics import is_finite
from nerve_fast.ops.checks import check_return_steps
from nerve_fast.pipeline.features import ImageFeatures
from nerve_fast.pipeline.settings import check_count, check_switch
from nerve_fast.priors import Prior
from nerve_fast.priors.seeds import Seeds
from nerve_fast.utils.labels import number_of, parse_labels

ImageInput = Image.Image | np.ndarray | str | os.PathLike

NO_STREAMS = (
    *(list, tuple, str, bytes, bytearray, os.PathLike, Image.Image, np.ndarray, torch.Tensor),
    *(ImageFeatures, Mapping, Set),
)
"""What is an image, a list of images or a mistake, although some of it can be iterated over."""


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of a call that hold for all of its images."""

    classes: Sequence[Sequence[str]]
    words: tuple[str, ...]
    config: NerveConfig
    processing_resolution: int | None
    match_input_resolution: bool
    return_steps: Sequence[int]
    max_memory: int | str | None
    global_keys: int | Literal["auto"] | None
    max_key_error: float | None
    tile: int | None
    overlap: int | None
    top: int | None
    certainty: Certainty
    progress: bool
    group: Any = None


def call_of(
    prior: Prior | None,
    labels: Sequence[str] | None,
    seeds: Sequence[dict],
    *,
    top: int | None,
    threshold: Threshold | None,
    background: str | None,
    **given: Any,
) -> Call:
    """The call of some words, which are encoded.

    Args:
        prior: that finds them.
        labels: the words; ``None`` where seeds say all.
        seeds: of each image.
        top, threshold, background: as of :class:`~nerve_fast.NervePipeline`.
        given: the other attributes of the call.

    Raises:
        InputError: the labels, the thresholds or ``top`` do not go together, or there is no prior.
        TypeError: an argument is of the wrong type.
    """
    classes = [] if labels is None else parse_labels(labels)
    check_count("top", top, 1)
    if top is not None and not classes:
        raise InputError("top chooses among words; pass labels too, or leave it out")
    certainty = Certainty(threshold, background)
    certainty.check(labels_of_all(labels or (), seeds))
    if classes:
        if prior is None:
            raise InputError(
                "labels are given, and this pipeline has no prior to find them with: leave them "
                "out, or load it with a CLIP"
            )
        prior.check_labels(classes)
    words = tuple(labels or ())
    return Call(classes=classes, words=words, top=top, certainty=certainty, **given)


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One image of a call.

    Attributes:
        image: loaded.
        features: of it, where it has been encoded.
        generator: of the noise.
        seeds: what the caller has said of its pixels.
    """

    image: Image.Image
    features: ImageFeatures | None
    generator: torch.Generator
    seeds: Seeds | None

    def labels(self, call: Call, words: Sequence[int] | None = None) -> tuple[str, ...]:
        """Return the labels of the words, then those that only the seeds have.

        Args:
            call: that the image is of.
            words: the numbers of those that are taken; ``None`` are all.
        """
        taken = call.words if words is None else [call.words[number] for number in words]
        return tuple(dict.fromkeys((*taken, *(self.seeds.labels if self.seeds else ()))))

    def count(self, call: Call) -> int:
        """The number of labels of the result."""
        return len(self.labels(call)) - len(call.words) + self.words(call)

    def words(self, call: Call) -> int:
        """The number of words' labels that are taken."""
        if call.top is None:
            return len(call.words)
        return min(max(call.top, len(self.always(call))), len(call.words))

    def always(self, call: Call) -> list[int]:
        """The numbers of the words that are taken in any case: of seeds, and the background."""
        named = {name for name in self.seeds.labels if name in call.words} if self.seeds else set()
        numbers = {call.words.index(name) for name in named}
        if call.certainty.background is not None:
            number = number_of(call.certainty.background, call.words)
            numbers |= set() if number is None else {number}
        return sorted(numbers)

    def kind(self):
        """Return the key that images of one batch share."""
        size = None if self.features else self.image.size
        return size, self.seeds and self.seeds.labels


def per_image(images: int, alone: bool, **seeds) -> list[dict]:
    """Return the points, boxes and scribbles of each image, by these names."""
    for name, given in seeds.items():
        if given is None or alone:
            continue
        if not isinstance(given, (list, tuple)) or len(given) != images:
            raise InputError(
                f"{name} is not a list of {images}; expected one entry for each of the images"
            )
    return [
        {name: given if given is None or alone else given[number] for name, given in seeds.items()}
        for number in range(images)
    ]


def refuse_seeds(**seeds) -> None:
    """Raise an :class:`InputError` where a stream of images is given seeds."""
    for name, given in seeds.items():
        if given is not None:
            raise InputError(
                f"{name} are given, and the images come one after another; pass a list of images, "
                "or call with one image and its seeds at a time"
            )


def labels_of_all(words: Sequence[str], seeds: Sequence[dict]) -> tuple[str, ...]:
    """Return the labels of the words, then those that only seeds of some image have."""
    marked = (given for one in seeds for given in one.values() if isinstance(given, Mapping))
    names = (name for given in marked for name in given if isinstance(name, str))
    return tuple(dict.fromkeys((*words, *names)))


def is_stream(image) -> bool:
    """Whether an argument gives images one after another and is no list, as a generator does."""
    if isinstance(image, NO_STREAMS):
        return False
    kind = type(image)
    return hasattr(kind, "__iter__") or (hasattr(kind, "__getitem__") and hasattr(kind, "__len__"))


def entries(images: Iterable, generator, seeds: Sequence[dict] | None) -> Iterator[tuple]:
    """Each image with the generator of its noise and its seeds.

    Args:
        images: a list, or a stream.
        generator: as of a call.
        seeds: of each image of a list; ``None`` for a stream.

    Raises:
        InputError: the generators are not one for each image.
    """
    if seeds is None:
        if isinstance(generator, (list, tuple)):
            raise InputError(
                f"generator is a list of {len(generator)}, and the images come one after another; "
                "pass one generator or None, or a list of images"
            )
        return ((image, generator or seeded(), {}) for image in images)
    return zip(images, _generators(generator, len(seeds)), seeds, strict=True)


def groups(entries: Iterator[tuple], batch_size: int) -> Iterator[list[Job]]:
    """Loaded images, in order: up to ``batch_size`` neighbours of one size and one set of labels.

    Neighbours, so that a generator that all share draws in the order of the list. What has been
    yielded is let go before the next images are asked for.

    Args:
        entries: of :func:`entries`.
        batch_size: so many are asked for at a time.
    """
    while jobs := [
        _job(*entry) for entry in itertools.islice(entries, min(batch_size, sys.maxsize))
    ]:
        alike = [list(group) for _, group in itertools.groupby(jobs, key=lambda job: job.kind())]
        del jobs
        alike.reverse()
        while alike:
            yield alike.pop()


def _job(given, generator: torch.Generator, seeds: dict) -> Job:
    features = given if isinstance(given, ImageFeatures) else None
    image = features.image if features else load_image(given)
    return Job(image, features, generator, Seeds.of(image.size, **seeds))


def seeded() -> torch.Generator:
    """The generator of an image's noise where the caller brings none."""
    return torch.Generator().manual_seed(0)


def _generators(generator, images: int) -> list[torch.Generator]:
    """One an image."""
    if isinstance(generator, (list, tuple)):
        if len(generator) != images:
            raise InputError(
                f"generator is a list of {len(generator)}; expected one for each of the "
                f"{images} images"
            )
        return list(generator)
    return [generator or seeded() for _ in range(images)]


def check_inputs(
    config,
    processing_resolution,
    generator,
    return_steps,
    batch_size,
    global_keys=None,
    max_key_error=None,
    **switches,
) -> None:
    """Check what needs neither the images nor the models; ``switches`` are true or false.

    Raises:
        InputError: a value is out of its range.
        TypeError: a value is of the wrong type.
    """
    if not isinstance(config, NerveConfig):
        raise TypeError(f"config is a {type(config).__name__}; expected a NerveConfig")
    if processing_resolution is not None and not _is_count(processing_resolution):
        raise InputError(
            f"processing_resolution is {quoted(processing_resolution)}; expected a number of "
            "pixels, 0 for the image's own, or None for the model's"
        )
    several = isinstance(generator, (list, tuple))
    for one in generator if several else [generator]:
        if not isinstance(one, torch.Generator) and (several or one is not None):
            raise TypeError(
                f"generator is a {type(one).__name__}; expected a torch.Generator, a list of "
                "them, or None"
            )
    if not isinstance(return_steps, (list, tuple, range)):
        raise TypeError(f"return_steps is {quoted(return_steps)}; expected a list of whole numbers")
    check_return_steps(return_steps)
    if not (_is_count(batch_size) and batch_size > 0):
        raise InputError(f"batch_size is {quoted(batch_size)}; expected a whole number above 0")
    check_keys(global_keys, max_key_error)
    for name, value in switches.items():
        check_switch(name, value)


def check_keys(global_keys, max_key_error) -> None:
    """Raise :class:`InputError` unless these are clusters, and a bound on their error."""
    # Names alone: what is no string may not be comparable.
    named = global_keys is None or (isinstance(global_keys, str) and global_keys == "auto")
    if not named and not (_is_count(global_keys) and global_keys > 0):
        raise InputError(
            f"global_keys is {quoted(global_keys)}; expected a whole number above 0, 'auto', or "
            "None for all keys"
        )
    if max_key_error is None:
        return
    is_number = isinstance(max_key_error, numbers.Real) and not isinstance(max_key_error, bool)
    if not (is_number and is_finite(max_key_error) and max_key_error > 0):
        raise InputError(
            f"max_key_error is {quoted(max_key_error)}; expected a finite number above 0, or None"
        )


def _is_count(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 0

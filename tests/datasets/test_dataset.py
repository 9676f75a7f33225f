import re

import numpy as np
import pytest
import torch
from PIL import Image

from nerve_fast import InputError
from nerve_fast.datasets import Dataset, Sample


@pytest.fixture
def sample(tmp_path):
    Image.new("RGB", (3, 2), "teal").save(tmp_path / "a.jpg")
    return Sample("a", tmp_path / "a.jpg", tmp_path / "a.png")


def three_classes(sample, **options):
    return Dataset("x", ("cat", "dog", "cow"), False, (sample,), **options)


def read(sample, labels, **options):
    """What comes back of a mask of these labels."""
    image = labels if isinstance(labels, Image.Image) else Image.fromarray(labels)
    image.save(sample.mask)
    return three_classes(sample, **options).read(sample)[1]


LABELS = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)


def test_image_and_labels_come_back(sample):
    Image.fromarray(LABELS).save(sample.mask)
    image, labels = three_classes(sample).read(sample)
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert labels.dtype == torch.uint8
    assert labels.tolist() == LABELS.tolist()


def test_indices_of_a_palette_are_the_labels(sample):
    image = Image.fromarray(LABELS).convert("P")
    image.putpalette([200, 10, 30] * 256)
    assert read(sample, image).tolist() == LABELS.tolist()


def test_a_16_bit_png(sample):
    labels = read(sample, LABELS.astype(np.uint16))
    assert labels.dtype == torch.uint8
    assert labels.tolist() == LABELS.tolist()
    with pytest.raises(InputError, match=re.escape(f"{sample.mask}: holds the label 256;")):
        read(sample, LABELS.astype(np.uint16) + 1)


def test_a_black_and_white_mask(sample):
    labels = np.array([[0, 1, 0], [1, 1, 0]], bool)
    assert read(sample, labels).tolist() == labels.astype(int).tolist()


def test_zero_is_not_counted_where_it_is_reduced(sample):
    labels = np.array([[0, 1, 2], [255, 3, 0]], np.uint8)
    reduced = read(sample, labels, reduce_zero_label=True)
    assert reduced.dtype == torch.uint8
    assert reduced.tolist() == [[255, 0, 1], [255, 2, 255]]


def refused(sample, message, labels, **options):
    with pytest.raises(InputError) as error:
        read(sample, labels, **options)
    assert str(error.value) == f"{sample.mask}: {message}"


def test_labels_out_of_range_are_named(sample):
    expected = "or 255 where pixels are not to count"
    for label in (3, 254):
        refused(
            sample,
            f"holds the label {label}; expected 0 to 2, {expected}",
            np.where(LABELS == 1, label, LABELS).astype(np.uint8),
        )
    refused(
        sample,
        f"holds the label 4; expected 0 to 3, {expected}",
        np.where(LABELS == 1, 4, LABELS).astype(np.uint8),
        reduce_zero_label=True,
    )


def test_a_mask_of_another_size_is_named(sample):
    refused(
        sample,
        f"the mask is 2 × 3; expected 3 × 2, the size of {sample.image}",
        np.ascontiguousarray(LABELS.T),
    )


def test_a_mask_of_colours_is_named(sample):
    refused(
        sample,
        "the mask is an image of mode RGB; expected one channel that holds labels, a grey or a "
        "palette image",
        Image.new("RGB", (3, 2)),
    )


def test_unreadable_files_are_named(sample, tmp_path):
    sample.mask.write_text("no image")
    with pytest.raises(InputError, match=re.escape(f"{sample.mask}: not an image")):
        three_classes(sample).read(sample)
    big = tmp_path / "big.png"
    Image.effect_noise((64, 64), 50).save(big)
    sample.mask.write_bytes(big.read_bytes()[:900])
    with pytest.raises(InputError, match=re.escape(f"{sample.mask}: the image is damaged")):
        three_classes(sample).read(sample)
    sample.image.write_text("no image")
    with pytest.raises(InputError, match=re.escape(f"{sample.image}: not an image")):
        three_classes(sample).read(sample)


def test_a_missing_mask_is_named_with_advice(sample):
    with pytest.raises(InputError, match=re.escape(f"{sample.mask}: no such mask") + "$"):
        three_classes(sample).read(sample)
    with pytest.raises(InputError, match=r"a\.png: no such mask; a tool makes it$"):
        three_classes(sample, advice="a tool makes it").read(sample)

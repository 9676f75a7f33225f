"""What can be asked of a result."""

import json

import numpy as np
import pytest
import shapely
import torch
from pycocotools import mask as rle

import nerve_fast as nf
from nerve_fast.imaging.resampling import mean_under
from nerve_fast.tiny.scenes import generate

LABELS = ["grass", "water, sea", "ball", "never seen by anyone"]


@pytest.fixture(scope="module")
def out(pipe):
    return pipe(generate(960_000, (64, 96))[0], LABELS, threshold=0.6)


def test_masks_are_the_label_map_with_its_confidences(out):
    found = torch.full_like(out.label_map, -1)
    for label, confidence, mask in out.masks():
        assert mask.dtype == bool
        number = LABELS.index(label)
        found[torch.from_numpy(mask)] = number
        expected = out.probabilities[number][torch.from_numpy(mask)].double().mean().item()
        assert confidence == pytest.approx(expected, rel=1e-5)
        assert confidence >= 0.6
    assert torch.equal(found, out.label_map)
    assert (found == -1).any()


def test_a_label_without_pixels_has_no_confidence(generator):
    maps = torch.rand(3, 5, 6, generator=generator)
    label_map = torch.randint(-1, 2, (11, 13), generator=generator)
    found = mean_under(maps, label_map)
    assert found.isnan().tolist() == [False, False, True]
    pixels = torch.nn.functional.interpolate(maps[None], (11, 13), mode="bilinear")[0]
    for label in range(2):
        expected = pixels[label][label_map == label].double().mean()
        torch.testing.assert_close(found[label], expected, rtol=1e-5, atol=0)


def test_coco_and_polygons_are_the_masks(out):
    document = json.loads(json.dumps(out.to_coco("photo.jpg")))
    assert document["images"] == [{"id": 1, "file_name": "photo.jpg", "width": 96, "height": 64}]
    assert [one["name"] for one in document["categories"]] == LABELS
    outlines = out.polygons(tolerance=0)
    found = zip(out.masks(), document["annotations"], outlines, strict=True)
    for (label, confidence, mask), annotation, region in found:
        assert np.array_equal(rle.decode(annotation["segmentation"]) > 0, mask)
        assert LABELS[annotation["category_id"] - 1] == region["label"] == label
        assert annotation["score"] == region["confidence"] == confidence
        shapes = [shapely.Polygon(one["exterior"], one["holes"]).area for one in region["polygons"]]
        assert sum(shapes) == region["area"] == mask.sum()
    assert len(json.dumps(out.polygons(2.0))) < len(json.dumps(outlines))


@pytest.mark.parametrize("tolerance", [-1, float("nan"), "1", None, True])
def test_a_tolerance_that_is_none_is_refused(out, tolerance):
    with pytest.raises((nf.InputError, TypeError), match="tolerance is .*; expected a"):
        out.polygons(tolerance)

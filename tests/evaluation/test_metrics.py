import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from nerve_fast.evaluation.metrics import (
    band,
    boundary_counts,
    boundary_iou,
    confusion_matrix,
    mean_iou,
    scores,
)

CLASSES = 7


@pytest.fixture
def label_maps(generator):
    """Random prediction and truth in which classes 4 and 5 occur in one only, 6 in none."""
    prediction = torch.tensor([0, 1, 2, 3, 5])[torch.randint(0, 5, (41, 30), generator=generator)]
    truth = torch.randint(0, 5, (41, 30), generator=generator, dtype=torch.uint8)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = 255
    return prediction, truth


def counted(prediction, truth):
    """Plain lists of what is not ignored, as other libraries take them."""
    kept = truth != 255
    return truth[kept].numpy(), prediction[kept].numpy()


def test_confusion_matrix_agrees_with_sklearn(label_maps):
    confusion = confusion_matrix(*label_maps, CLASSES)
    expected = sklearn_metrics.confusion_matrix(*counted(*label_maps), labels=range(CLASSES))
    assert confusion.dtype == torch.int64
    assert np.array_equal(confusion, expected)
    wide = confusion_matrix(*label_maps, CLASSES, unlabelled=True)
    assert torch.equal(wide[:, :CLASSES], confusion)
    assert wide.shape == (CLASSES, CLASSES + 1)


def test_scores_agree_with_sklearn(label_maps):
    truth, prediction = counted(*label_maps)
    found = scores(confusion_matrix(*label_maps, CLASSES))
    iou = sklearn_metrics.jaccard_score(
        truth, prediction, labels=range(6), average=None, zero_division=0
    )
    assert found.iou[:6] == pytest.approx(iou)
    assert math.isnan(found.iou[6])
    assert found.iou[4] == found.iou[5] == 0
    assert found.miou == pytest.approx(iou.mean())
    assert found.accuracy == pytest.approx(sklearn_metrics.accuracy_score(truth, prediction))
    recall = sklearn_metrics.recall_score(truth, prediction, labels=range(5), average=None)
    assert found.accuracies[:5] == pytest.approx(recall)
    assert math.isnan(found.accuracies[5])
    assert found.mean_accuracy == pytest.approx(recall.mean())


def test_matrices_of_images_add_up(generator):
    prediction = torch.randint(0, 4, (2, 30, 20), generator=generator)
    truth = torch.randint(0, 4, (2, 30, 20), generator=generator)
    total = sum(confusion_matrix(p, t, 4) for p, t in zip(prediction, truth, strict=True))
    assert torch.equal(total, confusion_matrix(prediction, truth, 4))


def test_pixels_without_a_label_are_wrong_and_of_no_class():
    truth = torch.tensor([0, 0, 1, 1])
    confusion = confusion_matrix(torch.tensor([0, 2, 1, 1]), truth, 2, unlabelled=True)
    assert confusion.tolist() == [[1, 0, 1], [0, 2, 0]]
    found = scores(confusion)
    assert found.iou == (0.5, 1)
    assert found.accuracy == 0.75


def test_classes_that_occur_nowhere_are_left_out_and_false_alarms_count():
    truth = torch.tensor([0, 0, 1, 1])
    assert mean_iou(confusion_matrix(truth, truth, 5)) == 1
    assert mean_iou(confusion_matrix(torch.tensor([0, 0, 1, 2]), truth, 5)) == pytest.approx(
        1.5 / 3
    )
    assert math.isnan(mean_iou(torch.zeros(5, 5, dtype=torch.int64)))


def eroded_boundary(mask, width):
    """The published definition: the mask less its erosion by a square, outside being empty."""
    square = np.ones((3, 3), dtype=bool)
    return mask & ~ndimage.binary_erosion(mask, square, iterations=width, border_value=0)


@pytest.mark.parametrize("shape", [(60, 90), (91, 70), (3, 200), (1, 1)])
def test_boundaries_agree_with_an_erosion_of_each_class(generator, shape):
    """Blocks of random size, so that bands of neighbours touch and some masks are all band."""

    def blocks():
        coarse = torch.randint(0, 4, (9, 11), generator=generator)
        rows = torch.randint(0, 9, (shape[0],), generator=generator).sort().values
        columns = torch.randint(0, 11, (shape[1],), generator=generator).sort().values
        return coarse[rows][:, columns]

    prediction, truth = blocks(), blocks().to(torch.uint8)
    truth[truth == 3] = 255
    width = max(round(0.02 * math.hypot(*shape)), 1)
    ignored = (truth == 255).numpy()
    counts = boundary_counts(prediction, truth, 4)
    for label in range(4):
        ours = eroded_boundary((prediction.numpy() == label) & ~ignored, width)
        theirs = eroded_boundary(truth.numpy() == label, width)
        assert counts[label].tolist() == [(ours & theirs).sum(), (ours | theirs).sum()]


def test_a_band_is_as_wide_as_asked_and_the_images_border_is_one():
    labels = torch.zeros(20, 30, dtype=torch.int64)
    labels[:, 15:] = 1
    found = band(labels, 3)
    expected = torch.ones(20, 30, dtype=torch.bool)
    expected[3:-3, 3:12] = False
    expected[3:-3, 18:-3] = False
    assert torch.equal(found, expected)


def test_boundary_iou_of_a_shifted_square():
    truth = torch.zeros(50, 50, dtype=torch.uint8)
    truth[10:30, 10:30] = 1
    shifted = truth.roll(1, 1).long()
    (_, (_, of_square, absent)) = boundary_iou(boundary_counts(shifted, truth, 3))
    # Bands of width 1 share two rows of 19 pixels, and no column.
    assert of_square == pytest.approx((2 * 19) / (2 * 76 - 2 * 19))
    assert math.isnan(absent)
    mean, _ = boundary_iou(boundary_counts(truth.long(), truth, 3))
    assert mean == 1


def test_a_prediction_that_is_right_up_to_ignored_pixels_is_right():
    """VOC's truth has an ignored rim around things; bands begin at it in both."""
    truth = torch.zeros(100, 100, dtype=torch.uint8)
    truth[20:60, 20:60] = 255
    truth[25:55, 25:55] = 1
    prediction = torch.zeros(100, 100, dtype=torch.int64)
    prediction[22:57, 23:58] = 1
    mean, _ = boundary_iou(boundary_counts(prediction, truth, 2))
    assert mean == 1

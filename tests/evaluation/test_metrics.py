import pytest
import torch

from nerve_fast.evaluation.metrics import confusion_matrix, mean_iou


def test_mean_iou_agrees_with_counting(generator):
    prediction = torch.randint(0, 4, (2, 30, 20), generator=generator)
    truth = torch.randint(0, 5, (2, 30, 20), generator=generator)
    truth[truth == 4] = 255
    ious = []
    for c in range(4):
        counted = truth != 255
        both = ((prediction == c) & (truth == c)).sum()
        either = (((prediction == c) | (truth == c)) & counted).sum()
        ious.append(both / either)
    total = sum(confusion_matrix(p, t, 4) for p, t in zip(prediction, truth, strict=True))
    assert total.dtype == torch.int64
    assert mean_iou(total) == pytest.approx(sum(ious).item() / 4)


def test_classes_that_occur_nowhere_are_left_out_and_false_alarms_count():
    truth = torch.tensor([0, 0, 1, 1])
    assert mean_iou(confusion_matrix(truth, truth, 5)) == 1
    assert mean_iou(confusion_matrix(torch.tensor([0, 0, 1, 2]), truth, 5)) == pytest.approx(
        1.5 / 3
    )

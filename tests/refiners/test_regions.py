import numpy as np
import pytest
import torch
from PIL import Image
from small_sam import save_small_sam

from nerve_fast import InputError
from nerve_fast.backbones import sam
from nerve_fast.refiners import REFINERS, Regions
from nerve_fast.refiners.regions import modes

IMAGE = Image.new("RGB", (6, 4))
LABELS = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2], [0, 1, 1, 2, 2, 2], [0] * 6])


def maps():
    return torch.nn.functional.one_hot(LABELS, 3).permute(2, 0, 1) * 0.7 + 0.1


def box(top, bottom, left, right):
    mask = np.zeros((4, 6), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_masks_get_the_label_of_most_of_their_pixels():
    # 2 zeros and 4 ones in the first three columns and two rows; the larger mask comes first.
    small, large = box(0, 2, 0, 2), box(0, 3, 0, 4)
    refined = Regions(lambda image: [small, torch.from_numpy(large).float()])(IMAGE, maps())
    assert refined.shape == (3, 4, 6)
    torch.testing.assert_close(refined.sum(0), torch.ones(4, 6))
    expected = LABELS.clone()
    # Of the twelve pixels of the large one seven are ones; of the four of the small one three
    # are zeros, counted on what was there before.
    expected[0:3, 0:4] = 1
    expected[0:2, 0:2] = 0
    assert torch.equal(refined.argmax(0), expected)
    assert refined[1, 0, 3] == 1
    torch.testing.assert_close(refined[:, 3, 5], maps()[:, 3, 5])


def test_the_image_is_what_the_generator_gets_and_no_mask_changes_nothing():
    seen = []

    def generate(image):
        seen.append(image)
        return [np.zeros((4, 6))]

    coarse = torch.rand(3, 2, 3)
    refined = Regions(generate)(IMAGE, coarse)
    assert seen == [IMAGE]
    expected = torch.nn.functional.interpolate(coarse[None], (4, 6), mode="bilinear")[0]
    torch.testing.assert_close(refined, expected)


def test_pixels_without_a_label_do_not_count():
    labels = torch.tensor([[-1, -1, 2]])
    whole = torch.ones(1, 3, dtype=torch.bool)
    assert [label for label, _ in modes(labels, [whole], 4)] == [2]
    assert not list(modes(labels[:, :2], [whole[:, :2]], 4))


def test_a_sam_of_transformers_gives_masks(tmp_path, monkeypatch):
    save_small_sam(tmp_path, seed=0)
    image = Image.effect_noise((48, 32), 80).convert("RGB")
    assert REFINERS["regions"] is Regions
    monkeypatch.setattr(sam, "POINTS", 2)
    refined = Regions(str(tmp_path))(image, torch.rand(3, 8, 12).softmax(0))
    assert refined.shape == (3, 32, 48)
    torch.testing.assert_close(refined.sum(0), torch.ones(32, 48))
    # A random one is sure of nothing; with lower bars the masks are those of the model's logits.
    for name in ("LEAST_IOU", "LEAST_STABILITY"):
        monkeypatch.setattr(sam, name, -100.0)
    cpu = torch.device("cpu")
    generate = sam.SegmentAnything.from_pretrained(str(tmp_path), device=cpu)
    assert generate is sam.SegmentAnything.from_pretrained(str(tmp_path), device=cpu)
    masks = generate(image)
    assert masks
    points = [[[12.0, 8.0]], [[12.0, 24.0]], [[36.0, 8.0]], [[36.0, 24.0]]]
    seen = generate.processor(image, input_points=[points], return_tensors="pt")
    out = generate.model(**{name: seen[name] for name in ("pixel_values", "input_points")})
    (own,) = generate.processor.image_processor.post_process_masks(
        out.pred_masks, seen.original_sizes, seen.reshaped_input_sizes
    )
    best = own.flatten(0, 1)[out.iou_scores.flatten().argsort(descending=True)]
    best = [mask for mask in best if mask.any()]
    assert torch.equal(masks[0], best[0])
    assert all(any(torch.equal(mask, other) for other in best) for mask in masks)


def test_a_sam_runs_where_it_is_told(tmp_path, monkeypatch):
    save_small_sam(tmp_path, seed=0)
    elsewhere = sam.SegmentAnything.from_pretrained(str(tmp_path), device=torch.device("meta"))
    assert elsewhere.device.type == "meta"
    asked = []

    def load(source, *, device):
        asked.append((source, device))
        return lambda image: []

    monkeypatch.setattr(sam.SegmentAnything, "from_pretrained", load)
    # Where the maps are, also on a machine that has something faster.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    Regions("a/sam")(IMAGE, maps())
    assert asked == [("a/sam", torch.device("cpu"))]


def test_of_boxes_that_overlap_the_better_stays():
    boxes = [(0, 0, 10, 10), (0, 0, 10, 8), (0, 0, 10, 6), (20, 0, 30, 10)]
    # 0.8 and 0.6 of the first, and 0.75 of one another.
    assert sam._apart(boxes, [0.9, 0.8, 0.7, 0.6]) == [0, 2, 3]
    assert sam._apart(boxes, [0.7, 0.8, 0.9, 0.6]) == [2, 0, 3]
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[1:3, 4] = True
    assert sam._box(mask) == (4, 1, 5, 3)


def test_a_pipeline_of_transformers_is_a_generator_too():
    whole = np.ones((4, 6))
    refined = Regions(lambda image: {"masks": [whole], "scores": [1.0]})(IMAGE, maps())
    assert (refined.argmax(0) == LABELS.flatten().bincount().argmax()).all()


def test_what_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a mask has shape \(4, 5\); expected \(4, 6\)"):
        Regions(lambda image: [np.zeros((4, 5))])(IMAGE, maps())
    with pytest.raises(TypeError, match="masks is a int; expected the hub id or folder of a SAM"):
        Regions(3)
    with pytest.raises(InputError, match="is no mask generator that can be loaded"):
        Regions(str(tmp_path / "none"))(IMAGE, maps())

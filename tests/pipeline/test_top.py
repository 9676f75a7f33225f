"""Of many labels those that would carry most of an image are taken."""

import numpy as np
import pytest
import torch
from PIL import Image

import nerve_fast as nf
from nerve_fast.imaging.exports.labelled import numbered
from nerve_fast.pipeline.stages import among, carried_most
from nerve_fast.tiny.scenes import NAMES, generate

MANY = [*NAMES, *(f"{name} of another world" for name in NAMES)]


@pytest.fixture(scope="module")
def features(pipe):
    return pipe.encode(generate(960_003, 64)[0])


def test_labels_are_ranked_by_the_places_where_they_are_likeliest():
    maps = torch.zeros(5, 2, 5)
    maps[3] = 0.5
    maps[1, 0, 0] = 0.9
    # Never the likeliest, and of more weight than the one that is so once.
    maps[4] = 0.4
    maps[2] = 0.1
    assert carried_most(maps, 2, []).tolist() == [1, 3]
    assert carried_most(maps, 3, []).tolist() == [1, 3, 4]
    assert carried_most(maps, 3, [0, 2]).tolist() == [0, 2, 3]
    assert carried_most(maps, 5, []).tolist() == [0, 1, 2, 3, 4]


def test_a_place_without_any_of_them_holds_all_alike():
    maps = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 1.0]]])
    kept = among(maps, torch.tensor([0, 1]))
    expected = torch.tensor([[[1.0, 0.5]], [[0.0, 0.5]]])
    torch.testing.assert_close(kept / kept.sum(0), expected)


def test_the_result_is_that_of_these_labels(pipe, features):
    """Their prior is what all labels' prior says of them."""
    full = pipe(features, MANY, config=nf.NerveConfig(steps=0))
    out = pipe(features, MANY, top=4)
    assert len(out.labels) == 4
    assert list(out.labels) == [label for label in MANY if label in out.labels]
    assert out.walked.shape[0] == out.probabilities.shape[0] == 4
    kept = torch.tensor([MANY.index(label) for label in out.labels])
    shares = full.prior[kept]
    torch.testing.assert_close(out.prior, shares / shares.sum(0), rtol=1e-3, atol=1e-4)
    areas = full.prior.argmax(0).flatten().bincount(minlength=len(MANY))
    assert areas[kept].min() >= areas[[i for i in range(len(MANY)) if i not in kept]].max()
    assert out.plan.walk.problem.labels == 4
    every = pipe(features, MANY, top=1000)
    assert every.labels == tuple(MANY)
    assert torch.equal(every.label_map, pipe(features, MANY).label_map)


def test_seeds_and_the_background_are_taken_in_any_case(pipe, features):
    last = MANY[-1]
    out = pipe(features, MANY, top=2, threshold=0.6, background=last)
    assert len(out.labels) == 2
    assert out.labels[-1] == last
    seeded = pipe(
        features, MANY, top=1, points={last: [(1, 1)], "new": [(9, 9)], MANY[-2]: [(5, 5)]}
    )
    assert seeded.labels == (MANY[-2], last, "new")
    assert seeded.label_map[1, 1] == 1


def test_images_of_a_batch_have_labels_of_their_own(pipe):
    images = [generate(960_003 + i, 64)[0] for i in range(3)]
    together = pipe(images, MANY, top=3, batch_size=3)
    assert {len(one.labels) for one in together} == {3}
    assert len({one.labels for one in together}) > 1
    for image, one in zip(images, together, strict=True):
        assert one.labels == pipe(image, MANY, top=3).labels


@pytest.mark.parametrize("top", [0, -1, 1.5, True, "3"])
def test_what_is_no_number_is_refused(pipe, features, top):
    with pytest.raises((nf.InputError, TypeError), match="top is "):
        pipe(features, MANY, top=top)


def test_without_words_there_is_nothing_to_choose_among(pipe, features):
    with pytest.raises(nf.InputError, match="top chooses among words"):
        pipe(features, points={"a": [(1, 1)]}, top=1)


def test_a_label_map_in_the_numbers_of_a_vocabulary():
    label_map = np.array([[0, 1], [-1, 2]])
    vocabulary = ["a", "b", "c", "d"]
    found, confidences = numbered(label_map, ["d", "a", "b"], {"d": 0.5, "a": 0.7}, vocabulary)
    assert found.tolist() == [[3, 0], [-1, 1]]
    assert str(confidences.tolist()) == "[0.7, nan, nan, 0.5]"


def test_files_have_the_numbers_of_all_labels(pipe, tmp_path, monkeypatch):
    from nerve_fast.cli.main import main

    out = tmp_path / "out"
    generate(960_003, 64)[0].save(tmp_path / "a.png")
    (tmp_path / "labels.txt").write_text("\n".join(MANY))
    monkeypatch.chdir(tmp_path)
    flags = ["--models", "tiny", "--device", "cpu", "--top", "3", "--save-probabilities"]
    assert main(["segment", "a.png", "--labels", "labels.txt", "-o", str(out), *flags]) == 0
    with Image.open(out / "a.labels.png") as image:
        assert image.text["labels"].split("\n") == MANY
        values = np.asarray(image)
    with np.load(out / "a.npz") as arrays:
        kept = [MANY.index(label) for label in arrays["labels"]]
        assert np.array_equal(np.array(kept)[arrays["label_map"]], values)

import numpy as np
import pytest

from nerve_fast.tiny import scenes

SEEDS = range(40)


@pytest.fixture(scope="module")
def drawn():
    return [scenes.generate(seed) for seed in SEEDS]


@pytest.mark.parametrize("size", [128, (96, 160)])
def test_a_seed_draws_the_same_scene_again(size):
    first, second = scenes.generate(7, size), scenes.generate(7, size)
    assert first[0].tobytes() == second[0].tobytes()
    assert np.array_equal(first[1], second[1])
    assert first[2] == second[2]


def test_seeds_differ(drawn):
    assert len({image.tobytes() for image, _, _ in drawn}) == len(drawn)


def test_drawing_leaves_numpys_global_generator_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    scenes.generate(3)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("size", "shape"),
    [(128, (128, 128)), (64, (64, 64)), ((96, 200), (96, 200)), ([130, 77], (130, 77))],
)
def test_shapes_and_types(size, shape):
    image, mask, names = scenes.generate(11, size)
    assert image.mode == "RGB"
    assert image.size == (shape[1], shape[0])
    assert mask.shape == shape
    assert mask.dtype == np.int64
    assert all(type(name) is str for name in names)


def test_names_are_those_in_the_mask_and_three_more(drawn):
    for _, mask, names in drawn:
        assert len(set(names)) == len(names)
        assert set(names) <= set(scenes.NAMES)
        assert np.unique(mask).tolist() == list(range(len(names) - scenes.ABSENT))


def test_every_scene_has_a_ground_and_one_to_four_objects(drawn):
    for _, mask, names in drawn:
        present = names[: mask.max() + 1]
        assert 1 <= sum(name in scenes.BACKGROUNDS for name in present) <= 2
        assert 1 <= sum(name in scenes.OBJECTS for name in present) <= 4


def test_all_names_occur(drawn):
    present = {name for _, mask, names in drawn for name in names[: mask.max() + 1]}
    assert present == set(scenes.NAMES)


def test_objects_hide_one_another_but_never_wholly(monkeypatch):
    visible = []
    finish = scenes._finish

    def spy(rng, canvas, grounds, objects):
        for number, thing in enumerate(objects):
            left = int((canvas.label == 2 + number).sum())
            assert left == thing["visible"]
            visible.append(left / thing["area"])
        return finish(rng, canvas, grounds, objects)

    monkeypatch.setattr(scenes, "_finish", spy)
    for seed in SEEDS:
        scenes.generate(seed)
    assert min(visible) >= scenes.MIN_VISIBLE
    assert sum(part < 1 for part in visible) > 10


def test_a_larger_canvas_holds_more_objects_of_the_same_size():
    def objects(size):
        drawn = [scenes.generate(seed, size) for seed in range(8)]
        present = [
            (mask == k).sum()
            for _, mask, names in drawn
            for k, n in enumerate(names)
            if n in scenes.OBJECTS and k <= mask.max()
        ]
        return len(present) / len(drawn), np.median(present)

    few, area = objects(128)
    many, large_area = objects((256, 384))
    assert many > 1.5 * few
    # Objects of one name count together on the large canvas, so areas may grow, but not sixfold.
    assert area < 3 * large_area < 9 * area


def test_colour_does_not_give_the_objects_away(drawn):
    """Objects' colours spread further within one object than their mean lies from the ground's."""
    within, between = [], []
    for image, mask, names in drawn:
        pixels = np.asarray(image) / 255
        ground = pixels[mask == 0].mean(0)
        for k in range(1, mask.max() + 1):
            if names[k] in scenes.OBJECTS:
                inside = pixels[mask == k]
                within.append(inside.std(0).mean())
                between.append(np.abs(inside.mean(0) - ground).mean())
    assert np.mean(within) > 0.6 * np.mean(between)


def test_held_out_seeds_lie_apart():
    assert scenes.HELD_OUT_SEED == 1_000_000
    assert scenes.VALIDATION_SEED < scenes.HELD_OUT_SEED


@pytest.mark.parametrize("seed", [1.5, "1", None, True])
def test_a_seed_that_is_no_int_is_refused(seed):
    with pytest.raises(TypeError, match="seed"):
        scenes.generate(seed)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed"):
        scenes.generate(-1)


@pytest.mark.parametrize("size", [63, 0, -5, (128, 63), (128,), (128, 128, 3)])
def test_a_bad_size_is_refused(size):
    with pytest.raises(ValueError, match="size"):
        scenes.generate(0, size)


@pytest.mark.parametrize("size", [128.0, "128", None, (128, 1.5)])
def test_a_size_of_the_wrong_type_is_refused(size):
    with pytest.raises(TypeError, match="size"):
        scenes.generate(0, size)

import json

import numpy as np
import pytest

from nerve_fast.datasets.coco_object import convert
from nerve_fast.datasets.instances import drawings
from nerve_fast.datasets.vocabulary import classes_of
from nerve_fast.errors import InputError

rle = pytest.importorskip("pycocotools.mask")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HEIGHT, WIDTH = 8, 10
GOOD = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]]


@pytest.fixture
def write(tmp_path):
    """``write(segmentation, **changes)``: annotations of two images, the second one good."""

    def write(segmentation=GOOD, *, category=1, **changes):
        document = {
            "images": [
                {"id": number, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH}
                for number in (1, 2)
            ],
            "categories": [
                {"id": number, "name": name}
                for number, name in enumerate(classes_of("coco-object")[1:], start=1)
            ],
            "annotations": [
                {"id": 8, "image_id": 1, "category_id": category, "segmentation": segmentation},
                {"id": 9, "image_id": 2, "category_id": 3, "segmentation": GOOD},
            ],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        path = tmp_path / "annotations" / "instances_val2017.json"
        path.write_text(json.dumps(document | changes))
        return path

    return write


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1e9, 1, 2, 2, 3, 1]],
        [[1, 1, 2, -1e9, 3, 1]],
        [[float("nan"), 1, 2, 2, 3, 1]],
        [[float("inf"), 1, 2, 2, 3, 1]],
        [[1, 1, 2, 2]],
        [[1, 1, 2, 2, 3, 1, 4]],
        [["1", 1, 2, 2, 3, 1]],
        [[10**400, 1, 2, 2, 3, 1]],
        [1, 1, 2, 2, 3, 1],
        [],
        [[]],
        None,
        "polygon",
        7,
        {},
        {"size": [HEIGHT, WIDTH]},
        {"size": [WIDTH, HEIGHT], "counts": [80]},
        {"size": [10**9, 10**9], "counts": [80]},
        {"size": [HEIGHT, WIDTH], "counts": [81]},
        {"size": [HEIGHT, WIDTH], "counts": [100, -20]},
        {"size": [HEIGHT, WIDTH], "counts": [80.0]},
        {"size": [HEIGHT, WIDTH], "counts": [2**70]},
        {"size": [HEIGHT, WIDTH], "counts": "oooo"},
        {"size": [HEIGHT, WIDTH], "counts": "é"},
        {"size": [HEIGHT, WIDTH], "counts": None},
    ],
)
def test_an_odd_annotation_is_its_images_failure(write, tmp_path, capsys, segmentation):
    write(segmentation)
    assert convert(tmp_path) == 2
    said = capsys.readouterr()
    assert "image '1.jpg': annotation 8 is not usable" in said.err
    assert said.err.count("\n") == 1
    assert len(said.err) < 400
    assert "1 label map written to" in said.out
    assert "1 could not be made" in said.out
    names = [path.name for path in (tmp_path / "annotations" / "val2017").iterdir()]
    assert names == ["2_instanceTrainIds.png"]


@pytest.mark.parametrize("category", [99, "1", None, [1]])
def test_an_unknown_category_is_its_images_failure(write, tmp_path, category):
    write(category=category)
    assert convert(tmp_path) == 2


@pytest.mark.parametrize(
    "size", [(0, 5), (-1, 5), (10**9, 10**9), (60_000, 60_000), (2.5, 5), (None, 5), ("8", 5)]
)
def test_an_odd_size_is_its_images_failure(write, size):
    images = [{"id": 1, "file_name": "1.jpg", "height": size[0], "width": size[1]}]
    (draw,) = drawings(write(images=images)).values()
    with pytest.raises(InputError, match=r"image '1\.jpg': its size is not usable"):
        draw()


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 3},
        {"images": [3]},
        {"images": [{}]},
        {"images": [{"id": [1], "file_name": "a.jpg"}]},
        {"images": [{"id": 1, "file_name": 7}]},
        {"images": [{"id": 1, "file_name": ""}]},
        {"images": [{"id": 1, "file_name": "a\x00b.jpg"}]},
        {"images": [{"id": number, "file_name": "a.jpg"} for number in (1, 2)]},
        {"annotations": None},
        {"annotations": [{"id": 1}]},
        {"annotations": [{"image_id": {}}]},
        {"categories": {"id": 1}},
        {"categories": [{"id": 1, "name": "a"}, {"id": "x", "name": "b"}]},
    ],
)
def test_a_file_of_another_shape_is_refused(write, changes):
    path = write(**changes)
    with pytest.raises(InputError, match=r"^.*instances_val2017\.json: ") as raised:
        drawings(path)
    assert len(str(raised.value)) < 300


def test_a_deep_or_cut_off_file_is_refused(write):
    path = write()
    for text in ("[" * 10**6, path.read_text()[:100], "", "\x00"):
        path.write_text(text)
        with pytest.raises(InputError, match="not COCO's instance annotations"):
            drawings(path)


def test_all_forms_of_a_mask_are_drawn_alike(write, generator):
    mask = (np.random.default_rng(generator.initial_seed()).random((HEIGHT, WIDTH)) < 0.4).astype(
        np.uint8
    )
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = [0] * int(flat[0]) + np.diff([0, *ends, flat.size]).tolist()
    letters = rle.encode(np.asfortranarray(mask))["counts"].decode()
    for counts in (runs, letters):
        draw = drawings(write({"size": [HEIGHT, WIDTH], "counts": counts}))["1"]
        assert draw().tolist() == mask.tolist()


def test_letters_of_long_runs_are_those_of_pycocotools(generator):
    from nerve_fast.datasets.instances import _decompressed

    draws = np.random.default_rng(generator.initial_seed())
    for _ in range(50):
        counts = draws.integers(1, 10 ** draws.integers(1, 6), size=draws.integers(1, 30)).tolist()
        size = [1, sum(counts)]
        letters = rle.frPyObjects({"size": size, "counts": counts}, *size)["counts"].decode()
        assert _decompressed(letters) == counts

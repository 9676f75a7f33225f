import json

import numpy as np
import pytest
import shapely

from nerve_fast.imaging.exports import polygons


def shape_of(outlines):
    return [shapely.Polygon(one["exterior"], one["holes"]) for one in outlines]


def drawn(outlines, size):
    """Pixels whose centres the polygons hold."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return np.any([shapely.contains_xy(one, x, y) for one in shape_of(outlines)], axis=0)


def test_exact_outlines_are_the_label_map(make_labelled, tmp_path):
    one = make_labelled("a")
    assert polygons.write(one, tmp_path, 0.0) == [tmp_path / "a.polygons.json"]
    document = json.loads((tmp_path / "a.polygons.json").read_text())
    size = (document["height"], document["width"])
    assert (document["image"], document["tolerance"], size) == ("a.jpg", 0, one.label_map.shape)
    found = np.full(size, -1)
    for region in document["regions"]:
        assert one.labels[region["number"]] == region["label"]
        mask = drawn(region["polygons"], size)
        assert (found[mask] == -1).all()
        found[mask] = region["number"]
        assert sum(shape.area for shape in shape_of(region["polygons"])) == region["area"]
        assert region["area"] == mask.sum()
        assert region["confidence"] == pytest.approx(one.confidences[region["number"]])
    assert np.array_equal(found, one.label_map)
    assert any(part["holes"] for region in document["regions"] for part in region["polygons"])


def test_a_ring_has_a_hole_and_corners_alone_do_not_join():
    mask = np.ones((5, 6), bool)
    mask[1:4, 1:5] = False
    mask[2, 2] = True
    rim, island = sorted(polygons.outlines(mask, 0.0), key=lambda one: -len(one["holes"]))
    assert sorted(rim["exterior"]) == [[0, 0], [0, 5], [6, 0], [6, 5]]
    assert [sorted(hole) for hole in rim["holes"]] == [[[1, 1], [1, 4], [5, 1], [5, 4]]]
    assert sorted(island["exterior"]) == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert len(polygons.outlines(np.eye(3, dtype=bool), 0.0)) == 3
    assert polygons.outlines(np.zeros((3, 3), bool), 0.0) == []


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 3.0])
def test_simplified_outlines_are_within_the_tolerance(chance, tolerance):
    y, x = np.mgrid[:80, :90]
    mask = np.hypot(y - 40, x - 45) < 35 + 3 * chance.random((80, 90))
    mask &= np.hypot(y - 40, x - 40) > 12
    exact, simple = (shape_of(polygons.outlines(mask, at)) for at in (0.0, tolerance))
    for part, other in zip(exact, simple, strict=True):
        assert other.is_valid
        rings = zip(
            (part.exterior, *part.interiors), (other.exterior, *other.interiors), strict=True
        )
        for ring, fewer in rings:
            assert ring.hausdorff_distance(fewer) <= tolerance + 1e-9


def test_simplified_outlines_have_fewer_corners():
    y, x = np.mgrid[:80, :90]
    mask = np.hypot(y - 40, x - 45) < 35
    mask &= np.hypot(y - 40, x - 40) > 12
    corners = [
        sum(map(shapely.get_num_coordinates, shape_of(polygons.outlines(mask, tolerance))))
        for tolerance in (0.0, 1.0, 3.0)
    ]
    assert corners[2] < corners[1] < corners[0] / 2

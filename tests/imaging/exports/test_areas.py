import csv

import pytest

from nerve_fast.imaging.exports import areas


def test_areas_add_up_to_the_image(make_labelled, tmp_path):
    images = [make_labelled("a"), make_labelled('b, "c"')]
    areas.write(tmp_path, images[0].labels, iter(images))
    with (tmp_path / "areas.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for one in images:
        own = {row["label"]: row for row in rows if row["image"] == one.image}
        assert set(own) == {"", *one.labels[:-1]}
        assert sum(int(row["pixels"]) for row in own.values()) == one.label_map.size
        assert own[""]["confidence"] == ""
        for number, label in enumerate(one.labels[:-1]):
            assert int(own[label]["pixels"]) == (one.label_map == number).sum()
            share = (one.label_map == number).mean()
            assert float(own[label]["share"]) == pytest.approx(share, abs=1e-6)
            expected = pytest.approx(one.confidences[number], abs=1e-6)
            assert float(own[label]["confidence"]) == expected

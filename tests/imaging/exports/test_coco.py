import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from nerve_fast.imaging.exports import coco


def test_pycocotools_reads_the_label_maps_back(make_labelled, tmp_path, capsys):
    images = [make_labelled("a"), make_labelled("b")]
    labels = images[0].labels
    coco.write(tmp_path, labels, iter(images))
    read = COCO(str(tmp_path / "coco.json"))
    assert [one["name"] for one in read.loadCats(read.getCatIds())] == list(labels)
    assert len(set(read.getAnnIds())) == len(read.getAnnIds())
    for number, one in zip(read.getImgIds(), images, strict=True):
        (entry,) = read.loadImgs(number)
        assert entry["file_name"] == one.image
        assert (entry["height"], entry["width"]) == one.label_map.shape
        found = np.full(one.label_map.shape, -1)
        for annotation in read.loadAnns(read.getAnnIds(imgIds=number)):
            mask = read.annToMask(annotation).astype(bool)
            label = annotation["category_id"] - 1
            assert (found[mask] == -1).all()
            found[mask] = label
            rows, columns = mask.nonzero()
            left, top = columns.min(), rows.min()
            assert annotation["bbox"] == [
                left,
                top,
                columns.max() + 1 - left,
                rows.max() + 1 - top,
            ]
            assert annotation["area"] == mask.sum()
            assert annotation["iscrowd"] == 0
            assert annotation["score"] == pytest.approx(one.confidences[label])
        assert np.array_equal(found, one.label_map)


def test_one_image_is_a_document_of_its_own(make_labelled, tmp_path):
    one = make_labelled("a")
    coco.write(tmp_path, one.labels, iter([one]))
    assert json.loads((tmp_path / "coco.json").read_text()) == coco.document(one)
    coco.write(tmp_path, one.labels, iter([]))
    assert json.loads((tmp_path / "coco.json").read_text())["annotations"] == []
    assert (tmp_path / "coco.json").read_bytes().startswith(coco.MARK)


def test_an_error_half_way_leaves_what_was_there(make_labelled, tmp_path):
    def broken():
        yield make_labelled("a")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        coco.write(tmp_path, make_labelled().labels, broken())
    assert list(tmp_path.iterdir()) == []

import numpy as np
import pytest
from PIL import Image

from nerve_fast import InputError
from nerve_fast.imaging.exports import voc

LABELS = ("cat, kitten", "dog", "Background, sky", "grass", "never")


def label_map_of(text):
    """Colours by label, as CVAT reads them."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    entries = [line.split(":") for line in lines]
    assert all(len(entry) == 4 for entry in entries)
    return {entry[0]: tuple(map(int, entry[1].split(","))) for entry in entries}


@pytest.mark.parametrize("labels", [LABELS, LABELS[:2] + LABELS[3:]])
def test_colours_and_values_lead_back_to_the_label_map(make_labelled, tmp_path, labels):
    images = [make_labelled("a", labels), make_labelled("b", labels)]
    for one in images:
        assert voc.write_image(one, tmp_path, 0.0) == [tmp_path / voc.mask_of(one.stem)]
    voc.write(tmp_path, labels, iter(images))
    colours = label_map_of((tmp_path / "voc/labelmap.txt").read_text())
    first = next(iter(colours))
    assert colours[first] == (0, 0, 0)
    assert first == ("Background, sky" if "Background, sky" in labels else "background")
    assert len(set(colours.values())) == len(colours)
    names = (tmp_path / "voc/ImageSets/Segmentation/default.txt").read_text()
    assert names == "a\nb\n"
    for one in images:
        with Image.open(tmp_path / voc.mask_of(one.stem)) as mask:
            assert mask.mode == "P"
            values, painted = np.asarray(mask), np.asarray(mask.convert("RGB"))
        for number, label in enumerate(labels):
            where = one.label_map == number
            assert (painted[where] == colours[label]).all()
            # Readers of values number the labels in the order of the file.
            assert (values[where] == list(colours).index(label)).all()
        assert (values[one.label_map == -1] == 255).all()
        assert (painted[one.label_map == -1] == voc.VOID).all()


def test_labels_that_have_no_place_are_refused():
    with pytest.raises(InputError, match="voc has values for 254 labels, and there are 255"):
        voc.check([f"label {i}" for i in range(255)])
    for label in ("a: b", "#1"):
        with pytest.raises(InputError, match="cannot stand in VOC's labelmap.txt"):
            voc.check(["cat", label])
    voc.check([f"label {i}" for i in range(254)])

import errno

import numpy as np
import pytest
from PIL import Image

from nerve_fast import InputError
from nerve_fast.imaging.exports import masks


def test_a_png_for_each_label_that_occurs(make_labelled, tmp_path):
    one = make_labelled("a")
    paths = masks.write(one, tmp_path, 0.0)
    names = [path.relative_to(tmp_path).as_posix() for path in paths]
    assert names == [
        "a.masks/000-background.png",
        "a.masks/001-cat__kitten.png",
        "a.masks/002-a__dog.png",
        "a.masks/003-grass.png",
    ]
    found = np.full(one.label_map.shape, -1)
    for number, path in enumerate(paths):
        values = np.asarray(Image.open(path))
        assert set(np.unique(values)) <= {0, 255}
        found[values == 255] = number
    assert np.array_equal(found, one.label_map)


def test_what_an_earlier_run_left_goes(make_labelled, tmp_path):
    masks.write(make_labelled("a", ("x", "y", "z" * 300, "never")), tmp_path, 0.0)
    paths = masks.write(make_labelled("a"), tmp_path, 0.0)
    assert sorted((tmp_path / "a.masks").iterdir()) == paths


def test_a_full_disk_half_way_leaves_nothing(make_labelled, tmp_path, monkeypatch):
    save = Image.Image.save
    saved = []

    def full(self, file, **options):
        saved.append(file)
        if len(saved) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, file, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        masks.write(make_labelled("a"), tmp_path, 0.0)
    assert list(tmp_path.iterdir()) == []

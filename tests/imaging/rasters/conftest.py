import numpy as np
import pytest

from nerve_fast.imaging.rasters import reading, writing


@pytest.fixture
def label_map(generator):
    rng = np.random.default_rng(generator.initial_seed())
    found = rng.integers(-1, 3, (6, 7)).repeat(50, 0).repeat(50, 1)
    found[rng.random(found.shape) < 0.01] = -1
    return found


@pytest.fixture
def write_labels():
    """``write_labels(source, path, label_map, labels)``: a label raster on a raster's grid."""

    def write(source, path, label_map, labels):
        with reading.opened(source) as raster:
            with writing.label_raster(path, path, raster, labels, {"source": "x"}) as labelled:
                for top in range(0, len(label_map), 100):
                    labelled.write((top, 0), label_map[top : top + 100])
            writing.names_file(path).write_text(writing.category_names(labels), encoding="utf-8")

    return write

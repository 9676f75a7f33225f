import numpy as np
import pytest

from nerve_fast import NerveConfig
from nerve_fast.errors import InputError
from nerve_fast.imaging.rasters import reading
from nerve_fast.pipeline.map_plan import planned
from nerve_fast.pipeline.map_settings import MapSettings

LABELS = [f"thing {number}" for number in range(7)]


def asked(path, **given):
    config = NerveConfig(normalization="shift")
    return MapSettings(raster=path, labels=LABELS, output="out.tif", config=config, **given)


def test_the_memory_decides_on_the_windows(pipe, make_raster, tmp_path):
    path = make_raster(np.ones((1, 1024, 1024), np.uint8))
    with reading.opened(path) as raster:
        roomy, tight = (
            planned(pipe, raster, asked(path, max_memory=memory)).tiling
            for memory in ("4GB", "700MB")
        )
        assert roomy.tile == (1024, 1024)
        assert tight.tile < roomy.tile
        for given in ({"max_memory": "100MB"}, {"max_memory": "700MB", "window": 1024}):
            with pytest.raises(InputError, match="do not hold windows of (128|1024) pixels"):
                planned(pipe, raster, asked(path, **given))
        for given in ({"window": 8}, {"window": 64, "window_overlap": 40}):
            with pytest.raises(InputError, match="window"):
                planned(pipe, raster, asked(path, **given))

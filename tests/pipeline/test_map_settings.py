import pytest

from nerve_fast.errors import InputError
from nerve_fast.pipeline.map_settings import MapSettings


def asked(path, **given):
    return MapSettings(raster=path, **{"labels": ["grass", "snow"], "output": "out.tif", **given})


def test_settings_that_do_not_go_are_refused(tmp_path):
    path = tmp_path / "scene.tif"
    for given, said in (
        ({"bands": (1, 2)}, "bands is .* expected three bands"),
        ({"bands": (0,)}, "bands is 0; expected 1 or more"),
        ({"percentiles": (98, 2)}, "percentiles is .* the lower one first"),
        ({"percentiles": (2,)}, "percentiles is .* expected two numbers"),
        ({"percentiles": (2, float("nan"))}, "percentiles is .* expected two numbers"),
        ({"scale": 0}, "scale is 0; expected 1 or more"),
        ({"output": "out.png"}, "expected the name of a GeoTIFF"),
        ({"labels": []}, "labels is empty"),
        ({"background": "grass"}, "background .* set threshold too"),
        ({"window_overlap": -1}, "window_overlap is -1"),
    ):
        with pytest.raises(InputError, match=said):
            asked(path, **given)
    for given in ({"bands": "123"}, {"percentiles": "ab"}, {"scale": None}, {"models": 3}):
        with pytest.raises(TypeError, match=next(iter(given))):
            asked(path, **given)

import importlib.util

import pytest

from nerve_fast import InputError
from nerve_fast.imaging import exports


def test_what_is_no_format_is_refused():
    exports.check(list(exports.EXPORTS), ["cat"])
    for name in ("json", 3, None):
        with pytest.raises(InputError, match="export is .*; expected one of coco, polygons"):
            exports.check([name], ["cat"])


def test_a_library_that_is_not_there_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "shapely" else find(name)
    )
    exports.check(["coco", "masks", "csv"], ["cat"])
    with pytest.raises(InputError, match=r'shapely is not installed.*"nerve-fast\[exports\]"'):
        exports.check(["coco", "polygons"], ["cat"])

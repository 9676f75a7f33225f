"""Georeferenced rasters: pixels in by windows, label maps and their outlines out."""

import importlib.util

from nerve_fast.errors import InputError

SOFTWARE = "nerve-fast"
"""What files that are written here say they were made by."""


def need(*modules: str) -> None:
    """Raise an :class:`InputError` where a module of the extra ``geo`` is not installed."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise InputError(f'{name} is not installed; get it: pip install "nerve-fast[geo]"')

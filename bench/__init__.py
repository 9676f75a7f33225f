"""Measurements: time, memory and error of the operations, side by side, as ratios."""

import importlib.util
import sys
from pathlib import Path


def _use_checkout() -> None:
    """Let ``nerve_fast.bench`` and ``.kernels`` be found in a checkout that nobody has installed.

    ``setup.py`` gives the folders these names; a lent machine may have no pip at all.
    """
    for name in ("bench", "kernels"):
        folder, whole = Path(__file__).parents[1] / name, f"nerve_fast.{name}"
        if importlib.util.find_spec(whole) is None:
            spec = importlib.util.spec_from_file_location(
                whole, folder / "__init__.py", submodule_search_locations=[str(folder)]
            )
            module = importlib.util.module_from_spec(spec)
            sys.modules[whole] = module
            spec.loader.exec_module(module)


if __name__ == "bench":
    _use_checkout()

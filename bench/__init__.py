"""Measurements: time, memory and error of the operations, side by side, as ratios."""

import importlib.util
import sys
from pathlib import Path


def _use_checkout() -> None:
    """Let ``nerve_fast.kernels`` be found in a checkout that nobody has installed.

    ``setup.py`` gives the folder ``kernels`` that name; a lent machine may have no pip at all.
    """
    folder = Path(__file__).parents[1] / "kernels"
    if importlib.util.find_spec("nerve_fast.kernels") is None:
        spec = importlib.util.spec_from_file_location(
            "nerve_fast.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules["nerve_fast.kernels"] = module
        spec.loader.exec_module(module)


_use_checkout()

"""Checks that the refiners share."""

import numbers

from torch import Tensor

from nerve_fast.backbones.source import GraphFeatures
from nerve_fast.errors import InputError
from nerve_fast.ops.checks import check_float_tensor


def check_maps(maps: Tensor) -> None:
    """``maps`` is a floating tensor ``(K, h, w)`` with nothing empty."""
    check_float_tensor("probabilities", maps, "(K, h, w)", 3)
    if maps.ndim != 3:
        raise InputError(
            f"probabilities has shape {tuple(maps.shape)}; expected (K, h, w), of one image"
        )


def check_graph(name: str, graph: GraphFeatures | None) -> GraphFeatures:
    """``graph``, which is there and of one image."""
    if graph is None or len(graph.q) != 1:
        given = "None" if graph is None else f"of {len(graph.q)} images"
        raise InputError(f"graph is {given}; the refiner {name} needs the features of one image")
    return graph


def check_count(name: str, value: int, least: int) -> None:
    """``value`` is a whole number, ``least`` or more."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is {value!r}; expected a whole number, {least} or more")

"""The choice of a backend and a route by name."""

from types import ModuleType

from nerve_fast import reference
from nerve_fast.errors import InputError

BACKENDS = {"reference": reference}
"""The backends of this version: each a module with one function an operation."""

BACKEND_NAMES = ("auto", "reference", "blocked", "triton")
ROUTES = ("auto", "dense", "streaming", "factorized")
FACTORIZABLE = ("shift", "l1")
"""Normalizations whose row is linear in the affinity, so that ``Q̃ (K̃ᵀ Y)`` is exact."""


def backend_for(backend: str) -> ModuleType:
    """The module that carries out the operations of the backend ``backend``.

    Raises:
        InputError: there is no such backend, here or at all. An explicit choice never falls back.
    """
    if backend not in BACKEND_NAMES:
        raise InputError(f"backend is {backend!r}; expected one of {', '.join(BACKEND_NAMES)}")
    if backend == "auto":
        return reference
    if backend not in BACKENDS:
        raise InputError(
            f"backend {backend!r} is not part of this version of nerve-fast; "
            f"{', '.join(map(repr, BACKENDS))} is: pass that, or 'auto'"
        )
    return BACKENDS[backend]


def check_route(route: str, normalization: str) -> None:
    """The route ``route`` exists, is exact for ``normalization``, and has a backend.

    Raises:
        InputError: it does not, is not, or has none.
    """
    if route not in ROUTES:
        raise InputError(f"route is {route!r}; expected one of {', '.join(ROUTES)}")
    if route == "factorized" and normalization not in FACTORIZABLE:
        raise InputError(
            f"route 'factorized' is not exact with normalization {normalization!r}; it is with "
            f"{' and '.join(map(repr, FACTORIZABLE))}: change the normalization, or take 'auto'"
        )
    if route not in ("auto", "dense"):
        raise InputError(
            f"route {route!r} is not part of this version of nerve-fast; 'dense' is: pass that, or "
            "'auto'"
        )

"""Which backend and which route carry out an operation."""

from nerve_fast.dispatch.select import BACKEND_NAMES, BACKENDS, backend_for, check_route

__all__ = ["BACKENDS", "BACKEND_NAMES", "backend_for", "check_route"]

"""Imports point one way and in no circle; argparse and the networks stay in their rooms."""

import ast
from pathlib import Path

import pytest

import nerve_fast

PACKAGE = Path(nerve_fast.__file__).parent
ROOT = PACKAGE.parent

LEVELS = (
    ("cli",),
    ("evaluation",),
    ("pipeline",),
    ("datasets",),
    ("refiners",),
    ("priors",),
    ("backbones",),
    ("ops",),
    ("dispatch",),
    ("blocked", "kernels"),
    ("reference",),
    ("config", "walked", "weights"),
    ("normalization", "numerics"),
    ("imaging", "tiny"),
    ("utils",),
    ("errors",),
)
"""From the top: a room imports from its own level and from those below it."""

"""A small model set that ships with the package, and the invented world it was trained in.

``scenes`` draws the world, ``train`` makes the weights, ``MODELS`` is the folder they lie in.
"""

from pathlib import Path

MODELS = Path(__file__).parent / "models"

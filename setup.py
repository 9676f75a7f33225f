"""The mapping of two folders into the package; everything else is in pyproject.toml.

The folder ``kernels`` must not become a top-level package, because transformers and diffusers
import Hugging Face's package of that name; it and ``bench`` are installed below ``nerve_fast``.
"""

from setuptools import find_packages, setup

MAPPED = {"nerve_fast.bench": "bench", "nerve_fast.kernels": "kernels"}

setup(
    packages=[
        *find_packages(include=["nerve_fast*"]),
        *MAPPED,
        *(f"{name}.{inner}" for name, folder in MAPPED.items() for inner in find_packages(folder)),
    ],
    package_dir=MAPPED,
)

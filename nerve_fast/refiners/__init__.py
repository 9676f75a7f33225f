"""What improves a prior, on one interface, so that they can be compared on the same one.

See :class:`~nerve_fast.refiners.registry.Refiner`. The functions beside the classes compute the
same from what the image has been turned into already.
"""

from nerve_fast.refiners.cliper import CLIPerDiffusion, attention_chain
from nerve_fast.refiners.densecrf import DenseCRF
from nerve_fast.refiners.iseg import ISeg, iseg
from nerve_fast.refiners.pamr import PAMR, pamr
from nerve_fast.refiners.regions import Regions
from nerve_fast.refiners.registry import REFINERS, Refiner
from nerve_fast.refiners.walk import Walk, walk

__all__ = [
    "PAMR",
    "REFINERS",
    "CLIPerDiffusion",
    "DenseCRF",
    "ISeg",
    "Refiner",
    "Regions",
    "Walk",
    "attention_chain",
    "iseg",
    "pamr",
    "walk",
]

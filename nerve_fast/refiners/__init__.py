"""What improves a prior, on one interface, so that they can be compared on the same one.

A refiner is called with an image (a PIL image, RGB) and with probabilities ``(K, h, w)`` float32 on
a grid of any size that covers it, summing to 1 over ``K``. It gives ``(K, h', w')`` float32 on the
same device, non-negative and summing to 1 over ``K``, on the grid that it works on. The functions
beside the classes compute the same from what the image has been turned into already.
"""

from nerve_fast.refiners.features import features_of
from nerve_fast.refiners.iseg import ISeg, iseg
from nerve_fast.refiners.pamr import PAMR, pamr
from nerve_fast.refiners.walk import Walk, walk

__all__ = ["PAMR", "ISeg", "Walk", "features_of", "iseg", "pamr", "walk"]

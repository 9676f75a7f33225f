"""A fully connected CRF as a refiner."""

import dataclasses

from PIL import Image
from torch import Tensor

from nerve_fast.backbones.source import GraphFeatures
from nerve_fast.imaging.densecrf import densecrf, densecrf_memory
from nerve_fast.imaging.images import to_tensor
from nerve_fast.imaging.resampling import to_pixels
from nerve_fast.ops.checks import check_real
from nerve_fast.refiners.checks import check_count, check_maps
from nerve_fast.refiners.registry import registered


@registered("densecrf", needs_graph=False)
@dataclasses.dataclass(frozen=True)
class DenseCRF:
    """A fully connected CRF at the image's own pixels.

    It is :func:`~nerve_fast.imaging.densecrf.densecrf` as a refiner. Defaults are those
    of CLIP as RNN, which are DeepLab's.

    Args:
        iterations: of mean field.
        weight, spread: of the kernel of places; its standard deviation in pixels.
        bilateral_weight, bilateral_spread, colour_spread: of the kernel of places and colours; its
            standard deviations in pixels and in levels of 0 to 255.

    Raises:
        InputError, TypeError: a value is out of its range, or of the wrong type.
    """

    iterations: int = 10
    weight: float = 3.0
    spread: float = 1.0
    bilateral_weight: float = 4.0
    bilateral_spread: float = 67.0
    colour_spread: float = 3.0

    def __post_init__(self):
        check_count("iterations", self.iterations, 0)
        check_real("weight", self.weight, 0)
        check_real("bilateral_weight", self.bilateral_weight, 0)
        for name in ("spread", "bilateral_spread", "colour_spread"):
            check_real(name, getattr(self, name), 0.1)

    def __call__(
        self, image: Image.Image, probabilities: Tensor, graph: GraphFeatures | None = None
    ) -> Tensor:
        """Probabilities ``(K, h, w)`` to ``(K, H, W)``, the size of the image."""
        check_maps(probabilities)
        pixels = to_pixels(probabilities.float(), (image.height, image.width))
        return densecrf(
            255 * to_tensor(image),
            pixels / pixels.sum(0),
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
        )

    def memory(self, labels: int, image_size: tuple[int, int], tokens: int) -> int:
        """Bytes of the labels and features of the image's pixels, and of tiles of the kernel."""
        return densecrf_memory(labels, image_size)

"""The refiners by name: each file of this room registers its own."""

from collections.abc import Callable
from typing import ClassVar, Protocol

from PIL import Image
from torch import Tensor

from nerve_fast.backbones.source import GraphFeatures


class Refiner(Protocol):
    """What improves a prior.

    Attributes:
        name: in presets and on the command line.
        needs_graph: whether it is called with the image's queries and keys.
        linear: whether it only moves maps about, whatever they sum to: similarities too.
    """

    name: ClassVar[str]
    needs_graph: ClassVar[bool]
    linear: ClassVar[bool]

    def __call__(
        self, image: Image.Image, probabilities: Tensor, graph: GraphFeatures | None = None
    ) -> Tensor:
        """Refine the labels of one image.

        Args:
            image: RGB, of any size.
            probabilities: ``(K, h, w)`` float32 on a grid of any size that covers the image,
                summing to 1 over ``K``.
            graph: queries and keys of the image, ``(1, H, N, D)``, for those that need them.

        Returns:
            ``(K, h', w')`` float32 on the same device, non-negative and summing to 1 over ``K``,
            on the grid that the refiner works on.
        """
        ...

    def graph_image(self, image: Image.Image) -> Image.Image:
        """What the graph's network sees of an image; of most refiners the image itself."""
        ...

    def memory(self, labels: int, image_size: tuple[int, int], tokens: int) -> int:
        """Bytes that it takes at most for ``K`` labels beyond what it is given.

        Args:
            labels: ``K``.
            image_size: ``(width, height)`` in pixels.
            tokens: of the graph, ``N``; 0 where there is none.
        """
        ...


REFINERS: dict[str, type[Refiner]] = {}


def registered(name: str, *, needs_graph: bool, linear: bool = False) -> Callable[[type], type]:
    """A decorator that enters a class into :data:`REFINERS` under a name."""

    def enter(refiner: type) -> type:
        entered: type[Refiner] = refiner
        entered.name, entered.needs_graph, entered.linear = name, needs_graph, linear
        if "graph_image" not in vars(refiner):
            entered.graph_image = lambda self, image: image  # type: ignore[method-assign]
        REFINERS[name] = entered
        return refiner

    return enter

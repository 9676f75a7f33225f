"""The patch-wise CLIP methods by name: each file of this room registers its own."""

import dataclasses
import math
from collections.abc import Callable

from nerve_fast.backbones.clip import CLIPBackbone, ReadOut
from nerve_fast.priors.views import View

ACTIVATIONS = 40
"""Live activations of a layer of CLIP in multiples of its hidden states, its MLP included."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows that go through CLIP at a time, as far as their memory goes.

    Attributes:
        clip: the network.
        read_out: what stands in for its encoder.
        view: how an image is seen.
        count: windows at a time.
    """

    clip: CLIPBackbone
    read_out: ReadOut
    view: View
    count: int

    @property
    def patches(self) -> int:
        """The number of patches of a window."""
        return math.prod(self.view.window) // self.clip.patch**2

    @property
    def hidden(self) -> int:
        """Bytes of the hidden states of all windows, of one layer."""
        width = self.clip.model.config.vision_config.hidden_size
        return self.count * self.patches * width * self.clip.model.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to read features of patches out of CLIP.

    Attributes:
        name: in :class:`~nerve_fast.PriorConfig` and on the command line.
        read_out: the function itself, or, for those with a proxy, a class that is made of the proxy
            and CLIP's normalisation.
        proxied: whether it looks with another network besides CLIP.
        memory: bytes that it takes beyond a layer's activations.
        cells: places on which it gives similarities of an image seen whole, where they are not
            CLIP's patches.
        positions: how its authors bring CLIP's position embeddings to other grids: one of
            :data:`~nerve_fast.backbones.positions.FILTERS`, or ``"dino"``, bicubic and under the
            protocol ``mmseg`` with the offset of DINO's code.
        padded: whether under the protocol ``mmseg`` windows get zeros on all sides to whole
            patches; what is left beyond them is not seen otherwise.
        public: the read-out under the protocol ``mmseg``, where the authors' network computes
            otherwise than CLIP's; ``None`` is ``read_out``.
    """

    name: str
    read_out: Callable
    proxied: bool
    memory: Callable[[Windows], int]
    cells: Callable[[Windows], int]
    positions: str
    padded: bool
    public: Callable | None


METHODS: dict[str, Method] = {}


def registered(
    name: str,
    *,
    proxied: bool = False,
    memory: Callable[[Windows], int] = lambda windows: 0,
    cells: Callable[[Windows], int] = lambda windows: 0,
    positions: str = "dino",
    padded: bool = False,
    public: Callable | None = None,
) -> Callable:
    """A decorator that enters a read-out into :data:`METHODS`; see :class:`Method`."""

    def enter(read_out):
        METHODS[name] = Method(
            name, read_out, proxied, memory, cells, positions, padded, public
        )
        return read_out

    return enter

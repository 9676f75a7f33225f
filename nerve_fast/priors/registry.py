"""The priors by name: each file of this room registers its own, and says what it needs."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from nerve_fast.backbones.clip import DEFAULT_CLIP, CLIPBackbone, ReadOut
from nerve_fast.backbones.siglip import SigLIPBackbone
from nerve_fast.priors.views import View

ACTIVATIONS = 40
"""Live activations of a layer of CLIP in multiples of its hidden states, its MLP included."""


@dataclasses.dataclass(frozen=True)
class Needed:
    """A network that a prior needs besides the one of images and words.

    Attributes:
        what: what it is and where it is to be had, for messages.
        default: the hub id that is taken where none is named; ``None``: one must be named.
    """

    what: str
    default: str | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A prior of a name.

    Attributes:
        name: in :class:`~nerve_fast.PriorConfig` and on the command line.
        networks: what it needs besides the network of images and words, by name.
        reads: which fields of :class:`~nerve_fast.PriorConfig` it follows, besides its networks.
        templates: name of the prompts that it takes unless others are asked for.
        clip: hub id of its network of images and words, unless another is named.
    """

    name: str
    networks: Mapping[str, Needed]
    reads: tuple[str, ...]
    templates: str
    clip: str


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows that go through CLIP at a time, as far as their memory goes.

    Attributes:
        clip: the network.
        read_out: what stands in for its encoder.
        view: how an image is seen.
        count: windows at a time.
    """

    clip: CLIPBackbone | SigLIPBackbone
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
class Method(Entry):
    """One way to read features of patches out of CLIP; :class:`CLIPPrior` runs it.

    Attributes:
        read_out: the function itself, or, for those with a proxy, a class that is made of the proxy
            and CLIP's normalisation.
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

    read_out: Callable
    memory: Callable[[Windows], int] = lambda windows: 0
    cells: Callable[[Windows], int] = lambda windows: 0
    positions: str = "dino"
    padded: bool = False
    public: Callable | None = None


@dataclasses.dataclass(frozen=True)
class System(Entry):
    """A prior that is more than a read-out of CLIP's patches.

    Attributes:
        load: ``(config, clip, device=…, dtype=…)``: makes the :class:`~nerve_fast.Prior` with its
            networks; ``clip`` is a hub id or folder.
    """

    load: Callable[..., Any]


ENTRIES: dict[str, Entry] = {}
"""All priors, in the order of the names in messages."""

METHODS: dict[str, Method] = {}
"""Those that read CLIP's patches."""

PATCHWISE = ("resolution", "window", "stride", "logit_scale", "protocol", "templates")
"""Fields of :class:`~nerve_fast.PriorConfig` that every read-out of CLIP's patches follows."""


def registered(
    name: str,
    *,
    networks: Mapping[str, Needed] | None = None,
    memory: Callable[[Windows], int] = lambda windows: 0,
    cells: Callable[[Windows], int] = lambda windows: 0,
    positions: str = "dino",
    padded: bool = False,
    public: Callable | None = None,
) -> Callable:
    """A decorator that enters a read-out into :data:`METHODS`; see :class:`Method`."""

    def enter(read_out):
        ENTRIES[name] = METHODS[name] = Method(
            name,
            networks or {},
            PATCHWISE,
            "imagenet",
            DEFAULT_CLIP,
            read_out,
            memory,
            cells,
            positions,
            padded,
            public,
        )
        return read_out

    return enter


def system(
    name: str,
    *,
    clip: str,
    templates: str,
    reads: tuple[str, ...] = (),
    networks: Mapping[str, Needed] | None = None,
) -> Callable:
    """A decorator that enters a class with a ``load`` into :data:`ENTRIES`; see :class:`System`."""

    def enter(made):
        ENTRIES[name] = System(
            name, networks or {}, (*reads, "templates"), templates, clip, made.load
        )
        return made

    return enter

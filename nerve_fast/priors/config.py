"""Which prior, and how its networks see images."""

import dataclasses
import numbers
from collections.abc import Mapping

from nerve_fast.backbones.templates import TEMPLATES
from nerve_fast.errors import InputError, check_choice, quoted
from nerve_fast.numerics import is_finite
from nerve_fast.priors.crossattention import HEADS
from nerve_fast.priors.prompting import PROMPTS
from nerve_fast.priors.wording import parts_of
from nerve_fast.utils.named import named_networks

PROTOCOLS = ("fit", "mmseg", "squash")
"""How images are brought to CLIP, see :class:`PriorConfig`."""


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """How the prior is computed.

    Args:
        name: one of :data:`~nerve_fast.priors.ENTRIES`.
        resolution: short side of the image that CLIP sees, in pixels; ``None`` is 1.5 times the
            size the checkpoint was trained at, which is the field's 336 for 224; of
            ``ovdiff``, of what all its networks see, ``None`` being 448.
        window: side of the sliding window, in pixels; ``None`` shows CLIP the whole image at once.
            Where neither is set and the diffusion model sees the image in tiles, CLIP sees it as
            much larger as that does, in windows.
        stride: step of the window, in pixels; ``None`` is half the window.
        logit_scale: cosine similarities are multiplied by this before the softmax over words.
        protocol: ``fit``: sides are rounded to whole patches, and the checkpoint's own filter
            resizes; windows are multiples of the patch. ``mmseg``: to the pixel as the field's
            public code has it, for numbers that can be held against published ones: sides as mmseg
            rounds them, OpenCV's bilinear filter, windows anywhere, what is left beyond whole
            patches not seen, similarities brought to pixels, and position embeddings read a tenth
            of a patch aside, as DINO's code does. ``squash``: as ``fit``, to a square whatever the
            image's shape, and whole.
        networks: what the prior looks with besides its network of images and words, hub ids,
            folders or files by name, such as ``{"proxy": "facebook/dino-vitb8"}`` of ``proxyclip``;
            those that are not named are the paper's.
        templates: of the prompts, one of :data:`~nerve_fast.backbones.templates.TEMPLATES`;
            ``None`` is the prior's own.
        background: the label that is whatever no other label is, for priors that have a rule of
            their own for it; ``None``: there is none.
        threshold: of that rule, where it has one: the least probability of another label.
        layer, cut: of ``cliper``: which layer is moved, −1 being the last, and below which share of
            a map's maximum it is 0 there.
        mask, confidence, box: of ``car``: above which value of a proposal its pixels are shown;
            above which score a label stays; above which share of a map's maximum a box is drawn.
            The second is of ``iseg`` too, in shares of the range of all labels' scores.
        visual, visual_stuff: of ``car``: the visual prompts of things and of stuff, some of
            :data:`~nerve_fast.priors.prompting.PROMPTS`.
        stuff: a word of each label that is stuff: of ``car``, which looks for it first, and of
            ``ovdiff``, where it has no background of its own.
        support: of ``ovdiff``: images that are made of each label.
        others: of ``cliper`` and ``iseg``: words that compete with those of the labels and stand
            for none.
        reweighting: of ``iseg``: above which share of the range of all maps a label's crop is
            looked at too; the weights of its score and of the crop's.
        prompt: of ``iseg``, with ``{}`` for the names of the labels.
        said: of ``iseg``: what a label is called in the prompt, by its first word, where that is
            something else: ``{"pottedplant": "potted [plant]"}``. What stands in brackets counts
            alone. These labels come first in the prompt, in this order.
        heads: of ``iseg``: heads of cross-attention that are averaged, one of
            :data:`~nerve_fast.priors.crossattention.HEADS`.
        iterations, step_size: of ``iseg``: how often labels move, and λ; see
            :class:`~nerve_fast.refiners.ISeg`.

    Raises:
        InputError: a value is out of its range, or the prior does not read it; a ``ValueError``.
        TypeError: ``networks`` or ``said`` is no mapping, or there are no words where they belong.
    """

    name: str = "naclip"
    resolution: int | None = None
    window: int | None = None
    stride: int | None = None
    logit_scale: float = 40.0
    protocol: str = "fit"
    networks: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    templates: str | None = None
    background: str | None = None
    threshold: float = 0.0
    layer: int = -1
    cut: float = 0.2
    others: tuple[str, ...] = ()
    mask: float = 0.4
    confidence: float = 0.6
    box: float = 0.4
    visual: tuple[str, ...] = ("circle", "blur")
    visual_stuff: tuple[str, ...] = ("blur", "gray")
    stuff: tuple[str, ...] = ()
    support: int = 32
    reweighting: tuple[float, ...] = (0.6, 0.4, 0.8)
    prompt: str = "a photograph of {} and other object and background"
    said: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    heads: str = "all"
    iterations: int = 8
    step_size: float = 0.015

    def __post_init__(self):
        # The registry is filled by the files of the methods, which take their settings from here.
        from nerve_fast.priors import ENTRIES

        check_choice("prior", self.name, ENTRIES)
        entry = ENTRIES[self.name]
        networks = named_networks("networks", self.networks)
        object.__setattr__(self, "networks", networks)
        if self.background is not None and not isinstance(self.background, str):
            raise TypeError(f"prior background is {quoted(self.background)}; expected a word")
        for field in ("others", "visual", "visual_stuff", "stuff"):
            words = getattr(self, field)
            if not isinstance(words, (list, tuple)) or not all(isinstance(x, str) for x in words):
                raise TypeError(f"prior {field} is {quoted(words)}; expected a list of words")
            object.__setattr__(self, field, tuple(words))
        for name, source in networks:
            if name not in entry.networks:
                known = ", ".join(entry.networks) or "none"
                raise InputError(
                    f"prior network {name} is {quoted(source)} and prior is {self.name}, whose "
                    f"further networks are: {known}"
                )
        for field in ("resolution", "window", "stride"):
            value = getattr(self, field)
            if value is not None and not _is_count(value):
                raise InputError(
                    f"prior {field} is {quoted(value)}; expected a number of pixels above 0"
                )
        if self.stride is not None and (self.window is None or self.stride > self.window):
            raise InputError(
                f"prior stride is {quoted(self.stride)} and window is {self.window}; expected a "
                "stride no longer than the window"
            )
        scale = self.logit_scale
        if not isinstance(scale, numbers.Real) or not (is_finite(scale) and scale > 0):
            raise InputError(f"logit scale is {quoted(scale)}; expected a number above 0")
        check_choice("prior protocol", self.protocol, PROTOCOLS)
        if self.protocol == "squash" and self.window is not None:
            raise InputError(
                f"prior window is {self.window} and the protocol is squash, which shows the whole "
                "image; leave one of them out"
            )
        if not isinstance(self.threshold, numbers.Real) or not 0 <= self.threshold <= 1:
            raise InputError(
                f"prior threshold is {quoted(self.threshold)}; expected a number from 0 to 1"
            )
        for field, kind in (("layer", numbers.Integral), ("cut", numbers.Real)):
            if not isinstance(getattr(self, field), kind):
                raise InputError(
                    f"prior {field} is {quoted(getattr(self, field))}; expected a number"
                )
        for field in ("mask", "confidence", "box"):
            value = getattr(self, field)
            if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
                raise InputError(f"prior {field} is {quoted(value)}; expected a number from 0 to 1")
        for field in ("visual", "visual_stuff"):
            for prompt in getattr(self, field):
                check_choice(f"prior {field}", prompt, PROMPTS)
        if not _is_count(self.support):
            raise InputError(
                f"prior support is {quoted(self.support)}; expected a number of images, 1 or more"
            )
        self._check_iseg()
        if self.templates is not None:
            check_choice("prior templates", self.templates, TEMPLATES)
        self._refuse_unread(entry.reads)

    def _check_iseg(self) -> None:
        pairs = list(self.said.items()) if isinstance(self.said, Mapping) else self.said
        if not isinstance(pairs, (list, tuple)) or not all(map(_is_pair_of_words, pairs)):
            raise TypeError(
                f"prior said is {quoted(self.said)}; expected a dictionary from words to names"
            )
        object.__setattr__(self, "said", tuple((word, name) for word, name in pairs))
        for word, name in pairs:
            if not parts_of(name)[1].strip():
                raise InputError(
                    f"prior said calls {word!r} {quoted(name)}, of which nothing counts; expected "
                    "a name, or a part of one in brackets"
                )
        if not isinstance(self.reweighting, (list, tuple)) or len(self.reweighting) != 3:
            raise InputError(
                f"prior reweighting is {quoted(self.reweighting)}; expected three numbers"
            )
        object.__setattr__(self, "reweighting", tuple(self.reweighting))
        for name, value in [
            *(("reweighting", value) for value in self.reweighting),
            ("step_size", self.step_size),
        ]:
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not is_number or not (is_finite(value) and value >= 0):
                raise InputError(f"prior {name} has {quoted(value)}; expected a number, 0 or more")
        if not isinstance(self.prompt, str) or self.prompt.count("{}") != 1:
            raise InputError(
                f"prior prompt is {quoted(self.prompt)}; expected a text with {{}} in it, once"
            )
        check_choice("prior heads", self.heads, HEADS)
        is_whole = isinstance(self.iterations, numbers.Integral)
        if not is_whole or isinstance(self.iterations, bool) or self.iterations < 0:
            raise InputError(
                f"prior iterations is {quoted(self.iterations)}; expected a whole number, 0 or more"
            )

    def _refuse_unread(self, reads: tuple[str, ...]) -> None:
        for field in dataclasses.fields(self):
            if field.name in ("name", "networks", *reads):
                continue
            value = getattr(self, field.name)
            if value != field.default:
                raise InputError(
                    f"prior {field.name} is {quoted(value)}, which the prior "
                    f"{self.name} does not read; leave it out"
                )

    @property
    def position_offset(self) -> float:
        """See :func:`~nerve_fast.backbones.positions.resampled_positions`."""
        return 0.1 if self.protocol == "mmseg" else 0.0

    @property
    def prompts(self) -> tuple[str, ...]:
        """The templates of the prompts."""
        from nerve_fast.priors import ENTRIES

        return TEMPLATES[self.templates or ENTRIES[self.name].templates]

    def network(self, name: str) -> str:
        """Where a further network comes from: a hub id, a folder or a file.

        Raises:
            InputError: it must be named, and is not.
        """
        from nerve_fast.priors import ENTRIES

        needed = ENTRIES[self.name].networks[name]
        source = dict(self.networks).get(name, needed.default)
        if source is None:
            raise InputError(
                f"the prior {self.name} needs {needed.what}; name it as the prior network {name}: "
                f"--prior-network {name}=FILE, or networks={{{name!r}: …}} of a PriorConfig"
            )
        return source


def _is_pair_of_words(pair: object) -> bool:
    if not isinstance(pair, (list, tuple)):
        return False
    return len(pair) == 2 and all(isinstance(word, str) for word in pair)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1

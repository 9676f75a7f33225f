"""Which prior, and how CLIP sees images for it."""

import dataclasses
import numbers

from nerve_fast.errors import InputError, check_choice, quoted
from nerve_fast.numerics import is_finite

PROTOCOLS = ("fit", "mmseg")
"""How images are brought to CLIP, see :class:`PriorConfig`."""


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """How the prior is computed.

    Args:
        name: one of :data:`~nerve_fast.priors.METHODS`.
        resolution: short side of the image that CLIP sees, in pixels; ``None`` is 1.5 times the
            size the checkpoint was trained at, which is the field's 336 for 224.
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
            of a patch aside, as DINO's code does.
        proxy: hub id or folder of the DINO or DINOv2 that ``proxyclip`` looks with; ``None`` is the
            paper's, ``facebook/dino-vitb8``.

    Raises:
        InputError: a value is out of its range; a ``ValueError``.
    """

    name: str = "naclip"
    resolution: int | None = None
    window: int | None = None
    stride: int | None = None
    logit_scale: float = 40.0
    protocol: str = "fit"
    proxy: str | None = None

    def __post_init__(self):
        # The registry is filled by the files of the methods, which take their settings from here.
        from nerve_fast.priors import METHODS

        check_choice("prior", self.name, METHODS)
        for field in ("resolution", "window", "stride"):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or value < 1):
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
        if self.proxy is not None and not METHODS[self.name].proxied:
            proxied = " and ".join(name for name, method in METHODS.items() if method.proxied)
            raise InputError(
                f"prior proxy is {quoted(self.proxy)} and prior is {self.name}; only {proxied} has "
                "one"
            )

    @property
    def position_offset(self) -> float:
        """See :func:`~nerve_fast.backbones.positions.resampled_positions`."""
        return 0.1 if self.protocol == "mmseg" else 0.0

"""How CLIP sees an image: at what size, and in which windows."""

import dataclasses

from PIL import Image

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.errors import InputError
from nerve_fast.imaging.images import model_size
from nerve_fast.priors.config import PriorConfig
from nerve_fast.priors.resizing import mmseg_size, opencv_bilinear


@dataclasses.dataclass(frozen=True)
class View:
    """How CLIP sees an image.

    Attributes:
        size: ``(width, height)`` in pixels that the image is resized to.
        tops, lefts: where windows start, in pixels.
        window: ``(height, width)`` of a window.
        unit: pixels, along a side, of a cell on which windows are averaged.
    """

    size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    window: tuple[int, int]
    unit: int

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)


def view_of(
    clip: CLIPBackbone,
    size: tuple[int, int],
    config: PriorConfig,
    magnified: tuple[int, int] | None = None,
) -> View:
    """How CLIP sees an image of ``size = (width, height)``.

    Args:
        magnified: at what size it should see it where ``config`` says neither resolution nor
            window, before rounding; in windows as large as the images that it usually sees whole.
            The protocol ``mmseg`` knows nothing of it.

    Raises:
        InputError: ``config.window`` is no multiple of the patch and the protocol is ``fit``, or
            an image or its windows are smaller than a patch.
    """
    resolution = config.resolution or clip.image_size * 3 // 2
    if config.protocol == "mmseg":
        size = mmseg_size(size, resolution)
        window = config.window or max(size)
        if min(*size, window) < clip.patch:
            raise InputError(
                f"CLIP would see {size[0]} × {size[1]} pixels in windows of {window}, less than "
                f"its patch of {clip.patch}; set a larger prior resolution or window"
            )
        return windows(size, window, config.stride or max(window // 2, 1), 1)
    if config.protocol == "squash":
        size = model_size((resolution, resolution), resolution, clip.patch)
        return View(size, (0,), (0,), size[::-1], clip.patch)
    usual = clip.image_size * 3 // 2 // clip.patch * clip.patch
    if magnified is not None and config.resolution is None and config.window is None:
        size = model_size(magnified, None, clip.patch)
        stride = max(usual // 2 // clip.patch, 1) * clip.patch
        return windows(size, usual, stride, clip.patch)
    size = model_size(size, resolution, clip.patch)
    if config.window is None:
        return View(size, (0,), (0,), size[::-1], clip.patch)
    if config.window % clip.patch:
        raise InputError(
            f"prior window is {config.window}; expected a multiple of CLIP's patch, {clip.patch}"
        )
    # The field's protocol: similarities are brought to pixels, and averaged there.
    return windows(size, config.window, config.stride or config.window // 2, 1)


def windows(size: tuple[int, int], window: int, stride: int, unit: int) -> View:
    """A view in windows of a side and a stride; ``unit`` as of :class:`View`."""
    width, height = size
    return View(
        size,
        tuple(window_starts(height, window, stride)),
        tuple(window_starts(width, window, stride)),
        (min(window, height), min(window, width)),
        unit,
    )


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along a side: every ``stride``, the last one shifted inward to fit.

    A side shorter than the window is one smaller window.
    """
    windows = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride, length - window), 0) for i in range(windows)]


def resized(
    clip: CLIPBackbone, image: Image.Image, size: tuple[int, int], config: PriorConfig
) -> Image.Image:
    """The image at ``size = (width, height)``, by the checkpoint's own filter or OpenCV's."""
    if config.protocol == "mmseg":
        return opencv_bilinear(image, size)
    return clip.resized(image, size)

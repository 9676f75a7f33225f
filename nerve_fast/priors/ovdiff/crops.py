"""How large OVDiff sees an image, and in which crops."""

from nerve_fast.errors import InputError
from nerve_fast.imaging.images import MOST_SEEN
from nerve_fast.priors.views import window_starts


def scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """``(width, height)`` of an image whose short side is brought to ``side``, as torchvision does.

    Raises:
        InputError: that would be too many pixels.
    """
    short = min(size)
    width, height = (side if edge == short else side * edge // short for edge in size)
    if width * height > MOST_SEEN:
        raise InputError(
            f"at this resolution OVDiff would see {width} × {height} pixels; expected at most "
            f"{MOST_SEEN} in all: take a smaller prior resolution"
        )
    return width, height


def crops(size: tuple[int, int], side: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the crops of an image of ``size = (h, w)``, and of all of it."""
    found = []
    for window in (side, 3 * side // 4):
        tops, lefts = (window_starts(length, window, side // 2) for length in size)
        found += [
            (slice(top, min(top + window, size[0])), slice(left, min(left + window, size[1])))
            for top in tops
            for left in lefts
        ]
    return [*found, (slice(0, size[0]), slice(0, size[1]))]

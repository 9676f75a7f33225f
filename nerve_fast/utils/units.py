"""Bytes, pixels and seconds as people write and read them."""

import math
import re
from collections.abc import Mapping

from nerve_fast.errors import InputError, quoted

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

PIXELS = {"": 1, "PX": 1, "KP": 10**3, "MP": 10**6, "GP": 10**9}


LARGEST = 2**63 - 1
"""The largest size, in bytes or pixels."""


def parse_bytes(size: int | str, name: str = "max_memory") -> int:
    """Parse a size such as ``"6GB"``, ``"512 MiB"`` or a number of bytes; returns bytes.

    Args:
        size: what was asked for.
        name: of the setting, for the message.

    Raises:
        InputError: it is not a size, or not from 1 to 2^63 − 1 bytes.
    """
    count = _parsed(size, UNITS)
    if count is None:
        raise InputError(
            f'{name} is {quoted(size)}; expected a size above 0 such as "6GB" or "512MiB"'
        )
    return count


def parse_pixels(count: int | str) -> int:
    """Parse a number of pixels such as ``"400MP"``, ``"1.5GP"`` or ``400000000``; returns pixels.

    Raises:
        InputError: it is not a number from 1 to 2^63 − 1.
    """
    pixels = _parsed(count, PIXELS)
    if pixels is None:
        raise InputError(
            f'max_pixels is {quoted(count)}; expected a number above 0 such as 400000000 or "400MP"'
        )
    return pixels


def _parsed(size: int | str, units: Mapping[str, int]) -> int | None:
    """A number with one of the units; ``None`` where it is none, or out of range."""
    text = size if isinstance(size, str) else quoted(size)
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    count = 0.0
    if match is not None and match[2].upper() in units:
        count = float(match[1]) * units[match[2].upper()]
    # The nearest floating-point number to the largest size is larger by one.
    return min(int(count), LARGEST) if 1 <= count <= float(LARGEST) else None


def format_bytes(size: float) -> str:
    """Format a size in bytes with a unit, in powers of ten."""
    power = min(int(math.log10(max(size, 1)) // 3), 4)
    return f"{size / 1000**power:.3g} {('B', 'KB', 'MB', 'GB', 'TB')[power]}"


def format_seconds(seconds: float) -> str:
    """Format a duration in seconds with a unit."""
    if math.isinf(seconds):
        return "-"
    if seconds < 1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

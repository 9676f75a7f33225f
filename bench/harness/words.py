"""Settings, seconds and bytes as the reports write them."""

import math


def in_words(setting: dict, without: tuple[str, ...] = ()) -> str:
    """A setting as a reader wants it: what is as always is left out."""
    words = {
        "tokens": f"N = {setting['tokens']:,}",
        "normalization": setting["normalization"],
        "dtype": setting["dtype"],
        "labels": f"K = {setting['labels']}" * (setting["labels"] != 21),
        "steps": f"L = {setting['steps']}" * (setting["steps"] != 10),
        "heads": f"H = {setting['heads']}" * (setting["heads"] != 5),
    }
    return ", ".join(word for name, word in words.items() if word and name not in without)


def seconds_in_words(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, scale in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{_three(seconds / scale)} {unit}"
    return f"{_three(seconds / 1e-6)} µs"


def bytes_in_words(size: float | None) -> str:
    if size is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{_three(size / scale)} {unit}"
    return f"{_three(size / 1e3)} kB"


def _three(value: float) -> str:
    """Three digits, no exponent."""
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(digits, 0)}f}"

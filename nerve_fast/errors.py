"""The errors for what a person can put right."""

import string
from collections.abc import Callable, Iterable


class InputError(ValueError):
    """An image, a label, a setting, a model or a place to write to is not usable.

    The message is one line that names the thing, says what is wrong and what would be right; the
    command line prints it without a traceback and ends with exit code 2.
    """


class SettingError(InputError):
    """A setting is not usable, or does not go with another one.

    In Python the message names settings by their names, on the command line by their flags.

    Args:
        text: the message as a format string: ``"{limit} is {0!r}; expected 1 or more"``.
        values: what the numbers in it stand for; names stand for settings.
    """

    def __init__(self, text: str, *values: object):
        self._format = (text, values)
        super().__init__(self._with_names(str))

    def with_flags(self) -> str:
        """The message with the flags of the command line in place of the names of settings."""
        return self._with_names(lambda name: "--" + name.replace("_", "-"))

    def _with_names(self, named: Callable[[str], str]) -> str:
        class Names(dict):
            def __missing__(self, name):
                return named(name)

        text, values = self._format
        return string.Formatter().vformat(text, values, Names())


LONGEST_VALUE = 120
"""Characters of a value that a message shows."""


def quoted(value: object) -> str:
    """A value as messages show it: its ``repr`` on one line, and not all of a long one."""
    try:
        text = repr(value)
    except Exception:  # Such as a number of more digits than Python prints.
        text = f"a {type(value).__name__} that cannot be shown"
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise an :class:`InputError` where a setting is none of the names that it may be."""
    names = list(choices)
    # Names alone: what is no string may not be comparable.
    if not isinstance(value, str) or value not in names:
        raise InputError(f"{name} is {quoted(value)}; expected one of {', '.join(names)}")

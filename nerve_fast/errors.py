"""The error for what a person can put right."""


class InputError(ValueError):
    """An image, a label, a setting, a model or a place to write to is not usable.

    The message is one line that names the thing, says what is wrong and what would be right; the
    command line prints it without a traceback and ends with exit code 2.
    """

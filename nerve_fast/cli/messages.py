"""What a command says while it works: warnings of the package, on stderr."""

import contextlib
import logging
import sys
from collections.abc import Iterator

from tqdm import tqdm

from nerve_fast.utils.text import plain


@contextlib.contextmanager
def notes(leave_out: str | None = None) -> Iterator[None]:
    """Print each warning and error of the package once, without breaking progress bars.

    Args:
        leave_out: the start of those that the command sums up itself.
    """
    said = set()

    class Notes(logging.Handler):
        def emit(self, record):
            text = record.getMessage()
            summed_up = leave_out is not None and text.startswith(leave_out)
            if text not in said and not summed_up:
                said.add(text)
                kind = "note" if record.levelno < logging.ERROR else "nerve-fast"
                tqdm.write(f"{kind}: {plain(text)}", file=sys.stderr)

    handler = Notes(logging.WARNING)
    logger = logging.getLogger("nerve_fast")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)

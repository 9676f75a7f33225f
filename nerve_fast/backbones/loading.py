"""What can go wrong when a model is loaded, said in one line."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError

from nerve_fast.errors import InputError


@contextlib.contextmanager
def loading(
    what: str, source: str, files: Sequence[str | tuple[str, ...]], option: str
) -> Iterator[None]:
    """Around ``from_pretrained`` calls: a model that cannot be had becomes an :class:`InputError`.

    Args:
        what: the kind of model, for the message.
        source: hub id or local folder.
        files: what a local folder must hold; of a tuple any one.
        option: the argument that takes a hub id or folder, for the message.
    """
    folder = Path(source)
    local = folder.is_dir()
    if local:
        for names in files:
            names = (names,) if isinstance(names, str) else names
            if not any((folder / name).is_file() for name in names):
                raise InputError(
                    f"{folder}: not a complete {what} folder: {' or '.join(names)} is missing"
                )
    elif folder.is_absolute() or source.startswith(".") or source.count("/") != 1:
        raise InputError(
            f"{option} is {source!r}: no such folder, and not a hub id of the form owner/name"
        )
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        if local:
            raise InputError(f"{folder}: the {what} model cannot be loaded: {reason}") from error
        raise InputError(
            f"{source}: the {what} model is not in the local cache and cannot be fetched from the "
            f"hub ({reason}). Fetch it once where there is a network (hf download {source}), pass "
            f"a local folder as {option}, or try the shipped models ('tiny')"
        ) from error

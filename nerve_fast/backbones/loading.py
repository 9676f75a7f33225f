"""Loading models, and saying in one line what is wrong with one that cannot be loaded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError

from nerve_fast.errors import InputError

Loaded = TypeVar("Loaded")

DAMAGED = (
    OSError,
    SafetensorError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    NotImplementedError,
)
"""What transformers and diffusers raise over files that lack something or do not fit together."""


def load(
    what: str,
    source: str,
    files: Sequence[str | tuple[str, ...]],
    option: str,
    loader: Callable[[bool], Loaded],
) -> Loaded:
    """Load a model from a local folder, the local cache or the hub, in this order.

    Args:
        what: the kind of model, for messages.
        source: hub id or local folder.
        files: what a local folder must hold; of a tuple any one.
        option: the argument that takes the hub id or folder, for messages.
        loader: calls ``from_pretrained`` with ``local_files_only`` as given.

    Raises:
        InputError: the model is not available, lacks a file, or is damaged.
    """
    folder = Path(source)
    if _is_folder(folder):
        for names in files:
            names = (names,) if isinstance(names, str) else names
            if not any((folder / name).is_file() for name in names):
                raise InputError(
                    f"{folder}: not a complete {what} folder: {' or '.join(names)} is missing"
                )
        return _guarded(what, source, loader, True)
    if folder.is_absolute() or source.startswith(".") or source.count("/") != 1:
        raise InputError(
            f"{option} is {source!r}: no such folder, and not a hub id of the form owner/name"
        )
    try:
        return loader(True)
    except OSError:
        # Not in the cache, or not all of it. One quick question first: offline, every one of the
        # files would be asked for six times.
        _check_hub(what, source, option)
    return _guarded(what, source, loader, False)


def _is_folder(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError:
        # A name too long for the file system, say.
        return False


def _guarded(what: str, source: str, loader: Callable[[bool], Loaded], local: bool) -> Loaded:
    try:
        return loader(local)
    except InputError:
        raise
    except DAMAGED as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{source}: the {what} model cannot be loaded: {reason}") from error


def _check_hub(what: str, source: str, option: str) -> None:
    try:
        HfApi().model_info(source, timeout=10)
    except HFValidationError as error:
        raise InputError(f"{option} is {source!r}: not a hub id: {error}") from error
    # The client's network errors share no base class, and their library changes with its version.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"{source}: the {what} model is not in the local cache and cannot be fetched from the "
            f"hub ({reason}). Fetch it where there is a network (hf download {source}), pass a "
            f"local folder as {option}, or try the shipped models ('tiny')"
        ) from error


def complete(model_and_report: tuple[Loaded, dict[str, Any]]) -> Loaded:
    """The model of ``from_pretrained(…, output_loading_info=True)``, if every weight was there.

    Raises:
        ValueError: weights are missing or of another shape; the library drew them at random.
    """
    model, report = model_and_report
    for kind in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report[kind])
        if names:
            raise ValueError(
                f"{len(names)} {kind.replace('_keys', '')} weights, such as {names[0]}"
            )
    return model


def hide_loading_bars() -> None:
    """Reading weights from the disk is quick; downloads keep their bars."""
    import diffusers.utils.logging
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()

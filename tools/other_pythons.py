"""``python -m tools.other_pythons VERSION…``: ``make test`` with other versions of Python.

Each has a virtual environment of its own in ``build/``. Interpreters are those on the path, or
pyenv's; none is fetched, and a version without one is named and passed over.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Test with each version; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.other_pythons", description=__doc__.splitlines()[0]
    )
    parser.add_argument("versions", nargs="+", metavar="VERSION", help="such as 3.10")
    failed = []
    for version in parser.parse_args().versions:
        python = found(version)
        if python is None:
            print(f"There is no Python {version} on this machine: not tested with it.", flush=True)
            continue
        print(f"== Python {version}: {python}", flush=True)
        command = ["make", "test", f"PYTHON={python}", f"VENV=build/venv-{version}"]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(version)
    if failed:
        print(f"Tests failed with Python {', '.join(failed)}.")
    return int(bool(failed))


def found(version: str) -> str | None:
    """The path of an interpreter of a version such as ``3.10``, where there is one."""
    command = shutil.which(f"python{version}")
    if command is None:
        return None
    # Where pyenv puts a command of each version on the path, only the version named here runs.
    done = subprocess.run(
        [command, "-c", "import sys; print(sys.executable)"],
        env={**os.environ, "PYENV_VERSION": version},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())

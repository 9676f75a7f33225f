"""``python -m tools.check_wheel``: whether the wheel and the sdist install and run on their own.

Builds the sdist, and the wheel from it; installs each into a virtual environment of its own,
without the checkout on the path, and runs what a newcomer runs first: the version, ``doctor``, a
demo of two scenes, and the graph stage. Dependencies are fetched as pip is configured to; with
``--share-packages`` they are those of the environment that runs the check.
"""

import argparse
import os
import site
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
GRAPH_STAGE = """
import importlib.util, pathlib, sys
import torch
import nerve_fast as nf

assert pathlib.Path(sys.prefix) in pathlib.Path(nf.__file__).parents, nf.__file__
for inner in ("kernels", "bench"):
    assert importlib.util.find_spec(f"nerve_fast.{inner}"), inner
q, k = torch.randn(2, 4, 24, 8)
prior = torch.rand(24, 3).softmax(-1)
walked = nf.random_walk(q, k, prior, (4, 6))
assert torch.allclose(walked.sum(-1), prior.sum(-1), atol=1e-5)
print("graph stage: ok")
"""


def main() -> int:
    """Build, install and try both; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--share-packages",
        action="store_true",
        help="take the dependencies of this environment instead of installing them",
    )
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter to try them with (default: this one)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nerve-fast-") as name:
        folder = Path(name)
        _run(
            [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), *_isolation(options)],
            cwd=_exported(folder / "source"),
        )
        for archive in sorted((folder / "dist").iterdir()):
            print(f"== {archive.name}", flush=True)
            try_out(archive, folder / f"venv-{archive.suffix[1:]}", options)
    return 0


def try_out(archive: Path, environment: Path, options: argparse.Namespace) -> None:
    """Install ``archive`` into a new virtual environment and run the first commands there."""
    install = ["-m", "pip", "install", "--quiet"]
    if options.share_packages:
        venv.create(environment, with_pip=False)
        python = _python(environment)
        packages = next((environment / "lib").glob("python*/site-packages"))
        (packages / "shared.pth").write_text("\n".join(_packages_here()), encoding="utf-8")
        install += ["--no-deps", "--no-build-isolation"]
    else:
        _run([options.python, "-m", "venv", str(environment)])
        python = _python(environment)
    empty = environment / "elsewhere"
    empty.mkdir()
    _run([str(python), *install, str(archive)], cwd=empty)
    command = str(python.parent / "nerve-fast")
    _run([command, "--version"], cwd=empty)
    _run([command, "doctor"], cwd=empty)
    _run([command, "demo", "--scenes", "2", "--output", "pictures"], cwd=empty)
    pictures = sorted(path.name for path in (empty / "pictures").iterdir())
    if len(pictures) != 2:
        raise SystemExit(f"the demo was to draw 2 scenes and drew {pictures}")
    _run([str(python), "-c", GRAPH_STAGE], cwd=empty)


def _packages_here() -> list[str]:
    """Folders of installed packages on the path, without what installs the checkout itself."""
    folders = [path for path in sys.path if Path(path).name == "site-packages"]
    return folders or site.getsitepackages()


def _exported(folder: Path) -> Path:
    """The files that git tracks or would, as they are now: no leftovers of earlier builds."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def _isolation(options: argparse.Namespace) -> list[str]:
    return ["--no-isolation"] if options.share_packages else []


def _python(environment: Path) -> Path:
    folder = "Scripts" if os.name == "nt" else "bin"
    return environment / folder / "python"


def _run(command: list[str], cwd: Path | None = None) -> None:
    # Neither the checkout nor the caller's packages may help.
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=clean, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())

"""The tree of files that the kernel hub's builder takes."""

import shutil
from pathlib import Path

from tools.hub_kernels.sources import PACKAGE, collect, rewritten

ROOT = Path(__file__).parents[2]
TEMPLATE = Path(__file__).parent / "template"
NAME = "nerve-walk"
MODULE = NAME.replace("-", "_")
VERSION = 1
REPOSITORY = f"nerve-fast/{NAME}"

STARTS = (
    "nerve_fast.kernels.backend",
    "nerve_fast.reference",
    "nerve_fast.config",
    "nerve_fast.normalization",
    "nerve_fast.ops.checks",
)
"""The tree holds these and all that they import: the kernels, their definition, and checks."""

BUILD = f"""\
[general]
name = "{NAME}"
version = {VERSION}
edition = 5
license = "Apache-2.0"
backends = [
    "cuda",
    "rocm",
]

[general.hub]
repo-id = "{REPOSITORY}"

[torch-noarch]
"""

FLAKE = """\
{
  description = "Flake for the NERVE random walk";

  inputs = {
    kernel-builder.url = "github:huggingface/kernels";
  };

  outputs =
    {
      self,
      kernel-builder,
    }:
    kernel-builder.lib.genKernelFlakeOutputs {
      inherit self;
      path = ./.;
    };
}
"""


def write(folder: Path) -> list[Path]:
    """Write the tree to ``folder``, in place of what was there; returns its files.

    Raises:
        ValueError: ``folder`` holds something that is no such tree.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "build.toml").is_file():
        raise ValueError(f"{folder} is not empty and holds no build.toml; name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    files = {
        folder / "build.toml": BUILD,
        folder / "flake.nix": FLAKE,
        folder / "LICENSE": (ROOT / "LICENSE").read_text(encoding="utf-8"),
    }
    module = folder / "torch-ext" / MODULE
    for name, path in collect(ROOT, STARTS).items():
        inner = Path(*name.removeprefix(f"{PACKAGE}.").split("."))
        target = inner / "__init__.py" if path.name == "__init__.py" else inner.with_suffix(".py")
        files[module / target] = rewritten(name, path)
    for path in sorted(TEMPLATE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            inner = path.relative_to(TEMPLATE)
            # Sources beside the tests and the card are the module's own.
            home = module if path.suffix == ".py" and path.parent == TEMPLATE else folder
            text = path.read_text(encoding="utf-8")
            for word, value in (("NAME", NAME), ("REPOSITORY", REPOSITORY), ("VERSION", VERSION)):
                text = text.replace(f"__{word}__", str(value))
            files[home / inner] = text
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return sorted(files)

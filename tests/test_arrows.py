"""Imports point one way and in no circle; argparse and the networks stay in their rooms."""

import ast
from pathlib import Path

import pytest

import nerve_fast

PACKAGE = Path(nerve_fast.__file__).parent
ROOT = PACKAGE.parent

LEVELS = (
    ("cli",),
    ("app",),
    ("evaluation",),
    ("pipeline",),
    ("datasets",),
    ("refiners",),
    ("priors",),
    ("backbones",),
    ("ops",),
    ("dispatch",),
    ("blocked", "kernels"),
    ("reference",),
    ("certainty", "clusters", "config", "walked", "weights"),
    ("shares",),
    ("normalization", "numerics"),
    ("imaging", "tiny"),
    ("utils",),
    ("errors",),
)
"""From the top: a room imports from its own level and from those below it."""


BELOW_KERNELS = {
    "InputError",
    "clusters",
    "config",
    "kernels",
    "normalization",
    "numerics",
    "walked",
    "weights",
}


def level(room):
    return next(number for number, rooms in enumerate(LEVELS) if room in rooms)


def files():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if len(parts) > 1 or parts[0] not in ("__init__", "__main__"):
            yield parts, path
    for path in sorted((ROOT / "kernels").glob("*.py")):
        yield ("kernels", path.stem), path


def imported(path, *, typing=True):
    """Modules of this package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_of(path):
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "nerve_fast" and len(parts) > 1 and parts[1] != "bench":
            known = any(parts[1] in rooms for rooms in LEVELS)
            # A public name of the package, such as NerveConfig, is not a room.
            if known:
                yield parts[1]


@pytest.mark.parametrize(
    ("parts", "path"), list(files()), ids=lambda x: "-".join(x) if type(x) is tuple else ""
)
def test_arrows_point_one_way(parts, path):
    own = level(parts[0])
    against = sorted({room for room in rooms_of(path) if level(room) < own})
    assert not against, f"{path.relative_to(ROOT)} imports {', '.join(against)} from above"


def test_modules_import_one_another_in_no_circle():
    graph = {}
    names = {
        ".".join(("nerve_fast", *parts)).removesuffix(".__init__"): path for parts, path in files()
    }
    for name, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[name] = set()
        # What is imported inside of functions is imported when all modules are there.
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                found = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                graph[name] |= {one for one in found if one in names and one != name}
    # A package's __init__ runs before its modules: it is no part of a circle by itself.
    packages = {name for name, path in names.items() if path.stem == "__init__"}
    done, open_ = set(), []

    def visit(name):
        if name in done:
            return
        assert name not in open_, " → ".join([*open_[open_.index(name) :], name])
        open_.append(name)
        for other in graph[name] - ({name.rpartition(".")[0]} & packages):
            visit(other)
        open_.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_argparse_is_known_to_the_command_line_alone():
    # How kernels are compiled ahead of time is a program of its own.
    users = [
        path
        for parts, path in files()
        if parts[0] != "kernels" and "argparse" in set(imported(path))
    ]
    assert users
    assert all(path.parent.name == "cli" for path in users)


def test_gradio_is_known_to_the_page_alone():
    """What the page does is tested without it."""
    users = {
        parts
        for parts, path in files()
        if any(name.split(".")[0] == "gradio" for name in imported(path))
    }
    assert users == {("app", "layout"), ("app", "page"), ("app", "server")}


def test_the_networks_of_diffusion_are_known_to_the_backbones_alone():
    for parts, path in files():
        if parts[0] != "backbones":
            text = path.read_text(encoding="utf-8")
            for word in ("DiffusionBackbone", "UNet2DConditionModel", "AutoencoderKL", "unet"):
                assert word not in text, f"{path.relative_to(ROOT)} names {word}"


def test_kernels_import_torch_and_triton_only():
    for parts, path in files():
        if parts[0] == "kernels":
            for name in imported(path):
                if name.startswith("nerve_fast"):
                    assert name.split(".")[1] in BELOW_KERNELS, (path, name)

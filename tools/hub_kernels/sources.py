"""The package's sources that the kernels need, as the kernel hub wants Python to be written."""

import ast
import re
from pathlib import Path

PACKAGE = "nerve_fast"
MAPPED = {"nerve_fast.kernels": "kernels"}
"""Packages that lie in another folder of the repository than their name says."""

REEXPORTS = {"nerve_fast", "nerve_fast.ops"}
"""Packages that import all that they publish: only the modules asked for of them are taken."""


def collect(root: Path, starts: tuple[str, ...]) -> dict[str, Path]:
    """The modules of the package that ``starts`` import, directly or not, themselves included.

    Args:
        root: of the repository.
        starts: names of modules or packages.

    Returns:
        Paths of source files by the name of the module.

    Raises:
        ValueError: a module imports ``nerve_fast`` by ``import``, which cannot be made relative.
    """
    found: dict[str, Path] = {}
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        path = _file_of(root, name)
        if name in found or path is None:
            continue
        found[name] = path
        # The packages it lies in are imported with it.
        waiting += [".".join(name.split(".")[:depth]) for depth in range(2, name.count(".") + 1)]
        if name not in REEXPORTS:
            for node in _imports(path):
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    found.pop(PACKAGE, None)
    return found


def rewritten(name: str, path: Path) -> str:
    """The source of a module, for the hub.

    Imports of the package become relative, annotations are not evaluated, and ``zip`` is called
    without ``strict``, which Python 3.9 does not have.

    Raises:
        SyntaxError: what is left is not Python 3.9.
    """
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    if name in REEXPORTS:
        return f'"""{ast.get_docstring(tree)}"""\n'
    lines = text.splitlines(keepends=True)
    depth = name.count(".") + (path.name == "__init__.py")
    for node in _imports(path):
        target = node.module.removeprefix(PACKAGE).removeprefix(".")
        line = lines[node.lineno - 1]
        relative = f"from {'.' * depth}{target} import"
        lines[node.lineno - 1] = line.replace(f"from {node.module} import", relative, 1)
    for node in sorted(_strict_keywords(tree), key=lambda node: -node.lineno):
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = re.sub(r", strict=(True|False)", "", line, count=1)
    at = tree.body[0].end_lineno if ast.get_docstring(tree) is not None else 0
    lines.insert(at, "\nfrom __future__ import annotations\n")
    text = "".join(lines)
    left = ast.parse(text, feature_version=(3, 9))
    if _strict_keywords(left):
        raise SyntaxError(f"{path}: zip(…, strict=…) must stand in one line")
    return text


def _file_of(root: Path, name: str) -> Path | None:
    """The source file of a module or package; ``None`` for any other name."""
    for package, folder in MAPPED.items():
        if name == package or name.startswith(f"{package}."):
            base = root / folder / Path(*name.removeprefix(package).split("."))
            break
    else:
        base = root / Path(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(path: Path) -> list[ast.ImportFrom]:
    """The imports of the package in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import) and any(
            alias.name.split(".")[0] == PACKAGE for alias in node.names
        ):
            raise ValueError(f"{path}:{node.lineno}: write 'from {PACKAGE} import …'")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            found.append(node)
    return found


def _strict_keywords(tree: ast.AST) -> list[ast.keyword]:
    return [
        keyword
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip"
        for keyword in node.keywords
        if keyword.arg == "strict"
    ]

"""What is declared of the package, beside what it does."""

import ast
import importlib.util
import itertools
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import nerve_fast

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Not installed as a package of its own everywhere: torch for a GPU brings it.
BROUGHT_BY_TORCH = {"triton"}
# An opponent in the benchmarks that has wheels for a GPU alone; what is absent is named there.
ASKED_FOR = {"natten"}


def distributions(requirements):
    """The names of distributions, normalised, by which requirements are compared."""
    names = (re.match(r"[A-Za-z0-9_.-]+", requirement)[0] for requirement in requirements)
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def imported_by(*folders):
    """Distributions that the source files below ``folders`` import."""
    found = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {name.name.split(".")[0] for name in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add(node.module.split(".")[0])
    found -= {*sys.stdlib_module_names, "nerve_fast", "tools"}
    known = metadata.packages_distributions()
    return {
        re.sub(r"[-_.]+", "-", known.get(name, [name])[0]).lower() for name in found
    } - BROUGHT_BY_TORCH


def test_every_import_is_declared_and_every_dependency_imported():
    base = distributions(PROJECT["dependencies"])
    optional = distributions(itertools.chain(*EXTRAS.values())) - base
    used = imported_by("nerve_fast", "kernels")
    assert base <= used, "declared and not imported"
    assert used - base <= optional, "imported and not declared"
    assert imported_by("bench") - base <= distributions(EXTRAS["bench"]) | ASKED_FOR | {"pytest"}


def test_every_dependency_has_a_lower_bound():
    requirements = [*PROJECT["dependencies"], *itertools.chain(*EXTRAS.values())]
    unbound = [r for r in requirements if ">=" not in r and not r.startswith("nerve-fast[")]
    assert unbound == []


def test_the_version_stands_in_one_place():
    assert "version" not in PROJECT
    assert metadata.version("nerve-fast") == nerve_fast.__version__


GRAPH_STAGE = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
import torch
import nerve_fast as nf

q, k = torch.randn(2, 2, 5, 30, 8)
prior = torch.randn(2, 30, 4).softmax(-1)
weights = nf.entropy_weights(nf.head_entropy(q, k), 1.0)
nf.cosine_affinity(q, k, weights)
nf.local_affinity(q, k, (5, 6), head_weights=weights)
str(nf.plan(q.shape, 4))
for backend in ("reference", "blocked"):
    walked = nf.random_walk(q, k, prior, (5, 6), backend=backend)
    assert torch.allclose(walked.sum(-1), torch.ones(2, 30), atol=1e-5)
print(sorted(set(sys.modules) & BLOCKED))
"""


def test_the_graph_stage_works_with_torch_alone():
    # numpy is torch's own affair, and psutil says how much memory is free.
    base = distributions(PROJECT["dependencies"]) - {"torch", "psutil", "numpy"}
    blocked = {name.replace("-", "_") for name in base} - {"pillow"} | {"PIL"}
    code = f"BLOCKED = {blocked!r}{GRAPH_STAGE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def resolve(tmp_path, *arguments):
    """What uv resolves the project to, with arguments; where it can be asked."""
    if importlib.util.find_spec("uv") is None:
        pytest.skip("uv is not installed; the extra 'release' brings it")
    resolved = tmp_path / "resolved.txt"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-python-downloads"),
            *("--only-binary", ":all:", "--output-file", str(resolved), *arguments),
            str(ROOT / "pyproject.toml"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if re.search("dns error|error sending request|connection refused", done.stderr, re.IGNORECASE):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return resolved.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_constraints_hold_with_the_torch_of_the_index(python, tmp_path):
    """Which is built for GPUs, and with a Triton of its own."""
    chosen = ("--extra", "test", "--python-version", python)
    resolved = resolve(tmp_path, *chosen, "--constraint", str(ROOT / "constraints.txt"))
    (torch,) = re.findall(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert f"\ntorch=={torch}\n" in resolved


@pytest.mark.slow
@pytest.mark.parametrize("extras", [(), ("test",), ("docs",)], ids=lambda extras: "".join(extras))
@pytest.mark.parametrize("python", ["3.10", "3.13"])
def test_lower_bounds_can_be_resolved(python, extras, tmp_path):
    chosen = itertools.chain(*(["--extra", extra] for extra in extras))
    lowest = ("--resolution", "lowest-direct", "--python-version", python)
    resolved = resolve(tmp_path, *lowest, *chosen)
    bounds = re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(PROJECT["dependencies"]), re.MULTILINE)
    # A newer Python has no wheels of the oldest versions.
    if not extras and python == "3.10":
        for name, bound in bounds:
            pattern = rf"^{name.replace('_', '-')}=={re.escape(bound)}(\.0)*$"
            assert re.search(pattern, resolved, re.MULTILINE), (name, bound)

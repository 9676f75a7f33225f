"""The tree for the kernel hub is loaded as its users load it, in Triton's interpreter."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tools.hub_kernels.sources import rewritten
from tools.hub_kernels.tree import MODULE, NAME, REPOSITORY, VERSION, write

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

# What the hub's builder adds to a tree without compiled parts, for the backend of this torch.
OPS = f"""
import torch

ops = getattr(torch.ops, "_{MODULE}_cpu_test")


def add_op_namespace_prefix(name):
    return "_{MODULE}_cpu_test::" + name
"""
METADATA = {
    "id": f"_{MODULE}_cpu_test",
    "name": NAME,
    "version": VERSION,
    "license": "Apache-2.0",
    "python-depends": [],
    "backend": {"type": "cpu"},
    "digest": {"algorithm": "sha256", "files": {}},
}
TRY_OUT = """
import sys, torch
from pathlib import Path
from kernels import get_local_kernel

kernel = get_local_kernel(Path(sys.argv[1]))
q, k = torch.randn(2, 2, 12, 8)
prior = torch.randn(12, 3).softmax(-1)
walked = kernel.random_walk(q, k, prior, (3, 4))
expected = kernel.reference.random_walk(q.double(), k.double(), prior.double(), (3, 4),
                                        kernel.NerveConfig(), None).probabilities
assert (walked - expected).norm() <= 1e-5 * expected.norm()
for wrong in ({"route": "factorized"}, {"route": "shortest"}):
    try:
        kernel.random_walk(q, k, prior, (3, 4), **wrong)
    except ValueError:
        continue
    raise AssertionError(wrong)
compiled = torch.compile(kernel.random_walk, fullgraph=True, backend="eager")
assert torch.equal(compiled(q, k, prior, (3, 4)), walked)
assert "nerve_fast" not in sys.modules
print(sorted(kernel.__all__))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / NAME
    write(folder)
    return folder


@pytest.fixture(scope="module")
def built(tree):
    """The tree with a variant that the loader takes; Python sources are copied as they are."""
    variant = tree / "build" / "torch-cpu"
    for path in (tree / "torch-ext" / MODULE).rglob("*.py"):
        target = variant / path.relative_to(tree / "torch-ext" / MODULE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (variant / "_ops.py").write_text(OPS, encoding="utf-8")
    (variant / "metadata.json").write_text(json.dumps(METADATA), encoding="utf-8")
    return tree


def run(arguments, cwd, **environment):
    # Not from the repository's root, whose folder `kernels` would hide the package of that name.
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1", **environment},
    )


def needs_the_loader():
    try:
        metadata.version("kernels")
    except metadata.PackageNotFoundError:
        pytest.skip("the package kernels is not installed; the extra 'hub' brings it")


def test_sources_import_only_what_the_hub_allows(tree):
    allowed = {*sys.stdlib_module_names, "torch", "triton"}
    for path in (tree / "torch-ext").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text, feature_version=(3, 9))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert {name.split(".")[0] for name in names} <= allowed, path
        assert not re.search(r"zip\(.*strict=", text), path


def test_relative_imports_lead_somewhere(tree):
    base = tree / "torch-ext" / MODULE
    for path in base.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level and node.module != "_ops":
                target = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                assert target.with_suffix(".py").is_file() or target.is_dir(), (path, node.module)


def test_a_source_is_rewritten(tmp_path):
    path = tmp_path / "walk.py"
    path.write_text(
        '"""A walk."""\n\nfrom nerve_fast.kernels import steps\n'
        "from nerve_fast.numerics import (\n    EMPTY_ROW,\n)\n\n\n"
        "def f(x: int | None):\n    return zip(x, x, strict=True), zip(x, x, strict=False)\n"
    )
    assert rewritten("nerve_fast.kernels.walk", path) == (
        '"""A walk."""\n\nfrom __future__ import annotations\n\nfrom ..kernels import steps\n'
        "from ..numerics import (\n    EMPTY_ROW,\n)\n\n\n"
        "def f(x: int | None):\n    return zip(x, x), zip(x, x)\n"
    )
    path.write_text("import nerve_fast.numerics\n")
    with pytest.raises(ValueError, match=r"walk.py:1: write 'from nerve_fast import"):
        rewritten("nerve_fast.kernels.walk", path)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no build.toml"):
        write(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_layers_have_no_state(tree):
    text = (tree / "torch-ext" / MODULE / "layers.py").read_text(encoding="utf-8")
    for layer in (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)):
        names = [node.name for node in layer.body if isinstance(node, ast.FunctionDef)]
        assert names == ["forward"]
        assigned = {
            target.id
            for node in layer.body
            if isinstance(node, ast.Assign)
            for target in node.targets
        }
        assert assigned <= {"has_backward", "can_torch_compile"}


def test_get_local_kernel(built, tmp_path):
    needs_the_loader()
    done = run(["-c", TRY_OUT, str(built)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "random_walk" in done.stdout


def test_its_own_tests_pass(built, tmp_path):
    needs_the_loader()
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(built / "tests")]
    done = run(arguments, tmp_path, LOCAL_KERNELS=f"{REPOSITORY}={Path(built)}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout

"""``python -m tools.golden``: what each kernel is compiled to, as a table in a file.

Each kernel of Stable Diffusion 2's finest layer is compiled for each target and dtype, by the
Triton that is installed; no GPU is needed. The tables in ``tests/kernels/golden/`` hold, a line a
kernel, registers, shared memory, spills, matrix instructions, waits, atomics and the width of
loads, so that whatever changes them shows as a diff. ``--check`` compares instead of writing, and
``--triton VERSION`` does it with another Triton, which it puts into ``build/``.
"""

import argparse
import difflib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from nerve_fast.utils.files import written_whole

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tests" / "kernels" / "golden"

NO_TABLE = 3
"""Exit code where the installed Triton has none."""

QUICK = {
    "sm_90 bfloat16": ("streaming_step", "row_statistic"),
    "gfx942 bfloat16": ("row_statistic",),
}
"""Targets, dtypes and kernels that ``--quick`` compiles."""

NORMALIZATIONS = ("softmax", "l1")
"""One with exponentials, on all routes but one, and one that has that route too."""

NAMED = ("RADIUS", "WEIGHTED", "SPLIT", "EXPONENTIAL", "LAST", "RESIDENT", "BK")
"""Constants that tell variants of a kernel from one another."""


def main() -> int:
    """Write or check the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.golden", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--check", action="store_true", help="compare; write nothing")
    parser.add_argument("--quick", action="store_true", help="a few kernels only")
    parser.add_argument("--kernel", nargs="+", help="these only, such as streaming_step")
    parser.add_argument("--dtype", nargs="+", help="these only, such as bfloat16")
    parser.add_argument("--triton", metavar="VERSION", help="another one, such as 3.6.0")
    options = parser.parse_args()
    if options.triton:
        return _with_triton(options.triton)
    import triton

    from nerve_fast.kernels.launch import interpreted

    if interpreted():
        print("TRITON_INTERPRET is set: there is nothing to compile. Unset it.", file=sys.stderr)
        return 2
    path = FOLDER / f"triton-{triton.__version__}.json"

    def chosen(key: str) -> bool:
        target, dtype, kernel = key.split()[:3]
        if kernel not in (options.kernel or [kernel]) or dtype not in (options.dtype or [dtype]):
            return False
        return not options.quick or kernel in QUICK.get(f"{target} {dtype}", ())

    known = read(path) if path.is_file() else {}
    if options.check and not known:
        there = ", ".join(sorted(x.stem.removeprefix("triton-") for x in FOLDER.glob("*.json")))
        print(f"There is no table for triton {triton.__version__}, only for {there}.")
        return NO_TABLE
    rows = dict(_rows(chosen))
    if options.check:
        found = differences(lines({x: y for x, y in known.items() if chosen(x)}), lines(rows))
        print(*found, f"{len(rows)} kernels compiled by triton {triton.__version__}", sep="\n")
        if found:
            print("The table differs. If that is wanted, write it again: python -m tools.golden")
        return int(bool(found))
    rows |= {x: y for x, y in known.items() if not chosen(x)}
    FOLDER.mkdir(exist_ok=True)
    with written_whole(path) as file:
        file.write_text("{\n" + ",\n".join(lines(rows)) + "\n}\n")
    print(f"{len(rows)} kernels in {path.relative_to(ROOT)}")
    return 0


def differences(expected: list[str], found: list[str]) -> list[str]:
    """Lines that are not the same, ``-`` before and ``+`` after."""
    compared = difflib.unified_diff(expected, found, lineterm="", n=0)
    return [line for line in compared if not line.startswith(("---", "+++", "@@"))]


def read(path: Path) -> dict[str, dict]:
    """A table: a row for each kernel by target, dtype, name and variant."""
    return json.loads(path.read_text())


def lines(rows: dict[str, dict]) -> list[str]:
    """A table as it stands in its file, a line a kernel."""
    return [f" {json.dumps(key)}: {json.dumps(rows[key])}" for key in sorted(rows)]


def _with_triton(version: str) -> int:
    """Run the same command with another Triton, which lies in a folder of its own."""
    folder = ROOT / "build" / f"triton-{version}"
    if not (folder / "triton").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--target", str(folder), f"triton=={version}"]
        subprocess.run(command, check=True)
    place = sys.argv.index("--triton")
    arguments = sys.argv[1:place] + sys.argv[place + 2 :]
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "tools.golden", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, check=False
    ).returncode


def _rows(chosen: Callable[[str], bool]) -> Iterator[tuple[str, dict]]:
    """Rows of the table by ``target dtype kernel variant``."""
    from nerve_fast.kernels.compiled import TARGETS, compile_for
    from nerve_fast.kernels.launches import DTYPES, SHAPES, launches_of

    seen = set()
    for target in TARGETS:
        for name, dtype in DTYPES.items():
            for one in launches_of(target, dtype, SHAPES[0], NORMALIZATIONS):
                kernel = one.kernel.__name__.removesuffix("_kernel")
                key = f"{target} {name} {kernel} {_variant(one, dtype)}".strip()
                if key not in seen and chosen(key):
                    seen.add(key)
                    yield key, _row(one, compile_for(target, name, one))


def _variant(one, dtype) -> str:
    named = [f"{x}={one.arguments[x]}" for x in NAMED if x in one.arguments]
    named += [f"without {x}" for x, value in one.arguments.items() if value is None]
    stored = one.arguments.get("S")
    if stored is not None and stored.dtype != dtype:
        named.append(f"S in {stored.dtype}".replace("torch.", ""))
    return " ".join(named)


def _row(one, compiled) -> dict:
    found = compiled.instructions
    row = {
        "blocks": " ".join(f"{x}={size}" for x, size in one.config.blocks),
        "warps": compiled.warps,
        "stages": compiled.stages,
        "registers": compiled.registers,
        "shared": compiled.shared,
        "spilled": compiled.spilled,
        "matrix": found.matrix,
        "waits": list(found.waits),
        "loop": found.loop,
        "drains": found.drains,
        "atomics": found.atomics,
        "barriers": found.barriers,
        "loads": found.loads,
    }
    return {name: value for name, value in row.items() if value not in ({}, [])}


if __name__ == "__main__":
    sys.exit(main())

"""What a compiled kernel's instructions say: matrix units, waits, atomics and loads.

NVIDIA's are read from the disassembled binary (SASS) and, for atomics, from PTX, which names their
order; AMD's from the assembly text. What is said of *the loop* is of the loop that holds the most
matrix instructions, or of the whole kernel where no loop holds any.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable

JUMP = re.compile(r"\b(?:BRA|s_c?branch\w*)\b.*?(\.L\w+)")


@dataclasses.dataclass(frozen=True)
class Instructions:
    """Counts of instructions, by their names in full.

    Attributes:
        matrix: matrix instructions, with their shape.
        waits: how many groups of copies (AMD: loads) may still be in flight after each wait in the
            loop, each number once. 0 alone: every copy is waited for.
        loop: instructions in the loop.
        drains: waits in the loop for all matrix instructions (AMD: for all loads).
        atomics: with their order and scope.
        barriers: AMD only: barriers by the wait that comes right before.
        loads: from global memory, ``16`` bytes wide and ``narrower``.
    """

    matrix: dict[str, int]
    waits: tuple[int, ...]
    loop: int
    drains: int
    atomics: dict[str, int]
    barriers: dict[str, int]
    loads: dict[str, int]


def of_nvidia(sass: str, ptx: str) -> Instructions:
    """Of ``nvdisasm -c``'s text and the PTX that it came from."""
    listing = _listing(sass, r"\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(.*?)\s*(?:&.*)?;")
    is_matrix = re.compile(r"(HGMMA|HMMA|IMMA|QGMMA|UTC\w*MMA)\b")
    loop = _busiest_loop(listing, is_matrix)
    drained = r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0|SYNCS\.PHASECHK\S*\.TRYWAIT"
    matrix = _tensor_memory_products(ptx)
    matrix = matrix or [_name(x) for x in listing if is_matrix.match(_name(x))]
    return Instructions(
        matrix=_counted(matrix),
        waits=_depths(loop, r"\bDEPBAR\.LE SB\d+, (0x[0-9a-f]+)"),
        loop=sum(not x.endswith(":") for x in loop),
        drains=sum(re.search(drained, x) is not None for x in loop),
        atomics=_counted(re.findall(r"\b(?:atom|red)\.[\w.:]*global[\w.:]*", ptx)),
        barriers={},
        loads=_widths((_name(x) for x in listing), r"LDG(STS)?\b", r"\.128\b"),
    )


def of_amd(isa: str) -> Instructions:
    """Of the assembly text."""
    listing = _listing(isa, r"\t([a-z]\w+(?: .*)?)$")
    is_matrix = re.compile(r"v_mfma_")
    loop = _busiest_loop(listing, is_matrix)
    atomic = re.compile(r"((?:global|flat|buffer)_atomic_\w+).*?((?: (?:sc[01]|nt))*)$")
    return Instructions(
        matrix=_counted(_name(x) for x in listing if is_matrix.match(x)),
        waits=_depths(loop, r"s_waitcnt .*?vmcnt\((\d+)\)"),
        loop=sum(not x.endswith(":") for x in loop),
        drains=sum("vmcnt(0)" in x for x in loop),
        atomics=_counted(found[1] + found[2] for x in listing if (found := atomic.match(x))),
        barriers=_counted(
            before if before.startswith("s_waitcnt") else "none"
            for before, x in zip(["", *listing], listing, strict=False)
            if x == "s_barrier"
        ),
        loads=_widths((_name(x) for x in listing), r"(global|buffer)_load_", r"dwordx4"),
    )


def _tensor_memory_products(ptx: str) -> list[str]:
    """``tcgen05.mma`` instructions with rows and columns of their product.

    These are in the descriptor, the fourth operand: columns over 8 from bit 17 on, rows over 16
    from bit 24 on ("Instruction descriptor" in the PTX manual).
    """
    constants = dict(re.findall(r"mov\.b32\s+(%r\d+), (\d+);", ptx))
    found = []
    form = r"tcgen05\.mma\.\S*(kind::\w+)[^;]*?, *(%r\d+|\d+), *%p\d+;"
    for kind, descriptor in re.findall(form, ptx):
        bits = constants.get(descriptor, descriptor)
        shape = ""
        if bits.isdigit():
            shape = f" {(int(bits) >> 24 & 31) << 4}x{(int(bits) >> 17 & 63) << 3}"
        found.append(f"tcgen05.mma {kind}{shape}")
    return found


def _listing(text: str, instruction: str) -> list[str]:
    """Instructions, and labels as lines that end in a colon, in their order."""
    found = []
    for line in text.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            found.append(f"{label[1]}:")
        elif match := re.match(instruction, line):
            found.append(match[1].split("//")[0].split(";")[0].strip())
    return found


def _busiest_loop(listing: list[str], is_matrix: re.Pattern) -> list[str]:
    """The smallest of the loops with the most matrix instructions."""
    labels: dict[str, int] = {}
    best, most = listing, 0
    for i, line in enumerate(listing):
        if line.endswith(":"):
            labels[line[:-1]] = i
        elif (jump := JUMP.search(line)) and jump[1] in labels:
            body = listing[labels[jump[1]] : i + 1]
            count = sum(is_matrix.match(_name(x)) is not None for x in body)
            if count > most or (count == most > 0 and len(body) < len(best)):
                best, most = body, count
    return best


def _name(instruction: str) -> str:
    """The operation, without its predicate and operands."""
    words = instruction.split()
    return next((word for word in words if not word.startswith("@")), "")


def _depths(lines: list[str], form: str) -> tuple[int, ...]:
    found = (re.search(form, line) for line in lines)
    return tuple(sorted({int(match[1], 0) for match in found if match}))


def _widths(names: Iterable[str], load: str, wide: str) -> dict[str, int]:
    loads = [name for name in names if re.match(load, name)]
    of_16 = sum(re.search(wide, name) is not None for name in loads)
    return {"16": of_16, "narrower": len(loads) - of_16}


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(collections.Counter(names).items()))

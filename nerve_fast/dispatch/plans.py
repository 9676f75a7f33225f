"""What a plan says: one way to carry out a walk, the others, and why it was taken."""

import dataclasses

from nerve_fast.dispatch.problem import Problem
from nerve_fast.utils.units import format_bytes, format_seconds


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to carry out a walk, and what it costs.

    Attributes:
        backend, route: the names of the backend and of its route.
        stored_rows: rows of ``S_global`` that the dense route keeps.
        flops: floating-point operations of the products and the stencil.
        bytes: bytes of ``S`` that are read.
        peak_memory: bytes needed beyond the inputs, an upper bound.
        seconds: expected time; :attr:`Plan.rates` says on which machine.
    """

    backend: str
    route: str
    stored_rows: int
    flops: int
    bytes: int
    peak_memory: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Option(Way):
    """A way that was considered.

    Attributes:
        refused: why it cannot be taken, or ``None`` where it can.
        exceeds_memory: whether memory is what refuses it.
    """

    refused: str | None
    exceeds_memory: bool = False


@dataclasses.dataclass(frozen=True)
class Plan(Way):
    """The way a walk will take, and why; ``str(plan)`` is a sentence, :meth:`table` the rest.

    Attributes:
        problem: the walk that it was made for, and the only kind that it fits.
        reason: why it is taken.
        rates: the source of the expected times.
        options: all ways that were considered, the one taken among them.
    """

    problem: Problem
    reason: str
    rates: str
    options: tuple[Option, ...]

    def __str__(self) -> str:
        return (
            f"{self.backend} / {self.route}: {self.reason}; about {format_seconds(self.seconds)} "
            f"and {format_bytes(self.peak_memory)} beyond the inputs."
        )

    def table(self) -> str:
        """One line for each way, with the reason why it was not taken."""
        rows = [("backend", "route", "operations", "memory", "time", "")]
        for option in self.options:
            taken = (option.backend, option.route) == (self.backend, self.route)
            note = "taken" if taken else option.refused or "slower"
            rows.append(
                (
                    option.backend,
                    option.route,
                    f"{option.flops:.2g}",
                    format_bytes(option.peak_memory),
                    format_seconds(option.seconds),
                    note,
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            + ("  " + row[5] if row[5] else "")
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)

"""What was found of one case: a row of the results."""

import dataclasses


@dataclasses.dataclass
class Row:
    """What was found.

    Attributes:
        operation, contender: what, and by whom.
        setting: the fields of :class:`~nerve_fast.bench.harness.case.Setting`.
        ours, route, taken: it is a part of this package; one of its ways through the walk; the way
            that ``auto`` takes.
        replayed: on a GPU, as a graph.
        seconds: median of the rounds; ``low`` and ``high`` are the 20th and 80th percentile.
        first_seconds: of the first call, compilation and tuning included.
        floor: the larger of operations over the rate of products and bytes over the bandwidth, for
            the best way known to do it, of which are ``operations`` and ``moved``.
        allocated: peak of bytes that torch allocated beyond the inputs; not measured of what takes
            very long.
        resident: peak of bytes the process had beyond the inputs (on a GPU: torch reserved).
        process: peak of bytes the process had in all.
        error: relative to float64, on ``error_tokens`` tokens.
        python: on a GPU, seconds of Python in a call that only queues work.
        attention: which of torch's implementations ``scaled_dot_product_attention`` took.
        parts: seconds of the steps that it names to ``torch.profiler``, from a run of their own.
        note: why there is no time, or what a reader should know.
    """

    operation: str
    contender: str
    setting: dict
    ours: bool = False
    route: bool = False
    taken: bool = False
    compiled: bool = False
    replayed: bool = False
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    first_seconds: float | None = None
    floor: float | None = None
    operations: float | None = None
    moved: float | None = None
    allocated: int | None = None
    resident: int | None = None
    process: int | None = None
    error: float | None = None
    error_tokens: int | None = None
    bound: float | None = None
    parts: dict[str, float] | None = None
    python: float | None = None
    attention: str = ""
    note: str = ""

    @property
    def failed(self) -> bool:
        """It was wrong, or something kept it from being measured that should not."""
        return self.seconds is None and not self.note.startswith("absent")

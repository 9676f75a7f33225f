"""One row of the results: what was measured of one case."""

import dataclasses


@dataclasses.dataclass
class Row:
    """What was measured of one case.

    Attributes:
        operation, contender: names of the operation and of the implementation.
        setting: the fields of :class:`~nerve_fast.bench.harness.case.Setting`.
        ours, route, taken: whether it is a part of this package, whether it is one of the walk's
            routes, and whether ``auto`` takes that route.
        replayed: whether a CUDA graph was replayed.
        seconds: median of the rounds; ``low`` and ``high`` are the 20th and 80th percentile.
        first_seconds: duration of the first call, compilation and tuning included.
        floor: seconds, the larger of operations over the rate of products and bytes over the
            bandwidth, for the best known way to compute it, which needs ``operations`` products
            and sums and moves ``moved`` bytes.
        allocated: peak of bytes that torch allocated beyond the inputs; ``None`` for runs of many
            seconds.
        resident: peak of the process's resident bytes beyond the inputs; on a GPU, of the bytes
            that torch reserved.
        process: peak of the process's resident bytes in all.
        error: relative to float64, on ``error_tokens`` tokens.
        python: on a GPU, seconds of Python in a call that only queues work.
        attention: which of torch's implementations ``scaled_dot_product_attention`` took.
        parts: seconds of the steps that it names to ``torch.profiler``, from a separate run.
        note: why it was not timed, or what a reader should know.
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
        """Whether its result was wrong or an error kept it from being measured."""
        return self.seconds is None and not self.note.startswith("absent")

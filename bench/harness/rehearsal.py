"""``python -m bench.gpu --rehearse``: a run without a GPU, on a clock that is told the time.

It shows the order and the total; how long a part takes is assumed, by the constants below.
"""

import dataclasses
from collections.abc import Sequence

from nerve_fast.bench.harness.case import Case, Setting
from nerve_fast.bench.harness.driver import CANDIDATES_SECONDS, Driver
from nerve_fast.bench.harness.floors import BANDWIDTH, MATRIX_RATE
from nerve_fast.bench.harness.machine import rounds_for
from nerve_fast.bench.harness.row import Row

CORES = 16
START, CEILINGS, CHECKS = 15.0, 4.0, 60.0
"""Seconds until a process has imported everything, of the ceilings, of the checks."""

COMPILE = {True: 6.0, False: 30.0}
"""Seconds that a core compiles for one of our cases, and for one of others."""

OVERHEAD, ROUND = 0.4, 2e-3
"""Seconds of a case beside its rounds, and of a round beside what is timed."""

OVER_FLOOR = {True: 2.0, False: 20.0}
"""Times the floor that our own runs take, and those of others."""

WITHOUT_FLOOR = 10.0
"""Seconds of a case whose floor is not known."""

CANDIDATES = 60.0


class Rehearsal(Driver):
    """Counts the time of each part on a clock of its own, which starts at 0."""

    def __init__(self):
        super().__init__()
        self.kind = "cuda"
        self.clock = 0.0
        self.measured: list[tuple[float, Case]] = []
        self.machine.bandwidth = self.machine.cache_bandwidth = BANDWIDTH
        self.machine.matrix_rates = dict.fromkeys(("float32", "float16", "bfloat16"), MATRIX_RATE)

    def now(self) -> float:
        return self.clock

    def compile_cases(self, cases: Sequence[Case], seconds: float) -> list[str]:
        compiled = [case for case in cases if case.contender.compiled]
        work = sum(COMPILE[case.contender.ours] for case in compiled)
        self.clock += min(START + work / CORES, seconds)
        return []

    def measure_ceilings(self) -> None:
        self.clock += CEILINGS

    def measure(self, case: Case) -> Row:
        least = self.machine.least(case.operation.floors(case.setting), case.setting.dtype)
        before = self.clock
        self.measured.append((before, case))
        if least is None:
            self.clock += WITHOUT_FLOOR
        else:
            seconds = OVER_FLOOR[case.contender.ours] * least[0]
            # Two first runs, one for the truth, and the rounds.
            self.clock += OVERHEAD + 3 * seconds + rounds_for(seconds) * (seconds + ROUND)
        return Row(
            case.operation.name,
            case.contender.name,
            dataclasses.asdict(case.setting),
            ours=case.contender.ours,
            note=f"at {before:.0f} s, expected to take {self.clock - before:.1f} s",
        )

    def check_kernels(self, alone: bool = False) -> list[dict]:
        self.clock += CHECKS
        return []

    def time_candidates(self, setting: Setting, deadline: float) -> list[dict]:
        self.clock = min(self.clock + CANDIDATES_SECONDS + CANDIDATES, max(deadline, self.clock))
        return []

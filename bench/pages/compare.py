"""What changed between two runs beyond noise."""

from nerve_fast.bench.harness.results import problem_of, rows_of
from nerve_fast.bench.harness.row import Row
from nerve_fast.bench.harness.words import in_words

LEAST_CHANGE, LEAST_CHANGE_OF_ONE_ROUND = 0.05, 0.25
"""Smaller ones are not told apart from noise, whatever the rounds within a run say."""


def compare(before: dict, after: dict) -> list[str]:
    """Lines of text: which rows are slower, faster or missing, and how many did not change."""
    old, new = (
        {(problem_of(row), row.contender): row for row in rows_of(run)} for run in (before, after)
    )
    headers = (_header(name, before, after) for name in ("device", "torch", "triton", "commit"))
    lines = [line for line in headers if line]
    changes, same = [], 0
    for key in old.keys() & new.keys():
        a, b = old[key], new[key]
        if not a.seconds and not b.seconds:
            continue
        if not a.seconds or not b.seconds:
            changes.append((0.0, f"{_name(b)}: {_state(a)}, then {_state(b)}"))
            continue
        ratio = b.seconds / a.seconds
        if differs(a, b):
            word = "slower" if ratio > 1 else "faster"
            times = max(ratio, 1 / ratio)
            changes.append((ratio, f"{times:5.2f} times {word}: {_name(b)}"))
        else:
            same += 1
    lines += [line for _, line in sorted(changes, reverse=True)]
    lines.append(f"{same} rows within noise, {len(changes)} changed")
    for word, only in (("first", old.keys() - new.keys()), ("second", new.keys() - old.keys())):
        if only:
            lines.append(f"{len(only)} rows only in the {word}")
    return lines


def differs(before: Row, after: Row) -> bool:
    """Whether a change is more than noise: the spans of the middle rounds do not touch."""
    single = 1 in (before.rounds, after.rounds)
    least = LEAST_CHANGE_OF_ONE_ROUND if single else LEAST_CHANGE
    ratio = after.seconds / before.seconds
    apart = after.low > before.high or after.high < before.low
    return apart and max(ratio, 1 / ratio) > 1 + least


def _header(name: str, before: dict, after: dict) -> str:
    a, b = before["machine"][name], after["machine"][name]
    return f"{name}: {a}, then {b}" if a != b else ""


def _name(row: Row) -> str:
    return f"{row.operation}, {row.contender}, {in_words(row.setting)}"


def _state(row: Row) -> str:
    return f"{row.seconds:.3g} s" if row.seconds else row.note or "not timed"

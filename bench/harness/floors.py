"""``python -m bench.harness.floors``: how fast each kernel could be at best, before it is measured.

Operations over the matrix rate, and bytes (each input read once, each output written once) over the
bandwidth: the larger of the two times is the floor. Prints them for an H200 by its datasheet, 989
TFLOP/s in bfloat16 and 4.8 TB/s. Measurements divide by rates that are measured beside them.
"""

import argparse
import dataclasses

MATRIX_RATE, BANDWIDTH = 989e12, 4.8e12
CHANNELS, LABELS = 320, 21


@dataclasses.dataclass(frozen=True)
class Floor:
    """The operations and bytes that one call cannot do without.

    Attributes:
        operations: of products.
        moved: bytes read and written.
    """

    operations: float
    moved: float

    def seconds(self, rate: float = MATRIX_RATE, bandwidth: float = BANDWIDTH) -> float:
        return max(self.operations / rate, self.moved / bandwidth)

    def __add__(self, other: "Floor") -> "Floor":
        return Floor(self.operations + other.operations, self.moved + other.moved)

    def __mul__(self, times: float) -> "Floor":
        return Floor(times * self.operations, times * self.moved)


def columns(labels: int) -> int:
    """The labels and the column of ones, up to what the matrix units take."""
    return -(-(labels + 1) // 16) * 16


def cosine_affinity(tokens: int, channels: int = CHANNELS, itemsize: int = 2) -> Floor:
    moved = (2 * tokens * channels + tokens**2) * itemsize
    return Floor(2 * tokens**2 * channels, moved)


def local_affinity(tokens: int, channels: int = CHANNELS, itemsize: int = 2) -> Floor:
    return Floor(18 * tokens * channels, 2 * tokens * channels * itemsize + 9 * 4 * tokens)


def local_step(tokens: int, labels: int = LABELS) -> Floor:
    """The 3 × 3 weights and ``Y`` read, ``Y`` written, in 32 bits."""
    return Floor(18 * tokens * labels, 4 * tokens * (9 + 2 * labels))


def head_entropy(tokens: int, channels: int = CHANNELS, itemsize: int = 2) -> Floor:
    return Floor(2 * tokens**2 * channels, 2 * tokens * channels * itemsize)


def streaming_step(
    tokens: int, channels: int = CHANNELS, labels: int = LABELS, itemsize: int = 2
) -> Floor:
    moved = 2 * tokens * channels * itemsize + _values(tokens, labels, itemsize)
    return Floor(2 * tokens**2 * (channels + columns(labels)), moved)


def dense_step(tokens: int, labels: int = LABELS, itemsize: int = 2, stored: int = 2) -> Floor:
    moved = tokens**2 * stored + _values(tokens, labels, itemsize)
    return Floor(2 * tokens**2 * columns(labels), moved)


def factorized_step(
    tokens: int, channels: int = CHANNELS, labels: int = LABELS, itemsize: int = 2
) -> Floor:
    moved = 2 * tokens * channels * itemsize + _values(tokens, labels, itemsize)
    return Floor(4 * tokens * channels * columns(labels), moved)


def walk(
    normalization: str, steps: int, tokens: int, channels: int, labels: int, itemsize: int
) -> list[Floor]:
    """Return the floors of each exact route, head weights given."""
    dense = cosine_affinity(tokens, channels, itemsize)
    dense += dense_step(tokens, labels, itemsize, itemsize) * steps
    found = [dense, streaming_step(tokens, channels, labels, itemsize) * steps]
    step = factorized_step(tokens, channels, labels, itemsize) * steps
    if normalization == "shift":
        found.append(step)
    if normalization == "l1":
        # Absolute row sums take one pass over all pairs.
        found.append(step + head_entropy(tokens, channels, itemsize))
    return found


def _values(tokens: int, labels: int, itemsize: int) -> int:
    """``Y`` read and written in 32 bits and in ``itemsize``, and the prior."""
    return tokens * columns(labels) * (3 * 4 + 2 * itemsize)


def main() -> int:
    argparse.ArgumentParser(prog="python -m bench.harness.floors", description=__doc__).parse_args()
    kernels = (
        cosine_affinity,
        local_affinity,
        head_entropy,
        streaming_step,
        dense_step,
        factorized_step,
    )
    sizes = (4096, 16_384, 65_536)
    print(f"{'H200, by its datasheet':24}" + "".join(f"{f'N = {n}':>14}" for n in sizes))
    for kernel in kernels:
        times = [f"{1e6 * kernel(n).seconds():11.1f} µs" for n in sizes]
        print(f"{kernel.__name__.replace('_', ' '):24}" + "".join(times))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

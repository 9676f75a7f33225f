"""``python -m bench.floors``: how fast each kernel could be at best, before anyone has measured it.

Operations over the matrix rate, and bytes (each input read once, each output written once) over the
bandwidth: the larger of the two times is the floor. Prints them for an H200 by its datasheet, 989
TFLOP/s in bfloat16 and 4.8 TB/s. ``bench.gpu`` divides by rates that it measures itself.
"""

import argparse
import dataclasses

from bench.cases import HEAD_DIM, HEADS

MATRIX_RATE, BANDWIDTH = 989e12, 4.8e12
CHANNELS = HEADS * HEAD_DIM
COLUMNS = 32
"""21 labels and the column of ones, up to what the matrix units take."""


@dataclasses.dataclass(frozen=True)
class Floor:
    """What one call cannot do without.

    Attributes:
        operations: of products.
        moved: bytes read and written.
    """

    operations: float
    moved: float

    def seconds(self, rate: float = MATRIX_RATE, bandwidth: float = BANDWIDTH) -> float:
        return max(self.operations / rate, self.moved / bandwidth)


def cosine_affinity(tokens: int, itemsize: int = 2) -> Floor:
    moved = (2 * tokens * CHANNELS + tokens**2) * itemsize
    return Floor(2 * tokens**2 * CHANNELS, moved)


def local_affinity(tokens: int, itemsize: int = 2) -> Floor:
    return Floor(18 * tokens * CHANNELS, 2 * tokens * CHANNELS * itemsize + 9 * 4 * tokens)


def head_entropy(tokens: int, itemsize: int = 2) -> Floor:
    return Floor(2 * tokens**2 * CHANNELS, 2 * tokens * CHANNELS * itemsize)


def streaming_step(tokens: int, itemsize: int = 2) -> Floor:
    moved = 2 * tokens * CHANNELS * itemsize + _values(tokens, itemsize)
    return Floor(2 * tokens**2 * (CHANNELS + COLUMNS), moved)


def dense_step(tokens: int, itemsize: int = 2, stored: int = 2) -> Floor:
    return Floor(2 * tokens**2 * COLUMNS, tokens**2 * stored + _values(tokens, itemsize))


def factorized_step(tokens: int, itemsize: int = 2) -> Floor:
    moved = 2 * tokens * CHANNELS * itemsize + _values(tokens, itemsize)
    return Floor(4 * tokens * CHANNELS * COLUMNS, moved)


def _values(tokens: int, itemsize: int) -> int:
    """``Y`` read and written in 32 bits and in ``itemsize``, and the prior."""
    return tokens * COLUMNS * (3 * 4 + 2 * itemsize)


def main() -> int:
    argparse.ArgumentParser(prog="python -m bench.floors", description=__doc__).parse_args()
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

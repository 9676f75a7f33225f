"""GPUs as their data sheets and architecture papers have them, for predictions."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a prediction needs to know of a GPU.

    Attributes:
        name: of the model.
        multiprocessors: or compute units.
        clock: cycles a second under load.
        products: operations of 16-bit products a cycle and multiprocessor, by the kind of matrix
            instruction; two operations are one multiplication with its addition.
        cache_bandwidth: bytes a second of the last level of cache that all share.
        cache: bytes of it.
        bandwidth: bytes a second of the memory.
        registers: of 32 bits a multiprocessor; ``lanes``: threads of a warp.
        shared: bytes of shared memory a multiprocessor; ``warps``: that it holds.
        exponentials: a cycle and multiprocessor.
        launch: seconds between a kernel and the next that waits for it, in a graph.
    """

    name: str
    multiprocessors: int
    clock: float
    products: dict[str, int]
    cache_bandwidth: float
    cache: int
    bandwidth: float
    shared: int
    registers: int = 1 << 16
    lanes: int = 32
    warps: int = 64
    exponentials: int = 16
    launch: float = 2e-6


CHIPS = {
    "sm_80": Chip("A100", 108, 1.41e9, {"mma": 2048}, 4.0e12, 40 << 20, 1.94e12, 164 << 10),
    # mma.sync, the older instruction, reaches some five eighths of wgmma's rate there.
    "sm_90": Chip(
        "H100", 132, 1.755e9, {"wgmma": 4096, "mma": 2560}, 5.5e12, 50 << 20, 3.35e12, 228 << 10
    ),
    "sm_100": Chip(
        "B200", 148, 1.85e9, {"tcgen05": 8192, "mma": 2048}, 8.0e12, 126 << 20, 8.0e12, 228 << 10
    ),
    "gfx942": Chip(
        "MI300X",
        304,
        2.1e9,
        {"mfma": 2048},
        1.7e13,
        256 << 20,
        5.3e12,
        64 << 10,
        registers=1 << 17,
        lanes=64,
        warps=32,
    ),
}
"""By the target that kernels are compiled for. Data sheets and architecture papers; the bandwidth
of caches, the rate of ``mma`` on the newer two and the launch are assumptions until measured."""

import pytest
import torch

from nerve_fast.bench.harness.isolated import isolated
from nerve_fast.bench.harness.memory import Memory, allocated_on_cpu


def take(size, times):
    # Blocks that the heap keeps when they are gone.
    held = [torch.ones(size, dtype=torch.int8) for _ in range(times + 1)]
    del held[:times]
    memory = Memory("cpu")
    blocks = [torch.ones(size, dtype=torch.int8) for _ in range(times)]
    resident, process = memory.peak()
    allocated = allocated_on_cpu(
        lambda: [torch.ones(size, dtype=torch.int8) for _ in range(times)] and None
    )
    return len(blocks + held), resident, process, allocated


@pytest.mark.parametrize(("size", "times"), [(64 << 20, 1), (2 << 20, 16), (1 << 16, 512)])
def test_memory_is_that_of_the_run(size, times):
    _, resident, process, allocated = isolated(take, size, times)
    assert 0.95 * size * times <= resident <= 1.2 * size * times
    assert process > resident
    assert size * times <= allocated <= 1.01 * size * times

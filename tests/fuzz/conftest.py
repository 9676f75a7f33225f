import os
import random

import pytest


@pytest.fixture
def seed() -> int:
    """A seed that is printed with a failure and can be set again."""
    seed = int(os.environ.get("NERVE_FAST_TEST_SEED", random.randrange(2**31)))
    print(f"NERVE_FAST_TEST_SEED={seed}")
    return seed


@pytest.fixture
def chance(seed) -> random.Random:
    return random.Random(seed)

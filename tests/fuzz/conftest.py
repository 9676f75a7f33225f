import os
import random

import pytest


@pytest.fixture
def chance() -> random.Random:
    """A source of randomness whose seed is printed with a failure and can be set again."""
    seed = int(os.environ.get("NERVE_FAST_TEST_SEED", random.randrange(2**31)))
    print(f"NERVE_FAST_TEST_SEED={seed}")
    return random.Random(seed)

import sys
from pathlib import Path

REAL = Path(__file__).parents[2] / "examples" / "real"

# What is started as `python examples/real/page.py` finds its modules beside it.
sys.path.insert(0, str(REAL))

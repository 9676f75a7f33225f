"""The command line of :mod:`tools.hub_kernels`."""

import argparse
import sys
from pathlib import Path

from tools.hub_kernels.tree import write


def main() -> int:
    """Write the tree; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the tree of the kernel hub.")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    try:
        files = write(options.folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(files)} files written to {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

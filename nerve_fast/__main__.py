"""``python -m nerve_fast``: the command line."""

import sys

from nerve_fast.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

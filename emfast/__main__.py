"""`python -m emfast` is the command `emfast`."""

import sys

from emfast.cli import main

if __name__ == "__main__":
    sys.exit(main())

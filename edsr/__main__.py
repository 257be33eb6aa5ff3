"""`python -m edsr`: the command line."""

import sys

from edsr.cli import main

if __name__ == "__main__":
    sys.exit(main())

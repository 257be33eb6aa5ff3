"""The command line of a checkout: python cli.py upscale | compare | evaluate | train | info | convert."""

import sys

from edsr.cli import main

if __name__ == "__main__":
    sys.exit(main())

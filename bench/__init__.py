"""Speed and memory measurements; see README.md. Run as `python -m bench.compare` and so on."""

import time

STARTED = time.monotonic()  # before torch is imported, which takes seconds

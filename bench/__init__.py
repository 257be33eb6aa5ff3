"""Speed and memory measurements; see README.md. Run as `python -m bench.compare` and so on."""

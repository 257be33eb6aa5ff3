"""Large batches through the command line: is each input accounted for, and does memory stay where it was?

Runs `cli.py upscale` with a network of one block on a folder of many images, some of them damaged, and follows its
lines of JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from edsr.models import EDSR, EDSRConfig
from edsr.weights import save_model

from .machine import describe, machine_line

ROOT = Path(__file__).resolve().parent.parent
DAMAGED_EACH = 100
"""Of so many images one is damaged."""


def make_images(folder: Path, count: int, sizes: bool) -> None:
    """So many PNGs in one folder: 2 x 2 each, or if `sizes` of a size each, none twice, up to about 160 x 160."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    order = np.random.default_rng(1).permutation(count)  # large and small ones from the beginning on
    for i in range(count):
        height, width = (40 + order[i] % 55, 40 + order[i] // 55) if sizes else (2, 2)
        path = folder / f"{i:06}.png"
        Image.fromarray(pixels[:height, :width]).save(path, compress_level=1)
        if i % DAMAGED_EACH == DAMAGED_EACH - 1:
            path.write_bytes(path.read_bytes()[:40])


def run_batch(work: Path, early: int) -> dict:
    """Counts of results and failures, seconds, and MB of the process after `early` images and after all."""
    command = [sys.executable, str(ROOT / "cli.py"), "upscale", str(work / "in"), "-o", f"{work / 'out'}/", "--json"]
    command += ["--model", str(work / "network.safetensors"), "--device", "cpu", "--quiet"]
    start = time.perf_counter()
    done = failed = 0
    memory: dict[str, float] = {}
    with (
        open(work / "errors.txt", "wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        watched = psutil.Process(process.pid)
        assert process.stdout is not None
        for line in process.stdout:
            record = json.loads(line)
            failed, done = failed + bool(record["error"]), done + (not record["error"])
            if done + failed == early:
                memory["early"] = watched.memory_info().rss / 1e6
            if (done + failed) % 100 == 0:
                memory["late"] = watched.memory_info().rss / 1e6
    seconds = time.perf_counter() - start
    results = sum(1 for _ in (work / "out").iterdir())
    return {"done": done, "failed": failed, "files": results, "seconds": seconds, "code": process.returncode} | memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", type=int, default=30_000, metavar="N", help="images of 2 x 2; default: %(default)s")
    parser.add_argument("--sizes", type=int, default=3_000, metavar="N", help="images of N sizes; default: %(default)s")
    options = parser.parse_args()
    print(machine_line(describe("cpu")))
    good = True
    for name, count in ("2 x 2", options.tiny), ("different sizes", options.sizes):
        if not count:
            continue
        with tempfile.TemporaryDirectory(prefix="edsr-bench-") as folder:
            work = Path(folder)
            torch.manual_seed(0)
            save_model(EDSR(EDSRConfig(blocks=1, features=16)), work / "network.safetensors")
            make_images(work / "in", count, name != "2 x 2")
            found = run_batch(work, max(1, count // 10))
        whole = found["done"] + found["failed"] == count and found["files"] == found["done"]
        grown = found["late"] / found["early"] - 1
        good &= whole and grown < 0.05 and found["failed"] == count // DAMAGED_EACH
        print(
            f"{count:,} images, {name}: {found['done']:,} done, {found['failed']:,} failed, {found['files']:,} files, "
            f"exit code {found['code']}, {found['seconds']:.0f} s; memory after {count // 10:,} "
            f"{found['early']:.0f} MB, at the end {found['late']:.0f} MB ({grown:+.1%})",
            flush=True,
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

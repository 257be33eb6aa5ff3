"""Memory of the command line by the height of the image: `python -m bench.memory [--save]`.

Runs `cli.py upscale` in a process of its own on drawn images, and reports the most resident memory that
process ever held (what the kernel counts, interpreter and libraries included) and its seconds. Memory that
grows with the width and the tile only is the claim. Each result is checked first: the lower right corner,
which knows of every band before, must be what the network makes of that part of the image alone.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyvips

ROOT = Path(__file__).parents[1]
SIZES = ["4000x1000", "4000x2000", "4000x3000"]
ONE_BLOCK = "one-block"
CORNER = 64  # side of the part that is checked, in LR pixels

# This process imports no torch: a child's peak starts at what its parent holds.


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="WxH", help="default: %(default)s")
    parser.add_argument(
        "--model",
        default=ONE_BLOCK,
        help="one-block (64 features, random weights; default), or as for cli.py",
    )
    parser.add_argument("--tile", default="512", help="default: %(default)s")
    parser.add_argument("--format", choices=("png", "tiff"), default="png", help="of the results; default: %(default)s")
    parser.add_argument("--folder", help="where the images go, gigabytes of them; default: the system's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--save", action="store_true", help="write the document into bench/results, too")
    options = parser.parse_args()
    name = Path(options.model).stem
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        model = options.model
        if model == ONE_BLOCK:
            model = str(Path(folder, "one-block.safetensors"))
            apart(save_one_block, model)
        runs = [measure(Path(folder), size, model, options) for size in options.sizes]

    from bench.machine import describe
    from bench.records import save

    kind = f"memory-{name}" if options.format == "png" else f"memory-{name}-{options.format}"
    record = {"kind": kind, "machine": describe(options.device), "model": name}
    record |= {"tile": options.tile, "format": options.format, "runs": runs}
    print(json.dumps(record))
    if options.save:
        print(f"saved as {save(record)}", file=sys.stderr)
    return 0


def measure(folder: Path, size: str, model: str, options) -> dict:
    """One image; prints a line for a person to standard error."""
    width, height = map(int, size.split("x"))
    source, target = folder / f"{size}.png", folder / f"{size}_large.{options.format}"
    draw(width, height, source)
    command = [sys.executable, str(ROOT / "cli.py"), "upscale", str(source), "-o", str(target), "--quiet"]
    command += ["--model", model, "--tile", options.tile, "--device", options.device]
    start = time.perf_counter()
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{size}: cli.py upscale failed with exit code {child.returncode}")
    apart(check, model, source, target)
    source.unlink()
    target.unlink()
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere
    print(f"{width} x {height}: {peak:.0f} MiB, {seconds:.1f} s", file=sys.stderr, flush=True)
    return {"width": width, "height": height, "peak_mib": round(peak, 1), "seconds": round(seconds, 2)}


def draw(width: int, height: int, path: Path) -> None:
    """An image of rings and ramps, drawn and written row by row."""
    rings = pyvips.Image.zone(width, height, uchar=True)
    x, y = pyvips.Image.xyz(width, height).bandsplit()
    across, down = (x * (255 / width)).cast("uchar"), (y * (255 / height)).cast("uchar")
    image = rings.bandjoin(across).bandjoin(down)
    image.copy(interpretation="srgb").pngsave(str(path), compression=1)


def apart(function, *arguments) -> None:
    """Calls `function` in a process of its own. Raises SystemExit if it fails."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed")


def save_one_block(path: str) -> None:
    import torch

    from edsr.models.edsr import EDSR, EDSRConfig
    from edsr.weights import save_model

    torch.manual_seed(0)
    save_model(EDSR(EDSRConfig(blocks=1)), path)


def check(model: str, source: Path, target: Path) -> None:
    """Asserts that the lower right corner of `target` is what the network makes of that of `source`.

    One level of 255 may differ, where rounding to whole levels goes the other way.
    """
    import numpy as np

    from edsr.inference.upscaler import Upscaler
    from edsr.weights import load_model

    network = load_model(model)
    s, side = network.config.scale, CORNER + network.config.receptive_radius
    alone = Upscaler(network, "cpu")(corner(source, side))
    n = s * CORNER
    expected, found = alone[-n:, -n:].astype(int), corner(target, n).astype(int)
    assert expected.shape == found.shape
    assert np.abs(expected - found).max() <= 1


def corner(path: Path, side: int):
    """The lower right pixels of an image file, [side, side, 3], or less where the image is smaller."""
    image = pyvips.Image.new_from_file(str(path), access="sequential")
    left, top = max(0, image.width - side), max(0, image.height - side)
    return image.crop(left, top, image.width - left, image.height - top).numpy()


if __name__ == "__main__":
    sys.exit(main())

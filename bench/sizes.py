"""Photographs in several sizes, to train on: `python -m bench.sizes DIR... --out DIR` writes them as PNG.

What a file of many pixels shows is softer than it has pixels, and JPEG has damaged the finest of it: those above a
megapixel are reduced to 75, 50 and 36 % a side, others are taken as they are and at 75 %. So an image teaches several
times, and at sizes where it is sharp. Validate on other photographs (`train --val`): of those that `train` holds
out, it would see the other sizes.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from edsr.images import scan_images

LARGE = 1_000_000  # pixels
SIZES = {True: (75, 50, 36), False: (100, 75)}
"""Percent a side, of large images and of others."""


def write_sizes(path: Path, name: Path, out: Path) -> int:
    """Writes an image's sizes to `out`/PERCENT/`name`.png; returns how many pixels that are."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    pixels = 0
    for percent in SIZES[image.width * image.height > LARGE]:
        size = max(1, round(image.width * percent / 100)), max(1, round(image.height * percent / 100))
        reduced = image.resize(size, Image.Resampling.LANCZOS) if percent < 100 else image
        target = out / str(percent) / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        reduced.save(target, compress_level=1)
        pixels += size[0] * size[1]
    return pixels


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.sizes", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="photographs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    images = {
        path: Path(folder.name, path.relative_to(folder))
        for folder in args.folders
        for path in scan_images(folder, recursive=True).images
    }
    with ProcessPoolExecutor() as pool:
        pixels = sum(pool.map(partial(write_sizes, out=args.out), images, images.values()))
    print(f"{len(images)} images, in all sizes {pixels / 1e6:.0f} megapixels, are in {args.out}")


if __name__ == "__main__":
    main()

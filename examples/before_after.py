"""Makes the README's two images: `python -m examples.before_after [--scale 2] [--quality 50]`.

before_after.png: the example image by bicubic interpolation and by `edsr-baseline`. compressed.png: the same image
after it was saved as JPEG, by both and by what `--model auto` chooses. A detail of each, every pixel shown as 2 x 2.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edsr.images.compression import LossyCompression
from edsr.images.reader import read_image
from edsr.images.resize import matlab_bicubic
from edsr.inference.upscaler import Upscaler
from edsr.weights import load_model
from edsr.weights.selection import choose_by_quality
from examples.draw import FOLDER

DETAIL = (222, 196, 140, 90)  # left, top, width, height in the example
COMPRESSED_DETAIL = (250, 194, 98, 82)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=2, choices=(2, 3, 4))
    parser.add_argument("--quality", type=int, default=50)
    options = parser.parse_args()
    s, low = options.scale, read_image(FOLDER / "harbour.png")

    def by(model: str, image: np.ndarray) -> np.ndarray:
        return Upscaler(load_model(model, s))(image)

    after = by("edsr-baseline", low)
    before = matlab_bicubic(low, *after.shape[:2])
    save(FOLDER / "before_after.png", [("bicubic", before), (f"EDSR x{s}", after)], DETAIL, s)

    file = io.BytesIO()
    Image.fromarray(low).save(file, "JPEG", quality=options.quality)
    poor = np.asarray(Image.open(file))
    choice = choose_by_quality(LossyCompression("JPEG", options.quality, True), s)
    print(choice.description)
    shown = [
        ("bicubic", matlab_bicubic(poor, *after.shape[:2])),
        ("edsr-baseline", by("edsr-baseline", poor)),
        ("--model auto", by(choice.model, poor)),
    ]
    save(FOLDER / "compressed.png", shown, COMPRESSED_DETAIL, s)


def save(path: Path, shown: Sequence[tuple[str, np.ndarray]], detail: tuple[int, int, int, int], scale: int) -> None:
    """Writes a detail of each image, side by side, its title in a corner. detail: before enlarging."""
    x, y, w, h = (v * scale for v in detail)
    font, sides = ImageFont.load_default(size=17), []
    for title, image in shown:
        upscaled = image[y : y + h, x : x + w].repeat(2, 0).repeat(2, 1)
        side = Image.fromarray(np.ascontiguousarray(upscaled))
        draw = ImageDraw.Draw(side)
        draw.rectangle((0, 0, font.getlength(title) + 16, 26), (0, 0, 0))
        draw.text((8, 4), title, (255, 255, 255), font)
        sides += [np.full((side.height, 6, 3), 255, np.uint8), np.asarray(side)]
    Image.fromarray(np.concatenate(sides[1:], 1)).save(path, optimize=True)


if __name__ == "__main__":
    main()

"""Makes the picture at the head of the README: `python -m examples.before_after [--scale 2]`.

Left the example picture enlarged by bicubic interpolation, right by `edsr-baseline`; a detail of each,
every pixel shown as 2 x 2. Written to examples/before_after.png.
"""

import argparse

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edsr import Upscaler, load_model
from edsr.imageio import read
from edsr.resize import bicubic
from examples.draw import FOLDER

DETAIL = (222, 196, 140, 90)  # left, top, width, height in the example


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=2, choices=(2, 3, 4))
    s = parser.parse_args().scale
    low = read(FOLDER / "harbour.png")
    after = Upscaler(load_model("edsr-baseline", s))(low)
    before = bicubic(low, *after.shape[:2])
    x, y, w, h = (v * s for v in DETAIL)
    sides = []
    for title, image in ("bicubic", before), (f"EDSR x{s}", after):
        detail = image[y : y + h, x : x + w].repeat(2, 0).repeat(2, 1)
        side = Image.fromarray(np.ascontiguousarray(detail))
        draw = ImageDraw.Draw(side)
        draw.rectangle((0, 0, 110, 26), (0, 0, 0))
        draw.text((8, 4), title, (255, 255, 255), ImageFont.load_default(size=17))
        sides.append(np.asarray(side))
    gap = np.full((sides[0].shape[0], 6, 3), 255, np.uint8)
    Image.fromarray(np.concatenate([sides[0], gap, sides[1]], 1)).save(FOLDER / "before_after.png", optimize=True)


if __name__ == "__main__":
    main()

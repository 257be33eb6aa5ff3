"""Draws the example image of this repository: `python -m examples.draw` writes examples/harbour.png.

Everything a network has to get right is in it: slanted edges, thin ropes, lettering, waves, soft skies.
Drawn eight times larger than needed, then reduced twice, the second time as training images are.
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edsr.images.resize import matlab_downscale
from edsr.images.writer import ImageWriter

WIDTH, HEIGHT = 480, 320  # of the example; drawn at UNIT times that
UNIT = 8
FOLDER = Path(__file__).parent


def scene() -> np.ndarray:
    """The harbour at twice the example's size, uint8 [2·HEIGHT, 2·WIDTH, 3]."""
    u = UNIT
    random = np.random.default_rng(7)
    sky = np.linspace((112, 164, 214), (250, 214, 170), 190 * u)
    sea = np.linspace((58, 110, 138), (14, 44, 72), (HEIGHT - 190) * u)
    rows = np.concatenate([sky, sea])[:, None].repeat(WIDTH * u, 1)
    image = Image.fromarray(rows.round().astype(np.uint8))
    draw = ImageDraw.Draw(image)

    def polygon(points, color):
        draw.polygon([(x * u, y * u) for x, y in points], color)

    def line(points, color, width):
        draw.line([(x * u, y * u) for x, y in points], color, round(width * u), joint="curve")

    def disc(x, y, r, color):
        draw.ellipse([(x - r) * u, (y - r) * u, (x + r) * u, (y + r) * u], color)

    disc(372, 66, 24, (255, 244, 214))
    for k, color in enumerate([(146, 158, 178), (112, 128, 150), (80, 102, 120)]):
        ridge = [(x, 168 - 12 * k + 14 * math.sin(x / (37 - 6 * k) + k) + 6 * math.sin(x / 11 + k)) for x in range(481)]
        polygon([*ridge, (480, 190), (0, 190)], color)
    for i in range(11):  # houses on the quay
        x, top, w = 6 + 25 * i, 118 + random.integers(0, 34), 23
        shade = tuple(int(v) for v in random.integers(110, 235, 3))
        polygon([(x, 196), (x, top), (x + w / 2, top - 13), (x + w, top), (x + w, 196)], shade)
        polygon([(x - 1, top + 1), (x + w / 2, top - 14), (x + w + 1, top + 1)], (122, 62, 48))
        for wy in range(int(top) + 7, 186, 13):
            for wx in (x + 4, x + 13):
                polygon([(wx, wy), (wx + 6, wy), (wx + 6, wy + 8), (wx, wy + 8)], (44, 50, 62))
                line([(wx + 3, wy), (wx + 3, wy + 8)], (232, 232, 226), 0.6)
                line([(wx, wy + 4), (wx + 6, wy + 4)], (232, 232, 226), 0.6)
    polygon([(0, 194), (290, 194), (290, 204), (0, 204)], (120, 112, 104))
    for x in range(0, 290, 9):
        line([(x, 195), (x, 204)], (86, 80, 76), 0.7)
    for y in range(206, HEIGHT, 5):  # waves
        wave = [(x, y + (y - 200) / 60 * math.sin(x / (5 + (y - 200) / 12) + y)) for x in range(0, 481, 2)]
        line(wave, (104, 150, 170) if y % 2 else (34, 78, 106), 0.5 + (y - 200) / 120)
    polygon([(214, 246), (408, 240), (392, 272), (236, 274)], (246, 244, 236))  # the boat
    polygon([(214, 246), (408, 240), (405, 247), (218, 253)], (176, 36, 40))
    font = ImageFont.load_default(size=15 * u)
    draw.text((262 * u, 253 * u), "EDSR 2017", (32, 42, 66), font)
    line([(312, 242), (312, 34)], (92, 66, 44), 3.2)
    polygon([(315, 40), (398, 222), (315, 226)], (238, 232, 214))
    polygon([(308, 52), (236, 228), (308, 228)], (224, 122, 60))
    for k in range(1, 9):
        line([(315, 40 + 21 * k), (315 + 83 * (21 * k) / 182, 40 + 21 * k + 3)], (206, 198, 178), 0.7)
    for x in (216, 226, 396, 406):
        line([(312, 36), (x, 243)], (60, 54, 50), 0.55)
    for k, (x, y) in enumerate([(70, 60), (96, 46), (126, 66), (160, 40), (190, 72)]):  # gulls
        s = 5 + k % 3
        line([(x - s, y - 2), (x - s / 2, y - s / 2), (x, y), (x + s / 2, y - s / 2), (x + s, y - 2)], (52, 56, 66), 1)
    large = np.asarray(image, np.float64).reshape(2 * HEIGHT, UNIT // 2, 2 * WIDTH, UNIT // 2, 3).mean((1, 3))
    return (large + random.normal(0, 1.5, large.shape)).clip(0, 255).round().astype(np.uint8)


if __name__ == "__main__":
    image = matlab_downscale(scene(), 2)
    target = FOLDER / "harbour.png"
    with ImageWriter(target, WIDTH, HEIGHT, 3, overwrite=True) as writer:
        writer.write(image)
    print(target)

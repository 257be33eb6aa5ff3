"""Drawings and screenshots, made by this script, to measure on: `python -m bench.drawings DIR` writes them as PNG.

Thin lines, lettering of many sizes, flat areas and charts: what a screen shows, and what JPEG treats worst. All follow
from the code alone (and from Pillow's built-in typeface), so figures can be regenerated.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from examples.draw import scene

WIDTH, HEIGHT = 720, 480
FINER = 4
"""Lines are drawn so many times larger and averaged, so that they have soft edges, as those of any program."""
WHITE, BLACK, BLUE, RED, GREEN = (255, 255, 255), (0, 0, 0), (33, 102, 214), (204, 44, 40), (40, 140, 72)
GRAY, PALE, DARK = (128, 128, 132), (240, 241, 244), (32, 34, 40)
WORDS = "Thin lines, sharp letters and flat areas are what a screen is made of: Qg@&%8, 0123456789, (x + y)·z = 3/4. "


def drawings() -> dict[str, np.ndarray]:
    """Name -> uint8 [H, W, 3]."""
    return {"lines": lines(), "text": text(), "screenshot": screenshot(), "chart": chart(), "harbour": scene()}


def lines() -> np.ndarray:
    """Fans, circles, hatching and grids, lines of 0.7 to 3 pixels on white."""
    u = FINER
    image = Image.new("RGB", (WIDTH * u, HEIGHT * u), WHITE)
    pen = ImageDraw.Draw(image)
    for i in range(60):
        angle = math.pi * i / 120
        end = (10 + 230 * math.cos(angle)) * u, (10 + 230 * math.sin(angle)) * u
        pen.line([(10 * u, 10 * u), end], BLACK, round((0.7 + i % 5 * 0.4) * u))
    for i in range(14):
        radius, center = (6 + 7 * i) * u, (360 * u, 122 * u)
        box = [(c - radius, c + radius) for c in center]
        corners = (*(low for low, _ in box), *(high for _, high in box))
        pen.ellipse(corners, outline=(BLACK, BLUE, RED)[i % 3], width=round((0.8 + i % 4 * 0.5) * u))
    for i in range(36):  # hatching, closer and closer
        x = (480 + i * (9 - i / 8)) * u
        pen.line([(x, 10 * u), (x - 40 * u, 230 * u)], DARK, u)
    for i, step in enumerate((4, 6, 9, 13)):  # grids
        left = (10 + 120 * i) * u
        for k in range(110 // step + 1):
            pen.line([(left + k * step * u, 260 * u), (left + k * step * u, 370 * u)], GRAY, u)
            pen.line([(left, (260 + k * step) * u), (left + 110 * u, (260 + k * step) * u)], GRAY, u)
    for i in range(10):  # waves, and rows of dots
        y = 390 + 9 * i
        wave = [(x * u, (y + 3 * math.sin(x / (3 + i))) * u) for x in range(10, 400)]
        pen.line(wave, (BLUE, GREEN)[i % 2], round((0.7 + i / 8) * u), joint="curve")
        for x in range(420, 710, 3 + i):
            pen.rectangle((x * u, y * u, (x + 1) * u - 1, (y + 1) * u - 1), BLACK)
    for i in range(12):  # a star of colored strokes
        angle = math.pi * i / 6
        tip = (600 + 60 * math.cos(angle)) * u, (315 + 60 * math.sin(angle)) * u
        pen.line([(600 * u, 315 * u), tip], (RED, BLUE, GREEN)[i % 3], round(1.2 * u))
    return np.asarray(image.reduce(FINER))


def text() -> np.ndarray:
    """Lines of 9 to 40 pixels, dark on light, light on dark and colored."""
    image = Image.new("RGB", (WIDTH, HEIGHT), WHITE)
    pen = ImageDraw.Draw(image)
    pen.rectangle((WIDTH // 2, 0, WIDTH, HEIGHT), DARK)
    pen.rectangle((WIDTH // 2, HEIGHT * 3 // 4, WIDTH, HEIGHT), (250, 222, 120))
    for column, inks in enumerate([(BLACK, (90, 90, 96), BLUE), (WHITE, (150, 210, 255), (255, 150, 140))]):
        y, left = 8, column * WIDTH // 2 + 10
        for i, size in enumerate((9, 10, 11, 12, 13, 14, 16, 18, 20, 24, 28, 34, 40)):
            font = ImageFont.load_default(size)
            for row in range(2 if size < 18 else 1):
                start = 7 * (i + row)
                line = (WORDS * 2)[start : start + 80]
                while font.getlength(line) > WIDTH // 2 - 20:
                    line = line[:-1]
                ink = RED if column and y > HEIGHT * 3 // 4 - size else inks[i % 3]
                pen.text((left, y), line, ink, font)
                y += round(size * 1.3)
    return np.asarray(image)


def screenshot() -> np.ndarray:
    """Two windows over a plain desktop: title bars, buttons, a list, thumbnails, thin borders."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (0, 98, 112))
    pen = ImageDraw.Draw(image)
    small, middle = (ImageFont.load_default(size) for size in (11, 13))
    _window(pen, (60, 36, 520, 380), "Images", active=False)
    pen.rectangle((61, 65, 180, 379), WHITE)
    for i, name in enumerate(("Desktop", "Holiday 2025", "Maps", "Scans", "Letters", "Plans", "Receipts", "Old")):
        y = 74 + 24 * i
        if i == 2:
            pen.rectangle((62, y - 3, 179, y + 17), (208, 226, 252))
        pen.rectangle((70, y + 1, 82, y + 11), (246, 196, 82), (168, 124, 30))
        pen.text((90, y - 1), name, DARK, small)
    for i in range(12):  # thumbnails, each a plain image
        x, y = 196 + 78 * (i % 4), 74 + 96 * (i // 4)
        pen.rectangle((x, y, x + 62, y + 62), (170 + 6 * i, 220 - 8 * i, 140 + 9 * i), (60, 60, 66))
        pen.polygon([(x + 5, y + 57), (x + 25, y + 22 + i), (x + 40, y + 45), (x + 48, y + 36), (x + 58, y + 57)], DARK)
        pen.text((x, y + 66), f"scan_{i:03}.jpg", DARK, small)
    _window(pen, (330, 190, 690, 440), "Enlarge", active=True)
    for i, (name, value) in enumerate((("Scale", "2"), ("Quality", "automatic"), ("Format", "PNG"))):
        y = 232 + 34 * i
        pen.text((346, y + 3), name, DARK, middle)
        pen.rectangle((440, y, 660, y + 23), WHITE, GRAY)
        pen.text((447, y + 3), value, BLACK, middle)
        pen.polygon([(644, y + 9), (654, y + 9), (649, y + 15)], DARK)
    pen.rectangle((346, 342, 660, 356), WHITE, GRAY)
    pen.rectangle((347, 343, 530, 355), GREEN)
    for x, name, fill, ink in (470, "Cancel", (222, 224, 230), DARK), (570, "Enlarge", BLUE, WHITE):
        pen.rounded_rectangle((x, 392, x + 90, 420), 5, fill, GRAY)
        pen.text((x + 45, 406), name, ink, middle, anchor="mm")
    return np.asarray(image)


def _window(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], name: str, active: bool) -> None:
    left, top, right, bottom = box
    pen.rectangle((left, top, right, bottom), PALE, (88, 90, 98))
    pen.rectangle((left + 1, top + 1, right - 1, top + 28), BLUE if active else (198, 202, 210))
    pen.text((left + 10, top + 6), name, WHITE if active else DARK, ImageFont.load_default(15))
    for i in range(3):
        x = right - 22 - 22 * i
        pen.rectangle((x, top + 8, x + 13, top + 21), WHITE, GRAY)
        if i == 0:
            pen.line([(x + 3, top + 11), (x + 10, top + 18)], BLACK)
            pen.line([(x + 10, top + 11), (x + 3, top + 18)], BLACK)
        else:
            pen.line([(x + 3, top + 16), (x + 10, top + 16)], BLACK)


def chart() -> np.ndarray:
    """Axes, a grid, curves, bars and a legend."""
    u = FINER
    image = Image.new("RGB", (WIDTH * u, HEIGHT * u), WHITE)
    pen = ImageDraw.Draw(image)
    for i in range(9):
        y = (40 + 45 * i) * u
        pen.line([(60 * u, y), (700 * u, y)], (214, 216, 220), u)
        pen.text((52 * u, y), str(80 - 10 * i), DARK, ImageFont.load_default(12 * u), anchor="rm")
    for i in range(16):
        x, top = 74 + 39 * i, 400 - 300 * abs(math.sin(0.4 * i + 0.2))
        pen.rectangle((x * u, round(top) * u, (x + 20) * u, 400 * u), (176, 204, 240), (92, 130, 190), u)
        pen.text(((x + 10) * u, 412 * u), str(2010 + i), DARK, ImageFont.load_default(11 * u), anchor="mm")
    for k, ink in enumerate((RED, GREEN, DARK)):
        curve = [(x * u, (220 + 90 * math.sin(x / (48 + 20 * k) + k) + 20 * k) * u) for x in range(60, 701, 4)]
        pen.line(curve, ink, round((1.2 + 0.5 * k) * u), joint="curve")
        pen.line([(540 * u, (452 - 14 * k) * u), (566 * u, (452 - 14 * k) * u)], ink, 2 * u)
        pen.text((572 * u, (452 - 14 * k) * u), f"series {k + 1}", DARK, ImageFont.load_default(11 * u), anchor="lm")
    pen.line([(60 * u, 36 * u), (60 * u, 400 * u), (700 * u, 400 * u)], BLACK, round(1.5 * u))
    pen.text((380 * u, 18 * u), "Images enlarged, thousands a year", BLACK, ImageFont.load_default(17 * u), "mm")
    return np.asarray(image.reduce(FINER))


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.drawings", description="Writes the drawings as PNG files.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in drawings().items():
        Image.fromarray(image).save(folder / f"{name}.png")
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()

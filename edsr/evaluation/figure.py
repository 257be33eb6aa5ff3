"""A comparison as one figure: the whole image, and a detail of it by each method, pixel by pixel."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .comparison import Comparison

PANEL = 480  # the largest side of a magnified detail in pixels, unless the detail itself is larger
SMALL_PANEL = 288  # the least that PANEL becomes where more than three stand beside each other
OVERVIEW = 300  # the largest width of an overview that stands at the left
WIDE_ASPECT = 2.4  # the overviews of images wider than this times their height go on top
GAP, MARGIN = 20, 32
BELOW, LINE = 14, 28  # pixels from an image to its text, from line to line
TITLE, SMALL = 28, 20  # font sizes
WHITE, BLACK, GRAY, LIGHT_GRAY, MARK = (255, 255, 255), (24, 24, 27), (122, 122, 130), (214, 214, 219), (234, 88, 12)


def render_figure(comparison: Comparison) -> Image.Image:
    """Draws a comparison: RGB on white, at most about 2,000 pixels a side with up to six columns.

    Details are magnified by a whole number to about 480 pixels a side, fewer where there are more than three, in
    columns: bicubic, the networks and, if there is one, the original, each with its title and scores below it, the best
    PSNR darker. The first network's whole result stands at the left, or on top if it is more than 2.4 times as wide as
    high, with the detail marked in it.
    """
    x, y, side = comparison.detail
    columns = list(comparison.images.items())
    factor = max(1, max(SMALL_PANEL, 3 * PANEL // max(3, len(columns))) // side)
    panel = factor * side
    title_font, font = ImageFont.load_default(TITLE), ImageFont.load_default(SMALL)
    texts = [_format_score(score) for score in comparison.scores.values()] if len(columns) > 3 else []
    column_width = max(panel, *(math.ceil(font.getlength(text)) for text in texts), 0)
    result = columns[1][1]
    wide = result.shape[1] > WIDE_ASPECT * result.shape[0]
    row = len(columns) * (column_width + GAP) - GAP
    overview = _overview(result, comparison.detail, (row if wide else OVERVIEW, panel))
    size, place = f"{result.shape[1]} x {result.shape[0]} pixels", f"detail {side} x {side} at {x}, {y}"
    times = f"magnified {factor} times" if factor > 1 else "not magnified"
    notes = [f"{size}  ·  {place}, {times}"] if wide else [size, place, times]
    overview_height = overview.height + BELOW + LINE * len(notes)

    left = MARGIN + (0 if wide else max(overview.width, *(round(font.getlength(note)) for note in notes)) + GAP)
    top = MARGIN + (overview_height + GAP if wide else 0)
    column = panel + BELOW + TITLE + (LINE + 4 if comparison.scores else 0)
    height = top + column if wide else MARGIN + max(column, overview_height)
    figure = Image.new("RGB", (left + row + MARGIN, height + MARGIN), WHITE)
    pen = ImageDraw.Draw(figure)
    _paste_framed(figure, overview, (MARGIN, MARGIN), LIGHT_GRAY, 1)
    for i, note in enumerate(notes):
        pen.text((MARGIN, MARGIN + overview.height + BELOW + LINE * i), note, GRAY, font)

    best = max((psnr for psnr, _ in comparison.scores.values()), default=0)
    for i, (title, image) in enumerate(columns):
        at = left + i * (column_width + GAP)
        detail = image[y : y + side, x : x + side].repeat(factor, 0).repeat(factor, 1)
        _paste_framed(figure, Image.fromarray(detail), (at, top), MARK, 3)
        pen.text((at, top + panel + BELOW), _shorten(title, title_font, column_width), BLACK, title_font)
        if title in comparison.scores:
            score = comparison.scores[title]
            color = BLACK if score[0] == best else GRAY
            pen.text((at, top + panel + BELOW + TITLE + 8), _format_score(score), color, font)
    return figure


def _shorten(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The title, or its two ends, in so many pixels."""
    keep = len(title)
    short = title
    while font.getlength(short) > width and keep > 2:
        keep -= 1
        short = f"{title[: keep - keep // 2]}…{title[len(title) - keep // 2 :]}"
    return short


def _format_score(score: tuple[float, float]) -> str:
    """A line for people; without SSIM where there is none."""
    psnr, ssim = score
    return f"{psnr:.2f} dB" if math.isnan(ssim) else f"{psnr:.2f} dB  ·  SSIM {ssim:.4f}"


def _overview(image: np.ndarray, detail: tuple[int, int, int], box: tuple[int, int]) -> Image.Image:
    """The whole image, as large as (width, height) allow, with the detail marked."""
    overview = Image.fromarray(image)
    scale = min(box[0] / overview.width, box[1] / overview.height)
    resampling = Image.Resampling.LANCZOS
    if scale >= 4:  # of an image of a few pixels, which smoothing would hide
        scale, resampling = int(scale), Image.Resampling.NEAREST
    size = max(1, round(overview.width * scale)), max(1, round(overview.height * scale))
    overview = overview.resize(size, resampling, reducing_gap=3)
    x, y, side = (value * scale for value in detail)
    pen = ImageDraw.Draw(overview)
    for grow, width, color in (3, 5, WHITE), (2, 3, MARK):  # white around it, to be seen on any image
        left, top = max(0, round(x) - grow), max(0, round(y) - grow)
        right, bottom = round(x + side) - 1 + grow, round(y + side) - 1 + grow
        pen.rectangle((left, top, min(right, size[0] - 1), min(bottom, size[1] - 1)), None, color, width)
    return overview


def _paste_framed(
    figure: Image.Image, image: Image.Image, at: tuple[int, int], color: tuple[int, int, int], width: int
):
    """Pastes an image, with a line around it."""
    box = at[0] - width, at[1] - width, at[0] + image.width - 1 + width, at[1] + image.height - 1 + width
    ImageDraw.Draw(figure).rectangle(box, None, color, width)
    figure.paste(image, at)

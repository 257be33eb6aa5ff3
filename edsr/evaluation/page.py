"""A comparison as one web page with a slider, which needs nothing but itself: no network, no other file.

Its HTML, style and script are `page.html` beside this module, a template.
"""

import base64
import html
import io
import math
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from .comparison import Comparison

TEMPLATE = Path(__file__).with_name("page.html")

MAX_SIDE = 1600
"""Pixels a side of what a page shows; a larger result is cropped to the surroundings of the detail."""


def render_page(comparison: Comparison, max_side: int = MAX_SIDE) -> str:
    """Makes the page: HTML in which every text is escaped, to be saved as UTF-8.

    It shows two of the images in one place, divided by a handle that mouse, touch and keyboard move, magnified 1, 2 or
    4 times pixel by pixel; where there are three, which two can be chosen. Images are embedded as lossless WebP. By its
    content security policy the page may not load anything.

    Args:
        comparison: What to show.
        max_side: Of larger results, this many pixels a side around the detail are embedded, of which the page tells.
    """
    height, width, _ = next(iter(comparison.images.values())).shape
    left, top, shown_width, shown_height = _crop_box(comparison.detail, width, height, max_side)
    x, y, side = comparison.detail
    crop = slice(top, top + shown_height), slice(left, left + shown_width)
    images = [
        f'<img alt="{html.escape(title)}" draggable="false" src="{_data_url(image[crop])}">'
        for title, image in comparison.images.items()
    ]
    titles = list(comparison.images)
    choices = [_radio_buttons(name, titles, i) if len(titles) > 2 else "" for i, name in enumerate(("left", "right"))]
    notes = [f"{comparison.size[0]} x {comparison.size[1]} pixels, upscaled to {width} x {height}."]
    if (shown_width, shown_height) != (width, height):
        part = f"{shown_width} x {shown_height} of them around the detail, from {left}, {top} on"
        notes.append(f"To be small, this page holds {part}.")
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=html.escape(comparison.name.encode("utf-8", "replace").decode()),  # a file's need not be valid Unicode
        notes=" ".join(notes),
        left=choices[0],
        right=choices[1],
        zoom=_radio_buttons("zoom", ["1x", "2x", "4x"], 0, ["1", "2", "4"]),
        images="".join(images),
        scores=_score_table(comparison),
        width=shown_width,
        height=shown_height,
        x=x + side / 2 - left,
        y=y + side / 2 - top,
    )


def _crop_box(detail: tuple[int, int, int], width: int, height: int, max_side: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of what the page shows: the detail in its middle, as far as the borders allow."""
    x, y, side = detail
    shown_width, shown_height = min(width, max_side), min(height, max_side)
    left = min(max(0, x + side // 2 - shown_width // 2), width - shown_width)
    top = min(max(0, y + side // 2 - shown_height // 2), height - shown_height)
    return left, top, shown_width, shown_height


def _data_url(image: np.ndarray) -> str:
    """uint8 [H, W, 3] as lossless WebP."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _radio_buttons(name: str, titles: list[str], checked: int, values: list[str] | None = None) -> str:
    """A row of buttons, of which one is on; their values are their numbers unless given."""
    buttons = [
        f'<label><input type="radio" name="{name}" value="{values[i] if values else i}"{" checked" * (i == checked)}>'
        f"<span>{html.escape(title)}</span></label>"
        for i, title in enumerate(titles)
    ]
    return f"<fieldset><legend>{name}</legend>{''.join(buttons)}</fieldset>"


def _score_table(comparison: Comparison) -> str:
    """The scores, the better ones marked; nothing if there are none."""
    if not comparison.scores:
        return ""
    best = [max(values) for values in zip(*comparison.scores.values(), strict=True)]
    rows = []
    for title, (psnr, ssim) in comparison.scores.items():
        texts = f"{psnr:.2f} dB", "" if math.isnan(ssim) else f"{ssim:.4f}"
        cells = [
            f"<td{' class=best' * (value == top)}>{text}</td>"
            for value, top, text in zip((psnr, ssim), best, texts, strict=True)
        ]
        rows.append(f"<tr><th scope=row>{html.escape(title)}</th>{''.join(cells)}</tr>")
    caption = f"On luma, with a border of {comparison.scale} pixels left out."
    head = "<tr><td></td><th scope=col>PSNR</th><th scope=col>SSIM</th></tr>"
    return f"<table><caption>{caption}</caption>{head}{''.join(rows)}</table>"

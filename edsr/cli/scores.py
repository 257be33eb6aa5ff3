"""How `evaluate` shows scores: a table of one or several networks beside bicubic, and JSON."""

import math
from collections.abc import Sequence

from rich.cells import cell_len

from edsr.errors import printable

from .console import print_line, print_result, result_width

_NAME, _METHOD = 24, 18  # columns of a row: the image's name, at least; PSNR and SSIM of a method


class ScoreTable:
    """Lines on standard output, each printed when it is known; bicubic comes last. Where standard output is no
    terminal, names are whole. On one, names too wide for it are shortened in their middle; if two were then alike, or
    there is no room for a name beside the scores, an image has a line for each method.

    Args:
        models: As they were given; where a short name is too wide for its column, numbers stand for them.
        names: Short ones.
        images: The names of those that rows will be of.
    """

    def __init__(self, models: Sequence[str], names: Sequence[str], images: Sequence[str]):
        titles = [printable(name) for name in names]
        if any(cell_len(title) > _METHOD - 1 for title in titles):
            titles = [f"({i})" for i in range(1, len(models) + 1)]
            print_result(*(f"{title} {model}" for title, model in zip(titles, models, strict=True)))
        width, images = result_width(), [printable(image) for image in images]
        self._titles = (*titles, "bicubic")
        self._name = max([_NAME, *(cell_len(image) + 1 for image in images)])
        if width is not None:
            self._name = min(self._name, width - _METHOD * len(self._titles))
        alike = len({_shortened(image, self._name - 1) for image in images}) < len(set(images))
        self._narrow = self._name < _NAME or alike
        if self._narrow:
            return
        print_result(" " * self._name + "".join(_filled(title, -_METHOD) for title in self._titles))
        print_result(" " * self._name + f"{'PSNR':>9}{'SSIM':>9}" * (len(models) + 1))

    def row(self, title: str, found: Sequence[dict]) -> None:
        """Prints the scores of an image, or their means: for each network what `evaluate` yields."""
        pairs = [(scores["psnr"], scores["ssim"]) for scores in found]
        pairs.append((found[0]["bicubic_psnr"], found[0]["bicubic_ssim"]))
        cells = [f"{psnr:9.2f}{'-' if math.isnan(ssim) else f'{ssim:.4f}':>9}" for psnr, ssim in pairs]
        if self._narrow:
            rows = zip(self._titles, cells, strict=True)
            print_result(printable(title), *(f"  {_filled(method, _METHOD - 1)}{cell}" for method, cell in rows))
            return
        print_result(_filled(_shortened(printable(title), self._name - 1), self._name) + "".join(cells))


def _shortened(text: str, width: int) -> str:
    """The text in at most so many columns of a terminal, of which wide characters take two: its ends tell more."""
    if cell_len(text) <= width:
        return text
    start = end = text
    while start and cell_len(start) > width // 2:
        start = start[:-1]
    while end and cell_len(end) > (width - 1) // 2:
        end = end[1:]
    return f"{start}…{end}"


def _filled(text: str, width: int) -> str:
    """The text with blanks after it, or before it where `width` is below 0, in so many columns of a terminal."""
    blanks = " " * (abs(width) - cell_len(text))
    return text + blanks if width > 0 else blanks + text


def print_notes(names: Sequence[str], found: Sequence[dict]) -> None:
    """Prints what is to be said of an image's scores: once what is the same for all networks."""
    warnings = [scores.get("warnings", []) for scores in found]
    common = [line for line in warnings[0] if all(line in lines for lines in warnings)]
    print_line(*(f"note: {found[0]['name']}: {line}" for line in common))
    for name, lines in zip(names, warnings, strict=True):
        print_line(*(f"note: {found[0]['name']}, {name}: {line}" for line in lines if line not in common))


def name_infinite(scores: dict) -> dict:
    """The scores with the names of those that are infinite, which JSON has as null, under `infinite`."""
    names = [name for name, value in scores.items() if isinstance(value, float) and math.isinf(value)]
    return scores | ({"infinite": names} if names else {})

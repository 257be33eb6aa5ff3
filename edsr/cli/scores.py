"""How `evaluate` shows scores: a table of one or several networks beside bicubic, and JSON."""

import math
from collections.abc import Sequence

from edsr.errors import printable

from .console import print_line, print_result, result_width

_NAME, _METHOD = 24, 18  # characters of a row: the image's name; PSNR and SSIM of a method


class ScoreTable:
    """Lines on standard output, each printed when it is known; bicubic comes last. On a terminal that is too narrow for
    the columns, an image has a line for each method.

    Args:
        models: As they were given; where a short name is too wide for its column, numbers stand for them.
        names: Short ones.
    """

    def __init__(self, models: Sequence[str], names: Sequence[str]):
        titles = [printable(name) for name in names]
        if any(len(title) > _METHOD - 1 for title in titles):
            titles = [f"({i})" for i in range(1, len(models) + 1)]
            print_result(*(f"{title} {model}" for title, model in zip(titles, models, strict=True)))
        width = result_width()
        self._titles = (*titles, "bicubic")
        self._narrow = width is not None and width < _NAME + _METHOD * len(self._titles)
        if self._narrow:
            return
        print_result(" " * _NAME + "".join(f"{title:>{_METHOD}}" for title in self._titles))
        print_result(" " * _NAME + f"{'PSNR':>9}{'SSIM':>9}" * (len(models) + 1))

    def row(self, title: str, found: Sequence[dict]) -> None:
        """Prints the scores of an image, or their means: for each network what `evaluate` yields."""
        pairs = [(scores["psnr"], scores["ssim"]) for scores in found]
        pairs.append((found[0]["bicubic_psnr"], found[0]["bicubic_ssim"]))
        cells = [f"{psnr:9.2f}{'-' if math.isnan(ssim) else f'{ssim:.4f}':>9}" for psnr, ssim in pairs]
        if self._narrow:
            rows = zip(self._titles, cells, strict=True)
            print_result(printable(title), *(f"  {method:{_METHOD - 1}}{cell}" for method, cell in rows))
            return
        print_result(f"{printable(title)[: _NAME - 1]:{_NAME}}{''.join(cells)}")


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

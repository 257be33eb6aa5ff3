"""Windows of a large image: a result is judged by them where fp64 of all would take too long, or too much memory.

A convolutional network's result depends on nothing farther away than its radius. So what it makes of a window that
brings along so much around itself is exact in the window.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

SIDE = 192  # of a window, LR pixels
SMALL_SIDE = 64  # the same where a pixel is dear
DEAR = 128  # features from which it is


class Window(NamedTuple):
    """Rows or columns from `start` to `stop`, of which those from `first` to `end` know all that bears on them."""

    start: int
    stop: int
    first: int
    end: int

    @property
    def pixels(self) -> slice:
        return slice(self.start, self.stop)

    def inside(self, scale: int) -> slice:
        """The part that counts, in the result of the window alone."""
        return slice(scale * (self.first - self.start), scale * (self.end - self.start))

    def outside(self, scale: int) -> slice:
        """The same part, in the result of the whole image."""
        return slice(scale * self.first, scale * self.end)


Pair = tuple[Window, Window]  # rows, columns


def side_for(features: int) -> int:
    return SIDE if features < DEAR else SMALL_SIDE


def windows(length: int, radius: int, side: int) -> list[Window]:
    """The first, middle and last `side` rows or columns with `radius` more around; all of a small image."""
    if length <= side + 2 * radius:
        return [Window(0, length, 0, length)]
    middle, last = (length - side) // 2, length - side
    return [
        Window(0, side + radius, 0, side),
        Window(middle - radius, middle + side + radius, middle, middle + side),
        Window(last - radius, length, last, length),
    ]


def pairs(height: int, width: int, radius: int, side: int) -> list[Pair]:
    """Windows at two corners and in the middle of an image."""
    rows, columns = (windows(length, radius, side) for length in (height, width))
    return [(rows[i % len(rows)], columns[i % len(columns)]) for i in range(max(len(rows), len(columns)))]


def in_windows(function: Callable[[Tensor], Tensor], x: Tensor, where: list[Pair], scale: int) -> list[Tensor]:
    """What `function` makes of each window of x, [N, C, H, W]; the part that counts, [N, C', s·h, s·w]."""
    parts = []
    for rows, columns in where:
        y = function(x[:, :, rows.pixels, columns.pixels])
        # A copy, or the part would keep all of y in memory.
        parts.append(y[:, :, rows.inside(scale), columns.inside(scale)].clone())
    return parts


def cut(y: Tensor, where: list[Pair], scale: int) -> list[Tensor]:
    """The parts that count of a whole result, [N, C, s·H, s·W]."""
    return [y[:, :, rows.outside(scale), columns.outside(scale)] for rows, columns in where]


def largest(values: Iterable[float]) -> float:
    """The largest, and NaN if one is NaN, which `max` overlooks unless it comes first."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else max(found)


def largest_difference(y: Tensor, target: Tensor) -> float:
    """Raises AssertionError where the shape is another."""
    if y.shape != target.shape:
        raise AssertionError(f"the result is {list(y.shape)}, not {list(target.shape)}")
    return (y.to(target) - target).abs().max().item()


def describe_faults(y: Tensor, target: Tensor, limit: float) -> str:
    """How many elements of y are off by more than `limit`, or not finite, and the first of them; "" if none is."""
    difference = (y.to(target) - target).abs()
    wrong = (~(difference <= limit)).nonzero()  # NaN is no more than anything
    if not len(wrong):
        return ""
    first = tuple(wrong[0].tolist())
    found, expected = (x[first].item() for x in (y, target))
    infinite = int((~y.isfinite()).sum())
    return (
        f"; {len(wrong):,} of {y.numel():,} elements, {infinite:,} not finite, the first at {list(first)}: "
        f"{found:.3g} for {expected:.3g}"
    )

"""What the numbers of an HDF5 file mean: black and white of images in floating point, told from all their values."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from edsr.errors import DataError

_OVERSHOOT = {"hr": 0.1, "lr": 0.25}
"""Beyond black and white, as a share of the range: of originals, and of what bicubic interpolation has reduced."""

_DARKEST = 16  # the least maximum of values in 0..255: in between lie normalized values, whose black is not 0


class ValueRange(NamedTuple):
    """The least and the largest of values that are finite."""

    low: float
    high: float


def measure(parts: Iterable[np.ndarray]) -> ValueRange | None:
    """The range of all floating-point values in arrays; None without any."""
    low, high = np.inf, -np.inf
    for part in parts:
        finite = part[np.isfinite(part)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return ValueRange(low, high) if low <= high else None


def find_white(name: str, ranges: dict[str, ValueRange | None]) -> float:
    """1 if floating-point values are in 0..1, 255 if they are in 0..255.

    Args:
        name: What messages call the file.
        ranges: Of "hr" and of "lr", None for those that are not in floating point.

    Raises:
        DataError: They are in neither, or not both in the same.
    """
    known = {side: found for side, found in ranges.items() if found is not None}
    highest = max((found.high for found in known.values()), default=0)
    white = 1 if highest <= 1 + max(_OVERSHOOT.values()) else 255
    for side, (low, high) in known.items():
        beyond = _OVERSHOOT[side] * white
        if low < -beyond or high > white + beyond or (white == 255 and high == highest < _DARKEST):
            values = f"{side} holds values from {low:.4g} to {high:.4g}"
            raise DataError(f"{name}: {values}; bring lr and hr to 0..1 or 0..255, where 0 is black")
    for side, (low, high) in known.items():
        if white == 255 and high <= 1 + _OVERSHOOT[side] and low != high:
            raise DataError(f"{name}: {side} holds values in 0..1, the other in 0..255; write both alike")
    return white

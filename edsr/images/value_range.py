"""What floating-point samples mean: formats state no range, so it is 0..1, or one that somebody names.

A named range is a fixed linear map, LOW to 0 and HIGH to 1, so that bands and crops of an image give what the whole
gives. Values beyond are not cut off on the way to a file of floats. What lies far beyond is of another range, such as
0..255 or meters, and is refused: a network would make poor images of it, and files of whole numbers would lose it.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edsr.errors import ImageError
from edsr.wording import either

LOWEST, HIGHEST = -0.5, 4.0
"""Where black is 0 and white 1, samples may be that far beyond: undershoot and highlights. At 4 the network is hardly
better than bicubic any more (docs/log.md)."""
_SCANNED = 2**24  # samples after one of another range, whose range is told
_ALPHA_LOWEST, _ALPHA_HIGHEST = -0.5, 1.5  # beyond, it is no alpha of 0..1 that a filter has made overshoot


class ValueRange(NamedTuple):
    """The floating-point values of black and white, which are finite and not the same."""

    low: float = 0.0
    high: float = 1.0

    def __str__(self) -> str:
        return f"{self.low:g} and {self.high:g}"

    def to_unit(self, rows: np.ndarray) -> np.ndarray:
        """Float32 [rows, width, channels] of this range as those of 0..1; alpha, where there is one, as it is."""
        if self == UNIT:
            return rows
        colors = count_colors(rows)
        mapped = rows.copy()
        mapped[..., :colors] = (rows[..., :colors] - np.float64(self.low)) / (self.high - self.low)
        return mapped

    def from_unit(self, rows: np.ndarray) -> np.ndarray:
        """The reverse of `to_unit`."""
        if self == UNIT:
            return rows
        colors = count_colors(rows)
        mapped = rows.copy()
        mapped[..., :colors] = rows[..., :colors] * np.float64(self.high - self.low) + self.low
        return mapped


UNIT = ValueRange()


class FoundRange:
    """The least and the greatest of the floating-point samples that came by; NaN is passed over.

    Attributes:
        low, high: of colors; inf and -inf where there were none.
        alpha_low, alpha_high: of alpha.
    """

    def __init__(self) -> None:
        self.low = self.alpha_low = math.inf
        self.high = self.alpha_high = -math.inf

    def __str__(self) -> str:
        return f"{self.low:.6g}..{self.high:.6g}"

    def add(self, rows: np.ndarray) -> None:
        """Take in float32 [rows, width, channels]."""
        colors = count_colors(rows)
        self.low, self.high = _widened(rows[..., :colors], self.low, self.high)
        self.alpha_low, self.alpha_high = _widened(rows[..., colors:], self.alpha_low, self.alpha_high)

    def is_beyond(self, of: ValueRange) -> bool:
        """Whether any color is darker than black or brighter than white."""
        return self.low < min(of) or self.high > max(of)

    def is_far_beyond(self, of: ValueRange) -> bool:
        """Whether colors are so far beyond that they must be of another range."""
        if self.low > self.high:
            return False
        ends = ((value - of.low) / (of.high - of.low) for value in (self.low, self.high))
        return any(not LOWEST <= end <= HIGHEST for end in ends)

    def is_alpha_beyond(self, least: float = 0, most: float = 1) -> bool:
        return self.alpha_low < least or self.alpha_high > most


def map_rows(path: Path, parts: Iterator[np.ndarray], of: ValueRange, found: FoundRange) -> Iterator[np.ndarray]:
    """Successive float32 rows of a file, mapped to 0..1; alpha is cut off there. What they are goes into `found`.

    Raises:
        ImageError: they are of another range. More of the file is read to say of which.
    """
    for rows in parts:
        found.add(rows)
        alien_alpha = found.is_alpha_beyond(_ALPHA_LOWEST, _ALPHA_HIGHEST)
        if alien_alpha or found.is_far_beyond(of):
            seen = 0
            for rest in parts:
                found.add(rest)
                seen += rest.size
                if seen > _SCANNED:
                    break
            raise ImageError(f"{path}: {_alpha_refusal(found) if alien_alpha else _refusal(found, of)}")
        mapped = of.to_unit(rows)
        if found.is_alpha_beyond():
            colors = count_colors(rows)
            mapped = np.concatenate([mapped[..., :colors], mapped[..., colors:].clip(0, 1)], -1)
        yield mapped


def _refusal(found: FoundRange, of: ValueRange) -> str:
    low, high = (0, 255) if found.low >= 0 and 1 < found.high <= 255 else (math.floor(found.low), math.ceil(found.high))
    chosen = either(f"value_range=ValueRange({low}, {high})", f"--range={low},{high}")
    example = f", such as {chosen}" if math.isfinite(found.high - found.low) and high - low < 1e9 else ""
    return (
        f"holds floating-point samples of {found}, far beyond {of} for black and white; say what these are with "
        f"{either('value_range=ValueRange(LOW, HIGH)', 'upscale --range=LOW,HIGH')}{example}"
    )


def _alpha_refusal(found: FoundRange) -> str:
    seen = f"{found.alpha_low:.6g}..{found.alpha_high:.6g}"
    return f"its alpha has floating-point samples of {seen} instead of 0..1; bring it there, or leave it out"


def count_colors(rows: np.ndarray) -> int:
    """How many of the channels, the last axis, are not alpha."""
    return rows.shape[-1] - (rows.shape[-1] in (2, 4))


def _widened(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    least, most = np.fmin.reduce(values, None, initial=low), np.fmax.reduce(values, None, initial=high)
    return float(least), float(most)

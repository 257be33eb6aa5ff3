"""Samples without data: holes in maps, elevation models and other measurements, as TIFF files have them.

Without data is what equals the file's GDAL_NODATA (TIFF tag 42113) and, in floating point, NaN, infinities, and what
lies `HUGE` or more from 0: -3.4e38, 1e30, 1e20 and the like stand for "nothing here". No network ever sees such
samples: they are filled from their neighbors before it, and each comes back behind it, as a block of that very value.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from .filling import fill_rows
from .metadata.entries import Entry, data_of

HUGE = 1e19
"""Floating-point samples that far from 0 are no data, whatever the file says."""

_DEPTHS = (0, 8, 16, 32)  # bits; libvips scales others


class NoData:
    """Which samples of an image are without data.

    Args:
        text: of GDAL_NODATA; "" if there is none.
        dtype: of the samples: uint8, uint16 or float32.
        white_is_zero: whether whole numbers are stored inverted.

    Attributes:
        value: GDAL_NODATA as a sample, None if there is none or no sample can have it.
    """

    def __init__(self, text: str = "", dtype: np.dtype | type = np.float32, white_is_zero: bool = False) -> None:
        self._floating = np.dtype(dtype) == np.float32
        self.value = _as_sample(text, np.dtype(dtype))
        if self.value is not None and white_is_zero and not self._floating:
            self.value = np.iinfo(dtype).max - self.value
        # Within an image's own range, a color may well have that value in one channel: a pixel has it in all.
        self._whole_pixels = not self._floating or (self.value is not None and 0 <= self.value <= 1)

    def find(self, rows: np.ndarray) -> np.ndarray | None:
        """Which samples are without data: bool [n, W, C]; None if all have data.

        Args:
            rows: [n, W, C]; the last of 2 or 4 channels is alpha.
        """
        colors = rows.shape[2] - (rows.shape[2] in (2, 4))
        found = ~(np.abs(rows) < HUGE) if self._floating else None  # so that NaN is found
        if self.value is not None:
            equal = np.zeros(rows.shape, bool)
            equal[..., :colors] = rows[..., :colors] == self.value
            if self._whole_pixels:
                equal[..., :colors] = equal[..., :colors].all(-1, keepdims=True)
            found = equal if found is None else found | equal
        return found if found is not None and found.any() else None


def read_nodata(entries: tuple[Entry, ...], tags: dict[int, int], dtype: np.dtype) -> tuple[NoData, tuple[Entry, ...]]:
    """What is without data in an image, and its entries with GDAL_NODATA as the result must have it, or without data.

    Args:
        entries: what the file holds besides pixels.
        tags: of a TIFF, the numbers in its first IFD.
        dtype: of the samples.
    """
    text = data_of(entries, "nodata").split(b"\0")[0].decode("ascii", "replace").strip()
    if tags.get(262) in (3, 5) or tags.get(258, 0) not in _DEPTHS:  # a palette's entry, an ink: none of the samples
        text = ""
    nodata = NoData(text, dtype, tags.get(262) == 0)
    if tags.get(262) == 0 and nodata.value is not None and dtype != np.float32:
        text = f"{nodata.value:.0f}"
    data = text.encode("ascii", "ignore") + b"\0" if text else b""
    return nodata, tuple(entry._replace(data=data) if entry.kind == "nodata" else entry for entry in entries)


def _as_sample(text: str, dtype: np.dtype) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    if dtype == np.float32:
        with np.errstate(over="ignore"):
            value = float(np.float32(value))
        return value if math.isfinite(value) else None  # found without it
    return value if 0 <= value <= np.iinfo(dtype).max and value == int(value) else None


class Holes:
    """Takes samples without data out of an image's rows, and puts them back into those of its result.

    Rows go through `mark`, `fill`, the network and `put_back`, each once and in their order.

    Attributes:
        count: pixels with a sample without data that `mark` has found so far.
    """

    def __init__(self, nodata: NoData) -> None:
        self.count = 0
        self._nodata = nodata
        self._to_fill: deque[np.ndarray | None] = deque()
        self._to_put_back: deque[tuple[int, np.ndarray, np.ndarray | None]] = deque()

    def mark(self, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The rows, with NaN where floating-point samples are without data; whole numbers as they are."""
        for rows in parts:
            mask = self._nodata.find(rows)
            self._to_fill.append(mask)
            self._to_put_back.append((len(rows), rows, mask) if mask is not None else (len(rows), rows[:0], None))
            if mask is not None:
                self.count += int(mask.any(-1).sum())
            yield rows if mask is None or rows.dtype != np.float32 else np.where(mask, np.float32(np.nan), rows)

    def fill(self, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The marked rows, filled; floats must be in 0..1 by now. Late as `edsr.images.fill_rows` says."""
        return fill_rows((rows, self._next_weights()) for rows in parts)

    def _next_weights(self) -> np.ndarray | None:
        mask = self._to_fill.popleft()
        return None if mask is None else (~mask).astype(np.float32)

    def put_back(self, parts: Iterable[np.ndarray], scale: int, value: float | None = None) -> Iterator[np.ndarray]:
        """The result's rows, with the samples without data in them.

        Args:
            parts: [scale * n, scale * W, C], of the dtype of the rows that were marked. Not changed.
            scale: how many rows and columns of the result belong to one of the image.
            value: what they become; by default what they were.
        """
        done = 0  # rows of the first that is to be put back
        for rows in parts:
            rows, at = rows.copy() if any(mask is not None for *_, mask in self._to_put_back) else rows, 0
            while at < len(rows):
                total, original, mask = self._to_put_back[0]
                n = min(total - done, (len(rows) - at) // scale)
                if mask is not None:
                    large = mask[done : done + n].repeat(scale, 0).repeat(scale, 1)
                    own = original[done : done + n].repeat(scale, 0).repeat(scale, 1)
                    target = rows[at : at + n * scale]
                    target[large] = own[large] if value is None else value
                at, done = at + n * scale, done + n
                if done == total:
                    self._to_put_back.popleft()
                    done = 0
            yield rows

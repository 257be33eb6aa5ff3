"""Samples that a file stores in another form than the one that is read, where libvips leaves them so.

Narrow ("limited", "studio") range: black is 16 and white 235 of 255 (ITU-T H.273, 8.3), in gray AVIF and in PNG that
says so by cICP. Premultiplied: the colors of AVIF and HEIF may be multiplied by alpha already (MIAF, 7.3.5.2).
"""

import struct
from functools import cache
from typing import BinaryIO, NamedTuple

import numpy as np

from .av1 import read_sequence_header
from .metadata.heif import Box, boxes, read_meta


class NumberRange(NamedTuple):
    """narrow: whether colors are of narrow range. premultiplied: whether they are multiplied by alpha."""

    narrow: bool = False
    premultiplied: bool = False

    def restore(self, rows: np.ndarray, bits: int) -> np.ndarray:
        """Rows [n, W, C] in full range and not premultiplied.

        Args:
            rows: uint8 or uint16, the last of 2 or 4 channels being alpha, whose range is always full.
            bits: of a sample in the file; those of a uint16 have been scaled to 0..65535.
        """
        if not (self.narrow or self.premultiplied):
            return rows
        alpha = rows.shape[2] in (2, 4)
        colors = rows[..., :-1] if alpha else rows
        if self.narrow:
            colors = _widening(rows.dtype, bits)[colors]
        if not alpha:
            return colors
        if self.premultiplied:
            colors = _divide(colors, rows[..., -1:])
        return np.concatenate([colors, rows[..., -1:]], -1)


@cache
def _widening(dtype: np.dtype, bits: int) -> np.ndarray:
    """Sample of narrow range -> of full range."""
    full = int(np.iinfo(dtype).max)
    bits = min(bits, 8 * dtype.itemsize)
    stored = np.rint(np.arange(full + 1) * ((2**bits - 1) / full))
    values = (stored - (16 << bits - 8)) * (full / (219 << bits - 8))
    return np.rint(values).clip(0, full).astype(dtype)


def _divide(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colors that were multiplied by alpha, 0 where that is 0."""
    full = np.float64(np.iinfo(colors.dtype).max)
    values = np.floor(np.divide(colors * full, alpha, where=alpha > 0, out=np.zeros(colors.shape)) + 0.5)
    return values.clip(0, full).astype(colors.dtype)


def read_heif_range(file: BinaryIO) -> NumberRange:
    """How an AVIF or HEIF file stores its primary image.

    libheif converts colors by itself, but takes samples of a single plane as they are. What is damaged is left to it.
    """
    try:
        return _read_range(file)
    except (IndexError, struct.error):
        return NumberRange()


def _read_range(file: BinaryIO) -> NumberRange:
    data, _ = read_meta(file)
    top = {box.kind: box for box in boxes(data, 0, len(data))}
    if b"pitm" not in top:
        return NumberRange()
    primary = read_primary(data, top[b"pitm"])
    premultiplied = any(
        box.kind == b"prem" and _read_source(data, top[b"iref"], box) == primary
        for box in (boxes(data, top[b"iref"].start + 4, top[b"iref"].end) if b"iref" in top else ())
    )
    properties = read_properties(data, top, primary)
    # The tiles of a grid are items of their own; their codec's configuration is that of any.
    config = properties.get(b"av1C") or next(
        (data[box.start : box.end] for box in _shared(data, top) if box.kind == b"av1C"), b""
    )
    if len(config) < 4 or not config[2] & 0x10:
        return NumberRange(premultiplied=premultiplied)
    full = None
    nclx = properties.get(b"colr nclx", b"")
    if len(nclx) >= 11:
        full = bool(nclx[10] & 0x80)
    if full is None:
        header = read_sequence_header(config[4:]) or read_sequence_header(_read_item(file, data, top, primary))
        full = header is None or header.full_range
    return NumberRange(not full, premultiplied)


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def read_primary(data: bytes, box: Box) -> int:
    """The number of the item that is the image, by its box "pitm"."""
    return _number(data, box.start + 4, 4 if data[box.start] else 2)


def _read_source(data: bytes, references: Box, box: Box) -> int:
    """The item that a reference starts from."""
    return _number(data, box.start, 4 if data[references.start] else 2)


def _shared(data: bytes, top: dict[bytes, Box]) -> list[Box]:
    """The properties that items have in common, in the order of their numbers."""
    return [
        each
        for box in (boxes(data, top[b"iprp"].start, top[b"iprp"].end) if b"iprp" in top else ())
        if box.kind == b"ipco"
        for each in boxes(data, box.start, box.end)
    ]


def read_properties(data: bytes, top: dict[bytes, Box], item: int) -> dict[bytes, bytes]:
    """Kind -> contents of an item's properties; "colr" is followed by its type."""
    shared, found = _shared(data, top), {}
    for box in boxes(data, top[b"iprp"].start, top[b"iprp"].end) if b"iprp" in top else ():
        if box.kind != b"ipma":
            continue
        wide, large, at = data[box.start] > 0, data[box.start + 3] & 1, box.start + 8
        for _ in range(_number(data, box.start + 4, 4)):
            if at >= box.end:
                break
            number, count = _number(data, at, 4 if wide else 2), data[at + (4 if wide else 2)]
            at += 5 if wide else 3
            for _ in range(count):
                index = _number(data, at, 2) & 0x7FFF if large else data[at] & 0x7F
                at += 2 if large else 1
                if number == item and 1 <= index <= len(shared):
                    kind, start, end = shared[index - 1]
                    kind += b" " + data[start : start + 4] if kind == b"colr" else b""
                    found.setdefault(kind, data[start:end])
    return found


def _read_item(file: BinaryIO, data: bytes, top: dict[bytes, Box], item: int) -> bytes:
    """The beginning of an item's data, where it lies in the file itself."""
    if b"iloc" not in top:
        return b""
    at, version = top[b"iloc"].start, data[top[b"iloc"].start]
    offset, length, base, index = (_number(data, at + 4, 2) >> shift & 15 for shift in (12, 8, 4, 0))
    size = 4 if version == 2 else 2
    count, at = _number(data, at + 6, size), at + 6 + size
    for _ in range(count):
        if at >= top[b"iloc"].end:
            break
        number, at = _number(data, at, size), at + size
        inside = version == 0 or _number(data, at, 2) & 15 == 0
        at += 2 * (version > 0) + 2
        start, at = _number(data, at, base), at + base
        extents, at = _number(data, at, 2), at + 2
        step = offset + length + (index if version else 0)
        if number == item and inside and extents:
            file.seek(min(start + _number(data, at + (index if version else 0), offset), 2**40))
            return file.read(4096)
        at += extents * step
    return b""

"""TIFFs compressed with LZMA, which most builds of libvips lack: to libvips they look as if compressed with deflate.

Python's library decompresses a strip or tile when its bytes are asked for, so that memory holds one of them. Behind the
file's own bytes, of which a few are replaced, follow new tables of offsets and lengths, and then the strips, each as a
stream of deflate whose blocks are stored, which is as long as its size says.
"""

import bisect
import lzma
import math
import os
import struct
import weakref
import zlib
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import pyvips

from . import exif
from .tiff_parts import list_parts

LZMA = 34925
_DEFLATE = 8
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _CHANNELS, _ROWS, _PLANAR = 256, 257, 258, 259, 277, 278, 284
_STRIPS, _TILES, _TILE_WIDTH, _TILE_HEIGHT = (273, 279), (324, 325), 322, 323
_BLOCK = 65_535  # bytes of a stored block of deflate
_MAX_MEMORY = 2**28  # bytes of a decoder; the strongest of xz's levels needs 2**26


def open_inflated(path: Path, mends: Mapping[int, bytes]) -> pyvips.SourceCustom | None:
    """A source for libvips, as `edsr.images.metadata.mended.open_mended` gives it; None if the file is not understood.

    Args:
        path: a TIFF compressed with LZMA; it is closed with the source.
        mends: offset -> the bytes that stand there instead.
    """
    file = open(path, "rb")  # noqa: SIM115 - closed with the source
    try:
        inflated = _Inflated(file, mends)
    except (ValueError, KeyError, struct.error, OverflowError):
        file.close()
        return None
    source = pyvips.SourceCustom()
    weakref.finalize(source, file.close)
    source.on_read(inflated.read)
    source.on_seek(inflated.seek)
    return source


class _Inflated:
    """The bytes that libvips sees. Raises ValueError, KeyError and the like where tags do not fit each other."""

    def __init__(self, file: BinaryIO, mends: Mapping[int, bytes]) -> None:
        self._file, self._position, self._decoded = file, 0, (-1, b"")
        end = file.seek(0, os.SEEK_END)
        form, first = exif.find_first(file) or (exif.TiffForm("<", False), 0)
        entries, _ = exif.read_ifd(file, form, first)
        offsets, lengths = (numbers.tolist() for numbers in list_parts(file))
        self._parts = list(zip(offsets, lengths, strict=True))
        self._sizes = _part_sizes(file, form, entries)
        if len(self._sizes) != len(self._parts):
            raise ValueError("the table of strips has another length")
        kind = "Q" if form.big else "I"
        streams = [size + 5 * max(1, math.ceil(size / _BLOCK)) + 6 for size in self._sizes]
        table = len(streams) * struct.calcsize(kind)
        self._starts = list(accumulate(streams, initial=end + 2 * table))
        self.size = self._starts.pop()
        there = [any(part) for part in self._parts]  # what is left out stays so
        places = [start * own for start, own in zip(self._starts, there, strict=True)]
        numbers = [size * own for size, own in zip(streams, there, strict=True)]
        tables = [struct.pack(f"{form.byte_order}{len(row)}{kind}", *row) for row in (places, numbers)]
        self._tables, self._end = b"".join(tables), end
        self._mends = dict(mends)
        tags = _TILES if _TILES[0] in entries else _STRIPS
        for tag, data, at in zip(tags, tables, (end, end + table), strict=True):
            value = data if len(places) == 1 else struct.pack(form.byte_order + kind, at)
            self._replace(form, first, tag, (16 if form.big else 4, len(places)), value)
        code = struct.pack(form.byte_order + "H", _DEFLATE).ljust(8 if form.big else 4, b"\0")
        self._replace(form, first, _COMPRESSION, (3, 1), code)

    def _replace(self, form: exif.TiffForm, first: int, tag: int, kind: tuple[int, int], value: bytes) -> None:
        """Replace an entry of the first IFD. kind: its type and how many values it has."""
        at = exif.find_entry(self._file, form, first, tag)
        self._mends[at] = form.entry.pack(tag, *kind, value)

    def seek(self, offset: int, whence: int) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int) -> bytes:
        """As a file's; nothing more where a strip is damaged, for nothing may be raised here."""
        try:
            data = self._read(self._position, size)
        except (OSError, ValueError, OverflowError, lzma.LZMAError):
            return b""
        self._position += len(data)
        return data

    def _read(self, start: int, size: int) -> bytes:
        if start < self._end:
            self._file.seek(start)
            data = bytearray(self._file.read(min(size, self._end - start)))
            for at, instead in self._mends.items():
                for i, value in enumerate(instead, at - start):
                    if 0 <= i < len(data):
                        data[i] = value
            return bytes(data)
        if start < self._end + len(self._tables):
            return self._tables[start - self._end : start - self._end + size]
        if start >= self.size:
            return b""
        index = bisect.bisect_right(self._starts, start) - 1
        if self._decoded[0] != index:
            self._decoded = index, self._stream(index)
        at = start - self._starts[index]
        return self._decoded[1][at : at + size]

    def _stream(self, index: int) -> bytes:
        (offset, length), size = self._parts[index], self._sizes[index]
        self._file.seek(offset)
        decoder = lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=_MAX_MEMORY)
        data = decoder.decompress(self._file.read(length), size)
        if len(data) < size:
            raise ValueError("a strip ends too early")
        if not decoder.eof:
            decoder.decompress(b"", 1)  # which has the checksum compared
        blocks = [data[i : i + _BLOCK] for i in range(0, size, _BLOCK)] or [b""]
        stored = [struct.pack("<BHH", i == len(blocks) - 1, len(b), len(b) ^ 0xFFFF) + b for i, b in enumerate(blocks)]
        return b"".join([b"\x78\x01", *stored, struct.pack(">I", zlib.adler32(data))])


def _part_sizes(file: BinaryIO, form: exif.TiffForm, entries: dict[int, exif.Entry]) -> list[int]:
    """Bytes of each strip or tile when decompressed."""

    def number(tag: int, usual: int | None = None) -> int:
        value = exif.read_number(form, entries[tag]) if tag in entries or usual is None else usual
        if not value:
            raise ValueError(f"tag {tag} has no value")
        return value

    channels, separate = number(_CHANNELS, 1), number(_PLANAR, 1) == 2
    bits = exif.read_value(file, form, entries[_BITS], 1000) if _BITS in entries else None
    depth = struct.unpack_from(f"{form.byte_order}H", bits.data)[0] if bits else 1
    width, height = number(_WIDTH), number(_HEIGHT)
    per_pixel = depth * (1 if separate else channels)
    planes = channels if separate else 1
    if _TILES[0] in entries:
        across, down = number(_TILE_WIDTH), number(_TILE_HEIGHT)
        count = math.ceil(width / across) * math.ceil(height / down)
        return [math.ceil(across * per_pixel / 8) * down] * (count * planes)
    rows = min(number(_ROWS, height), height)
    row = math.ceil(width * per_pixel / 8)
    return [min(rows, height - y) * row for y in range(0, height, rows)] * planes

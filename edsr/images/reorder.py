"""Images that are not stored row by row from the top, put in order through a temporary file.

The file has no name, so nothing is left of it, whatever happens.
"""

import io
import os
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import BinaryIO

import numpy as np
import pyvips

from edsr.errors import ImageError

from .descriptor import source_of

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of Adam7: first column, first row, columns apart, rows apart (PNG, third edition, section 8.1)."""
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # PNG color type -> samples of a pixel
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def check_space(path: Path, needed: int, folder: Path | None, spooled: int) -> None:
    """Raise ImageError, about the image `path`, unless `needed` bytes are free in `folder` (None: the system's).

    spooled: bytes up to which there will be no temporary file.
    """
    place = folder or gettempdir()
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise ImageError(f"{path}: {place} cannot serve for temporary files ({error.strerror})") from None
    if needed > spooled and needed > free:
        sizes = f"{needed / 1e6:,.0f} MB of temporary space in {place}, where {free / 1e6:,.0f} MB are free"
        raise ImageError(f"{path}: is not stored row by row and needs {sizes}")


def reorient(
    blocks: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    dtype: np.dtype,
    orientation: int,
    count: int,
    folder: Path | None,
    spooled: int,
) -> Iterator[np.ndarray]:
    """Turn an image upright. Yields arrays [count, width, channels]; the last may be shorter.

    Args:
        blocks: its successive rows [any number, width, channels] as stored.
        shape: height, width and channels, as stored.
        dtype: of the blocks.
        orientation: EXIF's, 2 to 8 (Exif 2.32, table 6): whether rows become columns, and what is then reversed.
        count: rows at once.
        folder: where the temporary file goes; None: the system's folder for them.
        spooled: bytes of pixels up to which they stay in memory instead.

    Raises:
        OSError: if the temporary file cannot be written.
    """
    transposed, down, across = orientation >= 5, orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    height, width, channels = shape
    pixel = channels * dtype.itemsize
    with io.BytesIO() if height * width * pixel <= spooled else TemporaryFile(dir=folder) as file:
        heights = []
        for block in blocks:
            # Transposed, the rows wanted of a block lie together.
            file.write(np.ascontiguousarray(block.swapaxes(0, 1) if transposed else block).data)
            heights.append(len(block))

        def get(where: int, rows: int, columns: int) -> np.ndarray:
            file.seek(where * pixel)
            return np.frombuffer(file.read(rows * columns * pixel), dtype).reshape(rows, columns, channels)

        length = width if transposed else height
        for top in range(0, length, count):
            n = min(count, length - top)
            first = length - top - n if down else top
            if transposed:
                out, y = np.empty((n, height, channels), dtype), 0
                for rows in heights:
                    out[:, y : y + rows] = get(y * width + first * rows, n, rows)
                    y += rows
            else:
                out = get(first * width, n, width)
            yield out[:: -1 if down else 1, :: -1 if across else 1]


def deinterlace(path: Path, width: int, height: int, count: int, folder: Path | None) -> Iterator[np.ndarray]:
    """Read an interlaced PNG. Yields arrays [count, width, channels]; the last may be shorter.

    Each of its seven passes is a PNG but for the header, so each is put into a file of its own and decoded in step
    with the others.

    Raises:
        OSError, zlib.error, pyvips.Error: for what cannot be written or decoded.
    """
    with ExitStack() as stack:
        passes, sources = [], []
        for place, file in _split_passes(path, width, height, folder, stack):
            source = source_of(file.fileno())
            sources.append(source)
            image = pyvips.Operation.call("pngload_source", source, access="sequential", fail_on="error")
            passes.append((place, image, pyvips.Region.new(image)))
        dtype = np.uint16 if passes[0][1].format == "ushort" else np.uint8
        for top in range(0, height, count):
            out = np.empty((min(count, height - top), width, passes[0][1].bands), dtype)
            for (x, y, dx, dy), image, region in passes:
                first, last = (max(0, -((y - row) // dy)) for row in (top, top + len(out)))
                last = min(last, image.height)
                if first < last:
                    pixels = np.frombuffer(region.fetch(0, first, image.width, last - first), dtype)
                    pixels = pixels.reshape(last - first, image.width, -1)
                    out[first * dy + y - top :: dy, x::dx] = pixels
            yield out


def _split_passes(
    path: Path, width: int, height: int, folder: Path | None, stack: ExitStack
) -> list[tuple[tuple[int, int, int, int], BinaryIO]]:
    """The passes that hold pixels, each as (its place in `_ADAM7`, a file that is a PNG of its own)."""
    with open(path, "rb") as png:
        png.seek(8)
        length, kind = _read_head(png)
        chunks = {}
        while kind != b"IDAT":
            chunks[kind] = png.read(length)
            png.seek(4, os.SEEK_CUR)
            length, kind = _read_head(png)
        head = chunks[b"IHDR"]
        bits = head[8] * _SAMPLES[head[9]]
        pixels, found = _IdatReader(png, length), []
        for place in _ADAM7:
            x, y, dx, dy = place
            columns, rows = -((x - width) // dx), -((y - height) // dy)
            if columns < 1 or rows < 1:
                continue
            file = stack.enter_context(TemporaryFile(dir=folder))  # noqa: SIM115 - so it is
            file.write(_SIGNATURE)
            _write_chunk(file, b"IHDR", struct.pack(">II", columns, rows) + head[8:12] + b"\0")
            for kind in (b"PLTE", b"tRNS"):
                if kind in chunks:
                    _write_chunk(file, kind, chunks[kind])
            deflate = zlib.compressobj(level=0)
            left = rows * (1 + (columns * bits + 7) // 8)  # a filter's number before each row
            while left:
                data = pixels.read(min(left, 2**20))
                left -= len(data)
                _write_chunk(file, b"IDAT", deflate.compress(data))
            _write_chunk(file, b"IDAT", deflate.flush())
            _write_chunk(file, b"IEND", b"")
            file.flush()
            file.seek(0)
            found.append((place, file))
        pixels.finish()
        return found


class _IdatReader:
    """Reads and inflates the IDAT chunks of a PNG. png: at the data of the first, which is `length` bytes long."""

    def __init__(self, png: BinaryIO, length: int) -> None:
        self._png, self._left, self._check = png, length, zlib.crc32(b"IDAT")
        self._inflate = zlib.decompressobj()

    def read(self, size: int) -> bytes:
        """Read 1 to `size` bytes. Raises zlib.error if there are no more, or not as they were written."""
        data = b""
        while not data:
            data = self._inflate.decompress(self._inflate.unconsumed_tail or self._next(), size)
        return data

    def _next(self) -> bytes:
        while not self._left:
            self.finish()
            self._left, kind = _read_head(self._png)
            if kind != b"IDAT" or self._inflate.eof:
                raise zlib.error("pixels are missing")
            self._check = zlib.crc32(kind)
        data = self._png.read(min(self._left, 2**16))
        if not data:
            raise zlib.error("it ends too early")
        self._left -= len(data)
        self._check = zlib.crc32(data, self._check)
        return data

    def finish(self) -> None:
        """Read the rest of the chunk. Raises zlib.error if it is damaged."""
        while self._left:
            self._next()
        if self._png.read(4) != self._check.to_bytes(4, "big"):
            raise zlib.error("a checksum is wrong")


def _read_head(png: BinaryIO) -> tuple[int, bytes]:
    """Read length and kind of the next chunk. Raises zlib.error if there is none."""
    head = png.read(8)
    if len(head) < 8:
        raise zlib.error("it ends too early")
    return int.from_bytes(head[:4], "big"), head[4:]


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))

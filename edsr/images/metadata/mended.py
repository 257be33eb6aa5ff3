"""A file read as if some of its bytes were others."""

import os
import weakref
from collections.abc import Mapping
from pathlib import Path

import pyvips


def open_mended(path: Path, mends: Mapping[int, bytes]) -> pyvips.SourceCustom:
    """A source for libvips, which must be kept as long as an image reads from it.

    Args:
        path: the file; it is closed with the source.
        mends: offset -> the bytes that stand there instead.
    """
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def read(size: int) -> bytes:
        start = os.lseek(file, 0, os.SEEK_CUR)
        data = bytearray(os.read(file, size))
        for at, instead in mends.items():
            for i, value in enumerate(instead, at - start):
                if 0 <= i < len(data):
                    data[i] = value
        return bytes(data)

    def seek(offset: int, whence: int) -> int:
        try:
            return os.lseek(file, offset, whence)
        except (OSError, ValueError):
            return -1

    source = pyvips.SourceCustom()
    weakref.finalize(source, os.close, file)
    source.on_read(read)
    source.on_seek(seek)
    return source

"""The chunks of a WebP besides pixels (RFC 9649), and EXIF data put into a finished one."""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from .entries import MAX_BYTES, Entry

_PIXELS = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"}
_KINDS = {b"EXIF": ("exif", "EXIF"), b"XMP ": ("xmp", "XMP"), b"ICCP": ("icc", "ICC profile")}


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """(name, size) of each chunk; the file stands before its data then."""
    at, end = 12, _end(file)
    file.seek(at)
    while at < end and len(start := file.read(8)) == 8:
        kind, size = struct.unpack("<4sI", start)
        at += 8 + size + size % 2
        yield kind, size
        file.seek(at)


def _end(file: BinaryIO) -> int:
    """Where the image ends by its own words; decoders read no further."""
    file.seek(4)
    return 8 + int.from_bytes(file.read(4), "little")


def scan(file: BinaryIO) -> Iterator[Entry]:
    """List a WebP's entries."""
    for kind, size in _chunks(file):
        if kind in _PIXELS:
            continue
        code = kind.decode("latin-1").strip()
        if kind not in _KINDS:
            yield Entry("other", code, code, b"", size)
        elif size > MAX_BYTES:
            yield Entry("large", code, code, b"", size)
        else:
            name, label = _KINDS[kind]
            data = file.read(size)
            if len(data) == size:
                yield Entry(name, code, label, data.removeprefix(b"Exif\0\0") if name == "exif" else data, size)
    end = _end(file)
    behind = file.seek(0, os.SEEK_END) - end
    if behind > 16:
        yield Entry("other", "end", "bytes after the image's end", b"", behind)


def replace_exif(file: BinaryIO, exif: bytes) -> None:
    """Put other EXIF data into a finished WebP that has some, at its end, before XMP."""
    places = {kind: (file.tell(), size) for kind, size in _chunks(file)}
    if b"EXIF" not in places:
        return
    start, size = places[b"EXIF"]
    file.seek(start + size + size % 2)
    rest = file.read()  # XMP, at most
    file.seek(start - 8)
    file.write(struct.pack("<4sI", b"EXIF", len(exif)) + exif + bytes(len(exif) % 2) + rest)
    file.truncate()
    end = file.seek(0, os.SEEK_END)
    file.seek(4)
    file.write(struct.pack("<I", end - 8))

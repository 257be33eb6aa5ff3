"""The extensions of a GIF besides its frames (GIF89a, sections 23 to 27; XMP part 3; ICC.1, annex B)."""

import os
from collections.abc import Iterator
from typing import BinaryIO

from .entries import MAX_BYTES, Entry, read_exactly

_OF_ANIMATIONS = {b"NETSCAPE2.0", b"ANIMEXTS1.0"}
_KINDS = {
    b"ICCRGBG1012": ("icc", "ICC profile"),
    b"MGKIPTC0000": ("iptc", "IPTC data"),
    b"MGK8BIM0000": ("photoshop", "Photoshop's image resources"),
}
_XMP_END = b"\x01\xff\xfe\xfd"  # begins the bytes that lead readers of blocks to the end of XMP


def scan(file: BinaryIO) -> Iterator[Entry]:
    """List a GIF's entries."""
    file.seek(10)
    _skip_colors(file, read_exactly(file, 3)[0])
    while (start := file.read(1)) in (b",", b"!"):
        if start == b",":
            _skip_colors(file, read_exactly(file, 9)[8])
            read_exactly(file, 1)
            _blocks(file)
            continue
        label = read_exactly(file, 1)
        if label == b"\xff":
            yield from _application(file)
            continue
        data, _, size = _blocks(file)
        if label == b"\xfe":
            yield Entry("comment" if size <= MAX_BYTES else "large", "GIF", "comment", data, size)
        elif label == b"\x01":
            yield Entry("other", "GIF", "text to be drawn over the image", b"", size)
    at = file.tell()
    if start == b";" and (size := file.seek(0, os.SEEK_END) - at) > 16:
        yield Entry("other", "end", "bytes after the image's end", b"", size)


def density(file: BinaryIO) -> tuple[int, int, int] | None:
    """The shape of pixels, without a unit; None if not stated."""
    file.seek(12)
    ratio = read_exactly(file, 1)[0]
    return (64, ratio + 15, 0) if ratio else None  # a pixel's width to its height is (ratio + 15) : 64


def _application(file: BinaryIO) -> Iterator[Entry]:
    data, with_lengths, size = _blocks(file)
    name, data = data[:11], data[11:]
    if name == b"XMP DataXMP":  # stands there as it is: the lengths of blocks are characters of it
        end = with_lengths.rfind(_XMP_END)
        packet = with_lengths[12:end] if end > 0 else data
        yield Entry("xmp" if packet else "large" if size > MAX_BYTES else "damaged", "GIF", "XMP", packet, size)
    elif name in _KINDS:
        kind, label = _KINDS[name]
        yield Entry(kind if size <= MAX_BYTES else "large", "GIF", label, data, size)
    elif name not in _OF_ANIMATIONS:
        yield Entry("other", "GIF", f"GIF application {name.decode('latin-1')}", b"", size)


def _blocks(file: BinaryIO) -> tuple[bytes, bytes, int]:
    """(what the following blocks hold, the same with their lengths, bytes); nothing of what is above `MAX_BYTES`."""
    parts, size = [], 0
    while length := read_exactly(file, 1)[0]:
        part = read_exactly(file, length)
        size += length
        if size <= MAX_BYTES:
            parts.append(part)
    if size > MAX_BYTES:
        parts = []
    return b"".join(parts), b"".join(bytes((len(part),)) + part for part in parts), size


def _skip_colors(file: BinaryIO, flags: int) -> None:
    """Pass over a color table, if the flags say that there is one."""
    if flags & 0x80:
        file.seek(3 * 2 ** ((flags & 7) + 1), os.SEEK_CUR)

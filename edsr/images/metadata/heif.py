"""The boxes of an AVIF or HEIF file besides pixels (ISO/IEC 14496-12, 23008-12), and EXIF data put into a finished one.

EXIF, XMP and profile themselves are given by libvips.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from .entries import Entry, list_names

_MAX_META = 2**24
_OUTER = {b"ftyp", b"meta", b"mdat", b"free", b"skip", b"wide", b"styp", b"pdin", b"moov"}
ALPHA = {"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", "urn:mpeg:hevc:2015:auxid:1", "urn:mpeg:avc:2015:auxid:1"}
"""What an auxiliary image calls itself that is alpha."""
IMAGE_ITEMS = frozenset((b"av01", b"hvc1", b"grid", b"iden", b"iovl"))
"""Types of items that are images."""
_ITEMS = IMAGE_ITEMS | {b"Exif", b"av1 "}
_XMP_TYPE = b"application/rdf+xml"


class Box(NamedTuple):
    """A box: its kind, and where its contents begin and end."""

    kind: bytes
    start: int
    end: int


def boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """The boxes in data[start:end], whose contents lie in data[box.start:box.end]."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= end:
            size, head = struct.unpack_from(">Q", data, start + 8)[0], 16
        size = size or end - start
        if size < head:
            return
        yield Box(kind, start + head, min(start + size, end))
        start += size


def _outer_boxes(file: BinaryIO) -> Iterator[Box]:
    """The boxes that the file consists of; bytes behind them, which are none, are one of no kind."""
    end, at = file.seek(0, os.SEEK_END), 0
    while at < end:
        file.seek(at)
        start = file.read(16).ljust(16, b"\0")
        size, kind, large = struct.unpack(">I4sQ", start)
        head, size = (16, large) if size == 1 else (8, size or end - at)
        if size < head or at + 8 > end or not all(32 <= byte < 127 for byte in kind):
            yield Box(b"", at, end)
            return
        yield Box(kind, at + head, at + size)
        at += size


def read_meta(file: BinaryIO) -> tuple[bytes, int]:
    """(the meta box's contents, where they begin in the file); nothing if there is none."""
    box = next((box for box in _outer_boxes(file) if box.kind == b"meta"), None)
    if box is None:
        return b"", 0
    start = box.start + 4  # version and flags
    file.seek(start)
    return file.read(max(0, min(box.end - start, _MAX_META))), start


def list_items(data: bytes) -> dict[int, tuple[bytes, bytes]]:
    """Item -> (its type, its content type or name)."""
    found: dict[int, tuple[bytes, bytes]] = {}
    for box in boxes(data, 0, len(data)):
        if box.kind == b"iinf":
            start = box.start + (6 if data[box.start : box.start + 1] == b"\0" else 8)
            for each in boxes(data, start, box.end):
                body = data[each.start : each.end]
                if each.kind == b"infe" and body[:1] in (b"\2", b"\3"):
                    wide = body[0] == 3
                    at = 8 if wide else 6
                    number = int.from_bytes(body[4:at], "big")
                    kind = body[at + 2 : at + 6]
                    name, _, rest = body[at + 6 :].partition(b"\0")
                    found[number] = kind, rest.split(b"\0")[0] if kind == b"mime" else name
    return found


def scan(file: BinaryIO) -> Iterator[Entry]:
    """List what libvips does not give: thumbnails, gain maps, other items, the shape of pixels, mastering data."""
    data, _ = read_meta(file)
    others = []
    for kind, content in list_items(data).values():
        if kind == b"tmap":
            yield Entry("gain map", "tmap", "gain map")
        elif kind == b"mime" and content != _XMP_TYPE:
            others.append(f"{kind.decode()} ({content.decode('latin-1')})")
        elif kind not in _ITEMS and kind != b"mime":
            others.append(kind.decode("latin-1"))
    for box in boxes(data, 0, len(data)):
        if box.kind == b"iref":
            kinds = [each.kind for each in boxes(data, box.start + 4, box.end)]
            if b"thmb" in kinds:
                yield Entry("thumbnail", "thmb", "thumbnail")
        elif box.kind == b"iprp":
            for inner in boxes(data, box.start, box.end):
                if inner.kind == b"ipco":
                    kinds = {each.kind for each in boxes(data, inner.start, inner.end)}
                    others += [kind.decode() for kind in (b"clli", b"mdcv") if kind in kinds]
                    yield from _auxiliary(data, inner)
    for box in _outer_boxes(file):
        if not box.kind and box.end - box.start > 16:
            others.append("bytes after the image's end")
        elif box.kind and box.kind not in _OUTER:
            others.append(f"box {box.kind.decode('ascii')}")
    if others:
        yield Entry("other", "meta", list_names(others))


def _auxiliary(data: bytes, properties: Box) -> Iterator[Entry]:
    """Images that accompany the image, but for its alpha: depth, mattes, gain maps."""
    for box in boxes(data, properties.start, properties.end):
        if box.kind == b"auxC":
            name = data[box.start + 4 : box.end].partition(b"\0")[0].decode("latin-1")
            if "gainmap" in name.lower():
                yield Entry("gain map", "auxC", "gain map")
            elif name not in ALPHA:
                yield Entry("other", "auxC", f"auxiliary image ({name.rpartition(':')[2]})")


def has_turn(file: BinaryIO) -> bool:
    """Whether the file itself says that its image is to be turned or mirrored; the decoder does so."""
    data, _ = read_meta(file)
    return any(name in data for name in (b"irot", b"imir"))


def density(file: BinaryIO) -> tuple[int, int, int] | None:
    """The shape of pixels, width and height, without a unit; None if not stated."""
    data, _ = read_meta(file)
    at = data.find(b"pasp")
    if at < 4 or len(data) < at + 12:
        return None
    width, height = struct.unpack_from(">II", data, at + 4)
    return (height, width, 0) if width and height else None  # per unit of length there are more of narrow ones


def replace_exif(file: BinaryIO, exif: bytes) -> bool:
    """Put other EXIF data into a finished AVIF that has some: at its end; the old becomes unused.

    Returns:
        False, with the file unchanged, if its list of items has another form than libheif's.
    """
    data, start = read_meta(file)
    number = next((number for number, (kind, _) in list_items(data).items() if kind == b"Exif"), None)
    place = next((box for box in boxes(data, 0, len(data)) if box.kind == b"iloc"), None)
    if number is None or place is None or data[place.start] > 1:
        return False
    version, sizes = data[place.start], struct.unpack_from(">H", data, place.start + 4)[0]
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    at = place.start + 8
    for _ in range(struct.unpack_from(">H", data, place.start + 6)[0]):
        item, *_ = struct.unpack_from(">H", data, at)
        at += 2 + 2 * version + 2 + base
        extents = struct.unpack_from(">H", data, at)[0]
        step = offset + length + (index if version else 0)
        if item == number:
            if extents != 1 or (offset, length) != (4, 4) or (version and (index or data[at - base - 3] & 15)):
                return False
            end = file.seek(0, os.SEEK_END)
            content = bytes(4) + exif
            origin = int.from_bytes(data[at - base : at], "big")
            if end + 8 + len(content) >= 2**32 or origin > end:
                return False
            file.write(struct.pack(">I4s", 8 + len(content), b"mdat") + content)
            file.seek(start + at + 2)
            file.write(struct.pack(">II", end + 8 - origin, len(content)))
            return True
        at += 2 + extents * step
    return False

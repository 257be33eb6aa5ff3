"""The segments of a JPEG besides pixels, before them and after (ITU-T T.81, annex B; Exif 2.32; XMP part 3)."""

import hashlib
import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from .entries import Entry

EXIF, XMP, EXTENDED = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
ICC, PHOTOSHOP = b"ICC_PROFILE\0", b"Photoshop 3.0\0"
MOST = 65_533  # bytes in a segment
MOST_ICC = 255 * (MOST - 14)
_BLOCK = 2**20
_MOST_SEGMENTS = 100_000
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")  # in coded pixels 0xff is followed by 0, or counts restarts


def scan(file: BinaryIO) -> Iterator[Entry]:
    """List a JPEG's entries. Profiles in several segments are put together."""
    file.seek(2)
    profile: dict[int, bytes] = {}
    parts, seen = 0, set()
    for _ in range(_MOST_SEGMENTS):
        if (marker := _next_marker(file)) in (None, 0xD9):
            break
        if marker in (0x01, 0xD8):
            continue
        start = file.read(2)
        if len(start) < 2:
            break
        length = int.from_bytes(start, "big") - 2
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            file.seek(max(0, length), os.SEEK_CUR)
            continue
        data = file.read(max(0, length))
        if marker == 0xE2 and data.startswith(ICC) and len(data) >= 14:
            parts = data[13]
            if profile.setdefault(data[12], data[14:]) != data[14:] and "icc" not in seen:
                seen.add("icc")
                yield Entry("other", "APP2", "a second color profile", b"", len(data))
            continue
        entry = _entry(marker, data)
        if entry and not (entry.kind == "images" and "images" in seen):
            seen.add(entry.kind)
            yield entry
    else:
        raise ValueError(f"more than {_MOST_SEGMENTS} segments")
    if profile:
        whole = sorted(profile) == list(range(1, parts + 1))
        data = b"".join(profile[key] for key in sorted(profile))
        yield Entry("icc" if whole else "damaged", "APP2", "ICC profile", data if whole else b"", len(data))
    if marker == 0xD9:
        yield from _after(file, "images" in seen)


def _after(file: BinaryIO, known: bool) -> Iterator[Entry]:
    """What follows the end of the image."""
    at = file.tell()
    size = file.seek(0, os.SEEK_END) - at
    if size <= 0:
        return
    file.seek(at)
    head = file.read(min(size, 4096)).lstrip(b"\0\xff\r\n ")
    if head.startswith(b"\xd8\xff"):
        if not known:
            yield Entry("images", "end", "further images", b"", size)
    elif head and size > 16:
        yield Entry("other", "end", "bytes after the image's end", b"", size)


def density(file: BinaryIO) -> tuple[int, int, int] | None:
    """What JFIF says: horizontally, vertically, unit: 1 is an inch, 2 a centimeter, 0 none."""
    file.seek(2)
    while (marker := _next_marker(file)) not in (None, 0xD9, 0xDA):
        start = file.read(2 + 12)
        if marker == 0xE0 and start[2:7] == b"JFIF\0" and len(start) == 14:
            unit, x, y = struct.unpack_from(">BHH", start, 9)
            return x, y, unit
        file.seek(int.from_bytes(start[:2], "big") - len(start), os.SEEK_CUR)
    return None


def _next_marker(file: BinaryIO) -> int | None:
    """The next marker's code; coded pixels are passed over. The file stands behind it."""
    tail, size = b"", 4096
    while block := file.read(size):
        data = tail + block
        if found := _MARKER.search(data):
            file.seek(found.end() - len(data), os.SEEK_CUR)
            return found[1][0]
        tail, size = data[-1:], min(4 * size, _BLOCK)
    return None


def _entry(marker: int, data: bytes) -> Entry | None:
    size = len(data)
    if marker == 0xFE:
        return Entry("comment", "COM", "comment", data, size)
    code = f"APP{marker - 0xE0}"
    label = re.match(rb"[\w ./:+-]*", data[:40])
    name = f"{code} ({label[0].decode('ascii', 'replace').strip()})" if label and label[0].strip() else code
    if marker == 0xE0 and data.startswith(b"JFIF\0"):
        return Entry("thumbnail", code, "JFIF thumbnail", b"", size) if len(data) > 14 and data[12] * data[13] else None
    if marker == 0xE0 and data.startswith(b"JFXX\0"):
        return Entry("thumbnail", code, "JFXX thumbnail", b"", size)
    if marker == 0xE1 and data.startswith(b"Exif\0"):
        return Entry("exif", code, "EXIF", data[6:], size)
    if marker == 0xE1 and data.startswith(XMP):
        return Entry("xmp", code, "XMP", data[len(XMP) :], size)
    if marker == 0xE1 and data.startswith(EXTENDED):
        return Entry("extended xmp", code, "extended XMP", data, size)
    if marker == 0xE2 and data.startswith(b"MPF\0"):
        return Entry("images", code, "further images (MPF)", b"", size)
    if marker == 0xE2 and data.startswith(b"urn:iso:std:iso:ts:21496"):
        return Entry("gain map", code, "gain map", b"", size)
    if marker == 0xED and data.startswith(PHOTOSHOP):
        return Entry("photoshop", code, "Photoshop's image resources", data[len(PHOTOSHOP) :], size)
    if marker == 0xEE and data.startswith(b"Adobe"):
        return None  # says how the pixels are coded
    return Entry("other", code, name, b"", size)


# ---- written


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def jfif(x: int, y: int, unit: int) -> bytes:
    return segment(0xE0, b"JFIF\0\1\2" + struct.pack(">BHHBB", unit, x, y, 0, 0))


def profile_segments(profile: bytes) -> bytes:
    step = MOST - 14
    parts = [profile[at : at + step] for at in range(0, len(profile), step)]
    return b"".join(segment(0xE2, ICC + bytes((i + 1, len(parts))) + part) for i, part in enumerate(parts))


def _pointer(name: str) -> bytes:
    """XMP that says no more than that there is extended XMP of this name."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:xmpNote="http://ns.adobe.com/xmp/note/" '
        f'xmpNote:HasExtendedXMP="{name}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def join_extended(packet: bytes, extended: list[bytes]) -> bytes:
    """What `xmp_segments` has made two of; none of it if they are something else."""
    at = len(EXTENDED) + 40
    parts = {part[at - 4 : at]: part[at:] for part in extended}
    whole = b"".join(parts[place] for place in sorted(parts))
    name = hashlib.md5(whole, usedforsecurity=False).hexdigest().upper()
    return whole if packet == _pointer(name) else b""


def xmp_segments(packet: bytes) -> bytes:
    """XMP, as extended XMP where one segment does not hold it."""
    if len(XMP) + len(packet) <= MOST:
        return segment(0xE1, XMP + packet)
    name = hashlib.md5(packet, usedforsecurity=False).hexdigest().upper()
    out, step = segment(0xE1, XMP + _pointer(name)), 65_400
    for at in range(0, len(packet), step):
        head = EXTENDED + name.encode() + struct.pack(">II", len(packet), at)
        out += segment(0xE1, head + packet[at : at + step])
    return out


def photoshop_segments(resources: bytes) -> bytes:
    """Photoshop's resources; they may be cut anywhere, since readers put segments of this name together."""
    step = MOST - len(PHOTOSHOP)
    parts = (resources[at : at + step] for at in range(0, len(resources), step))
    return b"".join(segment(0xED, PHOTOSHOP + part) for part in parts)


class Splice:
    """Passes a JPEG on as it is written, with other segments after its first marker."""

    def __init__(self, head: bytes) -> None:
        self._head, self._held, self._done = head, b"", False

    def feed(self, data: bytes) -> bytes:
        """What is to be written for the next bytes of the stream."""
        if self._done:
            return data
        self._held += data
        if len(self._held) < 2:
            return b""
        self._done = True
        return self._held[:2] + self._head + self._held[2:]

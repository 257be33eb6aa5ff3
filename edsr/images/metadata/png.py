"""The chunks of a PNG besides pixels, before them and after (PNG third edition, section 11)."""

import os
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from .entries import MAX_BYTES, Entry, read_exactly

_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"pHYs"}
_COLOR = {b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI"}
_TEXT = {b"tEXt", b"zTXt", b"iTXt"}
# These count pixels, though their names say that they may be copied.
_OF_THE_OLD_SIZE = {b"oFFs", b"caNv", b"vpAg", b"npTc", b"npLb", b"npOl"}
_XMP = b"XML:com.adobe.xmp"
_MOST_INFLATED = 2**27  # bytes of all chunks together
_RAW_KINDS = {"exif": "exif", "app1": "exif", "xmp": "xmp", "icc": "icc", "icm": "icc", "iptc": "iptc", "8bim": "iptc"}


def scan(file: BinaryIO) -> Iterator[Entry]:
    """List a PNG's entries. What ImageMagick keeps as hexadecimal text is an entry of its own kind, of code "raw"."""
    end = file.seek(0, os.SEEK_END)
    file.seek(8)
    bits, behind, budget = 8, False, [_MOST_INFLATED]
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind == b"IHDR" and length == 13:
            header = file.read(13).ljust(13, b"\0")
            bits = 8 if header[9] == 3 else header[8]  # of a palette's colors, of a sample
            file.seek(4, os.SEEK_CUR)
            continue
        if kind == b"IEND":
            if end > file.tell() + 4 + 16:  # a few bytes are padding
                yield Entry("other", "end", "bytes after the image's end", b"", end - file.tell() - 4)
            return
        behind |= kind == b"IDAT"
        if kind in _PIXELS or not kind.isalpha():
            file.seek(length + 4, os.SEEK_CUR)
            continue
        code = kind.decode("ascii")
        if length > MAX_BYTES:
            file.seek(length + 4, os.SEEK_CUR)
            yield Entry("large", code, code, b"", length)
            continue
        try:
            data = read_exactly(file, length)
            check = int.from_bytes(read_exactly(file, 4), "big")
        except EOFError:
            return
        if check != zlib.crc32(data, zlib.crc32(kind)):
            yield Entry("damaged", code, code, b"", length)
            continue
        if kind != b"sBIT" or any(value != bits for value in data):  # else all bits are significant, as in the result
            if behind and (kind in _COLOR or kind == b"iCCP"):  # where all decoders pass over it
                yield Entry("other", code, f"{code} behind the pixels", b"", length)
            else:
                yield _entry(kind, code, data, budget)


def density(file: BinaryIO) -> tuple[float, float, int] | None:
    """What pHYs says: pixels per unit horizontally and vertically, and the unit: 1 is a meter, 0 none."""
    file.seek(8)
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind == b"pHYs" and length == 9 and len(data := file.read(9)) == 9:
            return struct.unpack(">IIB", data)
        if kind == b"IDAT":
            return None
        file.seek(length + 4, os.SEEK_CUR)
    return None


def _entry(kind: bytes, code: str, data: bytes, budget: list[int]) -> Entry:
    size = len(data)
    if kind == b"eXIf":
        return Entry("exif", code, "EXIF", data.removeprefix(b"Exif\0\0"), size)
    if kind == b"iCCP":
        profile = _inflate(data.partition(b"\0")[2][1:], budget)
        return Entry("icc" if profile else "damaged", code, "ICC profile", profile or b"", size)
    if kind in _COLOR:
        return Entry("color", code, code, data, size)
    if kind in _TEXT:
        keyword, _, text = data.partition(b"\0")
        if kind == b"iTXt" and keyword == _XMP:
            packet = _international(text, budget)
            return Entry("xmp" if packet else "damaged", code, "XMP", packet or b"", size)
        if keyword == _XMP:
            packet = _inflate(text[1:], budget) if kind == b"zTXt" else text
            return Entry("xmp" if packet else "damaged", code, "XMP", packet or b"", size)
        name = keyword.decode("latin-1")
        if name.lower().startswith("raw profile type "):
            plain = _inflate(text[1:], budget) if kind == b"zTXt" else text
            found = _raw_profile(name[17:].strip().lower(), plain)
            if found:
                return found._replace(size=size)
        return Entry("text", code, name, data, size)
    if kind in _OF_THE_OLD_SIZE:
        return Entry("other", code, code, b"", size)
    return Entry("other", code, code, data if kind[3:].islower() else b"", size)  # lower case: safe to copy


def _inflate(data: bytes, budget: list[int]) -> bytes | None:
    """Undo the compression; None if damaged or above `MAX_BYTES`, or if the budget of bytes is used up."""
    stream, limit = zlib.decompressobj(), min(MAX_BYTES, budget[0])
    if limit <= 0:
        return None
    try:
        plain = stream.decompress(data, limit)
    except zlib.error:
        budget[0] -= min(limit, 1032 * len(data))  # deflate makes no more of it
        return None
    budget[0] -= len(plain)
    return plain if stream.eof else None


def _international(text: bytes, budget: list[int]) -> bytes | None:
    """What an iTXt chunk holds behind its keyword; None if damaged."""
    parts = text[2:].split(b"\0", 2)  # language, keyword in it, text
    if len(text) < 2 or len(parts) < 3:
        return None
    return _inflate(parts[2], budget) if text[0] else parts[2]


def _raw_profile(kind: str, text: bytes | None) -> Entry | None:
    """What ImageMagick's text holds: a line break, its kind, its length, and hexadecimal digits."""
    lines = (text or b"").lstrip().split(b"\n", 2)
    if len(lines) < 3 or kind not in _RAW_KINDS or not re.fullmatch(rb" *\d{1,9} *\r?", lines[1]):
        return None
    try:
        data = bytes.fromhex(lines[2].rstrip(b"\0").decode("ascii"))[: int(lines[1])]
    except ValueError:
        return None
    kind = _RAW_KINDS[kind]
    xap = b"http://ns.adobe.com/xap/1.0/\0"
    if kind == "exif" and data.startswith(xap):
        return Entry("xmp", "raw", "XMP", data[len(xap) :])
    if kind == "exif":
        data = data.removeprefix(b"Exif\0\0")
    return Entry("photoshop" if kind == "iptc" else kind, "raw", kind.upper(), data)


# ---- written


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def profile_chunk(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))


def xmp_chunk(packet: bytes) -> bytes:
    return chunk(b"iTXt", _XMP + b"\0\0\0\0\0" + packet)


def iptc_chunk(resources: bytes) -> bytes:
    """Photoshop's resources in ImageMagick's way, which ExifTool and others read, too."""
    digits = resources.hex()  # without "Photoshop 3.0", which ExifTool takes for damage
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    text = f"\niptc\n{len(digits) // 2:8}\n{lines}\n".encode()
    return chunk(b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(text))


def comment_chunk(comment: bytes) -> bytes:
    """A JPEG's comment as a PNG's text of that keyword."""
    try:
        text = comment.decode("utf-8")
    except UnicodeDecodeError:
        text = comment.decode("latin-1")
    text = text.replace("\0", "")
    if text.isascii():
        return chunk(b"tEXt", b"Comment\0" + text.encode())
    return chunk(b"iTXt", b"Comment\0\0\0\0\0" + text.encode())


class Splice:
    """Passes a PNG on as it is written, with other chunks after its header and without pHYs.

    The header and what libvips itself puts before the pixels are a few hundred bytes, which are held back.
    """

    def __init__(self, head: bytes) -> None:
        self._head, self._held, self._done = head, b"", False

    def feed(self, data: bytes) -> bytes:
        """What is to be written for the next bytes of the stream."""
        if self._done:
            return data
        self._held += data
        at, kept = 33, self._held[:33]
        while len(self._held) >= at + 8:
            length, kind = struct.unpack_from(">I4s", self._held, at)
            if kind == b"IDAT":
                self._done = True
                return kept + self._head + self._held[at:]
            if len(self._held) < at + 12 + length:
                break
            if kind != b"pHYs":
                kept += self._held[at : at + 12 + length]
            at += 12 + length
        return b""

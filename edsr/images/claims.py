"""What a file claims to hold, against its size: a few bytes can call for hours of work and all of the memory."""

import os
import struct
from pathlib import Path
from typing import BinaryIO

from edsr.errors import ImageError
from edsr.wording import either

from .formats import check_memory

BELIEVED_PIXELS = 2**25
"""Up to so many are believed, however small the file: some formats store a single color in next to nothing."""
PIXELS_PER_BYTE = 10_000
"""What more pixels must be paid for with. Of images of a single color PNG and JPEG have up to 8,256 and 512, WebP with
losses 400, AVIF, WebP without losses and blank pages of TIFF's Group 4 more: 40,000 and above."""
_HEIF_PIXELS = 2**28  # libheif's own limit
_HUFFMAN = {0xC0: 2, 0xC1: 2, 0xC2: 1}
"""JPEG's frames with Huffman codes -> the fewest bits of a block of 8 x 8 samples. A sequential one has a code for its
mean and another that says that nothing else follows; of a progressive one the latter serves for many blocks."""


def check_claim(path: Path, form: str, width: int, height: int, pixels_per_byte: float) -> None:
    """Raise ImageError if a file is too small for the image that it claims to hold.

    Args:
        path: of the file.
        form: its format, as `edsr.images.probe.identify` names it.
        width, height: what its header says, in pixels.
        pixels_per_byte: the most that are believed beyond BELIEVED_PIXELS, such as PIXELS_PER_BYTE.
    """
    pixels, size = width * height, os.path.getsize(path)
    claim = f"{width} x {height} pixels in {size:,} bytes"
    if form in ("AVIF", "HEIF") and pixels > _HEIF_PIXELS:
        raise ImageError(f"{path}: {width} x {height} is more than the {_HEIF_PIXELS:,} pixels that its decoder takes")
    if form == "JPEG" and 8 * size < _fewest_bits(path):
        raise ImageError(f"{path}: damaged or cut off, get an intact copy ({claim} is not possible in a JPEG)")
    if pixels > BELIEVED_PIXELS + pixels_per_byte * size:
        limit = f"more than {BELIEVED_PIXELS / 1e6:.0f} million and {pixels_per_byte:,.0f} for each byte"
        unlimited = either("read it with limits=ReadLimits(pixels_per_byte=math.inf)", "use upscale --unlimited")
        raise ImageError(f"{path}: claims {claim}, {limit}; if that is right, {unlimited}")


def check_before_opening(path: Path, form: str, pixels_per_byte: float) -> None:
    """Raise ImageError for a WebP that is too large, which libvips needs memory to find out."""
    if form == "WebP":
        width, height = webp_size(path)
        check_claim(path, form, width, height, pixels_per_byte)
        check_memory(path, width * height * 10)


def tiff_block(tags: dict[int, int], width: int, height: int) -> int:
    """How many pixels of a TIFF are decoded at a time: a row of strips or tiles; 0 for single rows."""
    if tags.get(322) and tags.get(323):  # whole tiles, however far they reach
        return tags[323] * max(width, tags[322])
    if 323 not in tags and tags.get(284, 1) == 1 and tags.get(259, 1) == 1:  # contiguous, not compressed
        return 0
    return min(tags.get(278, height), height) * width


def webp_size(path: Path) -> tuple[int, int]:
    """Width and height that a WebP claims, (0, 0) if it says none."""
    with open(path, "rb") as file:
        head = file.read(30)
    kind, body = head[12:16], head[20:].ljust(10, b"\0")
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        sides = int.from_bytes(body[1:5], "little")
        return (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _fewest_bits(path: Path) -> int:
    """The fewest bits that the blocks of a JPEG can take, 0 if that is unknown."""
    with open(path, "rb") as file:
        kind, frame = _find_frame(file)
    if kind not in _HUFFMAN or len(frame) < 6:
        return 0
    _, height, width, count = struct.unpack_from(">BHHB", frame)
    factors = [(byte >> 4, byte & 15) for byte in frame[7 : 6 + 3 * count : 3]]
    across, down = (max((factor[i] for factor in factors), default=0) for i in (0, 1))
    if not across or not down:
        return 0
    blocks = sum(-(-width * h // (8 * across)) * -(-height * v // (8 * down)) for h, v in factors)
    return blocks * _HUFFMAN[kind]


def _find_frame(file: BinaryIO) -> tuple[int, bytes]:
    """The marker and the content of a JPEG's frame header; (0, b"") if there is none."""
    file.seek(2)
    while len(start := file.read(2)) == 2 and start[0] == 0xFF:
        marker = start[1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            file.seek(-1, os.SEEK_CUR)
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # without content
            continue
        length = int.from_bytes(file.read(2), "big")
        if length < 2:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker, file.read(length - 2)
        file.seek(length - 2, os.SEEK_CUR)
    return 0, b""

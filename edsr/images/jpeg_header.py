"""Oddities in a JPEG's header, put right for the decoder.

libjpeg speaks of the first oddity only. One that is harmless would hide all damage that comes after it.
"""

import struct
from typing import BinaryIO, NamedTuple

_BARE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)
_YCBCR, _YCCK = 1, 2  # Adobe's color transforms; 0 is none
_MAX_GAP = 2**16  # bytes between two segments
EXTRA_BYTES = "the file is odd, look whether the image is as it should be (extra bytes between two JPEG segments)"
UNMARKED_CMYK = "the JPEG does not say how its CMYK is stored, it is taken as inverted, as Photoshop writes it"


class Oddities(NamedTuple):
    """mends: offset -> the bytes that must stand there. warnings: a line for each that may concern the pixels."""

    mends: dict[int, bytes]
    warnings: tuple[str, ...]


def find_oddities(file: BinaryIO) -> Oddities:
    """What is odd in a JPEG up to its first scan. What is damaged is left to the decoder."""
    mends, warnings, adobe, frame, colors, at = dict[int, bytes](), [], None, 0, 0, 2
    while True:
        file.seek(at)
        head = file.read(4)
        if len(head) < 4:
            break
        if head[0] != 0xFF:  # the decoder passes over what stands there
            gap = file.read(_MAX_GAP)
            gap = (head + gap)[: (head + gap).find(b"\xff")]
            marker = (file.seek(at + len(gap)), file.read(2))[1][1:]
            if not marker or 0xD0 <= marker[0] <= 0xDA:
                break
            mends[at] = b"\xff" * len(gap)
            warnings = [EXTRA_BYTES]
            at += len(gap)
            continue
        marker = head[1]
        if marker == 0xFF or marker in _BARE:
            at += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack(">H", head[2:])
        data = file.read(min(length - 2, 300)) if length >= 2 else b""
        if marker == 0xDA:
            if frame in _SEQUENTIAL and len(data) == length - 2 >= 4 and data[-3:] != b"\0\x3f\0":
                mends[at + 2 + length - 3] = b"\0\x3f\0"  # which coefficients the scan holds: all
            break
        if marker == 0xE0 and data.startswith(b"JFIF\0") and len(data) >= 14 and data[5] not in (1, 2):
            mends[at + 4 + 5] = b"\1"
        elif marker == 0xEE and data.startswith(b"Adobe") and len(data) >= 12:
            adobe = at + 4 + 11, data[11]
        elif marker in _FRAMES and len(data) >= 6:
            frame, colors = marker, data[5]
        elif marker == 0xD9 or length < 2:
            break
        at += 2 + length
    if adobe and colors == 3 and adobe[1] > _YCBCR:
        mends[adobe[0]] = bytes([_YCBCR])
    elif adobe and colors == 4 and adobe[1] not in (0, _YCCK):
        mends[adobe[0]] = bytes([_YCCK])
    elif colors == 4 and not adobe:
        warnings.append(UNMARKED_CMYK)
    return Oddities(mends, tuple(warnings))

"""PNG palettes that have fewer colors than the pixels use: decoders make the others black, without a word."""

import struct
import zlib
from pathlib import Path

import pyvips

from .messages import list_errors

LACKS_COLORS = "its palette has fewer colors than its pixels use, the missing ones are black"
"""What people are told of such an image."""
_MAX_BYTES = 2**26  # of a file that is looked at; it is decoded once more


def lacks_colors(path: Path) -> bool:
    """Whether pixels of a PNG have a number beyond the end of its palette."""
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if data[25:26] != b"\3" or len(data) > _MAX_BYTES:
        return False
    most, parts, colors, at = 2 ** data[24] - 1, [data[:8]], 0, 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        part = data[at : at + 12 + length]
        if kind == b"PLTE":
            colors = length // 3
        elif kind == b"IHDR":  # as gray, so that the numbers come out
            body = b"IHDR" + data[16:25] + b"\0" + data[26:29]
            parts.append(struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)))
        elif kind in (b"IDAT", b"IEND"):
            parts.append(part)
        at += len(part)
    if not 0 < colors <= most:
        return False
    try:
        numbers = pyvips.Operation.call("pngload_buffer", b"".join(parts), access="sequential", fail_on="none")
        return round(numbers[0].max() * most / 255) >= colors
    except (pyvips.Error, UnicodeDecodeError) as error:  # what is damaged is told when it is read
        list_errors(error)
        return False

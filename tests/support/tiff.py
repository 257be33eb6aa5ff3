"""TIFFs written by hand, with any tags."""

import struct

import numpy as np

_CODES = {3: "H", 4: "I", 12: "d"}  # TIFF's types


def tiff(pixels: np.ndarray, more: dict[int, tuple[int, tuple | bytes]] | None = None) -> bytes:
    """A little-endian TIFF of [H, W] or [H, W, C], uncompressed, in one strip. more: tag -> (type, values)."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    data = np.ascontiguousarray(pixels).tobytes()
    tags: dict[int, tuple[int, tuple | bytes]] = {
        256: (4, (width,)),
        257: (4, (height,)),
        258: (3, (8 * pixels.itemsize,) * channels),
        259: (3, (1,)),
        262: (3, (2 if channels >= 3 else 1,)),
        273: (4, (8,)),
        277: (3, (channels,)),
        278: (4, (height,)),
        279: (4, (len(data),)),
        339: (3, ({"u": 1, "i": 2, "f": 3}[pixels.dtype.kind],) * channels),
    }
    if channels in (2, 4):
        tags[338] = 3, (2,)  # alpha, not premultiplied
    data += bytes(len(data) % 2)
    tags |= more or {}
    start = 8 + len(data)
    table, values = struct.pack("<H", len(tags)), b""
    for tag, (kind, value) in sorted(tags.items()):
        own = value if isinstance(value, bytes) else struct.pack(f"<{len(value)}{_CODES[kind]}", *value)
        place = own.ljust(4, b"\0")
        if len(own) > 4:
            place = struct.pack("<I", start + 2 + 12 * len(tags) + 4 + len(values))
            values += own + bytes(len(own) % 2)
        table += struct.pack("<HHI", tag, kind, len(value)) + place
    return b"II*\0" + struct.pack("<I", start) + data + table + bytes(4) + values

"""Transparency that a file announces, but its decoder leaves out without a word: the image would come out opaque."""

import os
import struct
from pathlib import Path
from typing import BinaryIO

from .metadata.heif import ALPHA, IMAGE_ITEMS, boxes, list_items, read_meta
from .number_range import read_primary, read_properties

_FLAG, _VP8L_USED = 0x10, 0x10  # that there is alpha: of VP8X, and in the fifth byte of VP8L


def heif_alpha_lost(file: BinaryIO) -> bool:
    """Whether the alpha of an AVIF or HEIF belongs to nothing, or is not described as an image.

    What is not understood is left to the decoder, and so is damage to the data of alpha.
    """
    try:
        return _is_lost(file)
    except (IndexError, struct.error):
        return False


def _is_lost(file: BinaryIO) -> bool:
    data, _ = read_meta(file)
    top = {box.kind: box for box in boxes(data, 0, len(data))}
    if b"pitm" not in top:
        return False
    primary, items = read_primary(data, top[b"pitm"]), list_items(data)
    sources, elsewhere = set[int](), False
    if b"iref" in top:
        references = top[b"iref"]
        size = 4 if data[references.start] else 2
        for box in boxes(data, references.start + 4, references.end):
            if box.kind == b"auxl":
                source, count = _number(data, box.start, size), _number(data, box.start + size, 2)
                first = box.start + size + 2
                targets = [_number(data, at, size) for at in range(first, min(first + size * count, box.end), size)]
                sources |= {source} if primary in targets else set()
                elsewhere |= primary not in targets
    found = False
    for source in sources:
        name = read_properties(data, top, source).get(b"auxC")
        if name is None or items.get(source, (b"",))[0] not in IMAGE_ITEMS:
            return True
        found |= name[4:].partition(b"\0")[0].decode("latin-1") in ALPHA
    return not (found or elsewhere) and any(name.encode() in data for name in ALPHA)


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def webp_alpha_lost(path: Path) -> bool:
    """Whether a WebP's header and its pixels do not agree on whether it has alpha."""
    with open(path, "rb") as file:
        head, kinds = file.read(30), set[bytes]()
        if head[12:16] != b"VP8X":
            return False
        file.seek(30)
        while len(start := file.read(8)) == 8:
            kind, size = start[:4], int.from_bytes(start[4:], "little")
            if kind == b"VP8L":
                used = file.read(5)[4:] or b"\0"
                return bool(used[0] & _VP8L_USED) != bool(head[20] & _FLAG)
            kinds.add(kind)
            if kind == b"VP8 ":
                return (b"ALPH" in kinds) != bool(head[20] & _FLAG)
            file.seek(size + size % 2, os.SEEK_CUR)
    return False

"""A TIFF's pages, and the strips or tiles of its first."""

import zlib
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from . import exif

_MAX_PAGES = 65_536  # that are looked at
_MAX_PLACES = 2**27  # bytes of a table of strips or tiles
_PLACES = {3: "u2", 4: "u4", 16: "u8"}  # TIFF's types of offsets and lengths


def count_pages(file: BinaryIO) -> tuple[int, tuple[str, ...]]:
    """How many images a TIFF holds, apart from reduced copies and masks, and a line for a mask."""
    count, masks = 1, False
    for tags in filter(None, islice(exif.walk_ifds(file, _MAX_PAGES), 1, None)):
        kind, old = tags.get(254, 0), tags.get(255)
        count += not (kind & 5 or old == 2)  # bit 0: a reduced copy, bit 2: a mask; so old files say the former
        masks |= kind & 5 == 4
    return count, ("a transparency mask on a page of its own is left out",) if masks else ()


def find_sparse(path: Path) -> frozenset[int]:
    """The numbers of the strips or tiles that a TIFF leaves out on purpose: offset and length are 0."""
    with open(path, "rb") as file:
        offsets, lengths = list_parts(file)
    return frozenset(map(int, np.flatnonzero((offsets == 0) & (lengths == 0))))


def checksums_hold(path: Path, size: int) -> bool:
    """Whether all deflated strips or tiles are whole, and their checksums hold: libtiff does not read so far.

    Checksums that are missing count as right. size: bytes of the image's pixels; when twice as many have been inflated,
    the rest is not looked at.
    """
    left = 2 * size + 2**26
    with open(path, "rb") as file:
        for offset, length in zip(*(numbers.tolist() for numbers in list_parts(file)), strict=True):
            file.seek(min(offset, 2**62))
            inflate = zlib.decompressobj()
            try:
                while length and left > 0 and not inflate.eof and (data := file.read(min(length, 2**16))):
                    length -= len(data)
                    while data and left > 0:
                        left -= len(inflate.decompress(data, 2**20))
                        data = inflate.unconsumed_tail
            except zlib.error:
                return False
    return True


def list_parts(file: BinaryIO) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and lengths of a TIFF's strips or tiles; none if they are not understood."""
    none = np.zeros(0, np.uint64)
    if (found := exif.find_first(file)) is None:
        return none, none
    form, at = found
    entries, _ = exif.read_ifd(file, form, at)
    for tags in ((324, 325), (273, 279)):
        numbers = [_read_places(file, form, entries[tag]) for tag in tags if tag in entries]
        if len(numbers) == 2 and len(numbers[0]) == len(numbers[1]) > 0:
            return numbers[0], numbers[1]
    return none, none


def _read_places(file: BinaryIO, form: exif.TiffForm, entry: exif.Entry) -> np.ndarray:
    """The numbers of an entry; none if they are not understood. Those of 8 bytes are BigTIFF's, and never EXIF's."""
    kind = np.dtype(form.byte_order + _PLACES.get(entry.field_type, "u1"))
    size = entry.value_count * kind.itemsize
    if kind.itemsize == 1 or size > _MAX_PLACES:
        return np.zeros(0, np.uint64)
    data = entry.data[:size]
    if size > len(entry.data):
        file.seek(min(form.offset.unpack(entry.data)[0], 2**62))
        data = file.read(size)
    return np.frombuffer(data, kind) if len(data) == size else np.zeros(0, np.uint64)

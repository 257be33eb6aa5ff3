"""A TIFF's pages, and the strips or tiles of its first."""

from pathlib import Path
from typing import BinaryIO

import numpy as np

from . import exif

_MAX_PAGES = 65_536  # that are looked at
_MAX_PLACES = 2**27  # bytes of a table of strips or tiles
_PLACES = {3: "u2", 4: "u4", 16: "u8"}  # TIFF's types of offsets and lengths


def count_pages(file: BinaryIO) -> tuple[int, tuple[str, ...]]:
    """How many images a TIFF holds, apart from reduced copies and masks, and a line for a mask."""
    count, masks, seen = 1, False, set[int]()
    if (found := exif.find_first(file)) is None:
        return count, ()
    form, at = found
    while at and at not in seen and len(seen) < _MAX_PAGES:
        entries, _ = exif.read_ifd(file, form, at)
        data = file.read(form.offset.size)
        kind, old = (exif.read_number(form, entries[tag]) or 0 if tag in entries else 0 for tag in (254, 255))
        if seen and entries:
            count += not (kind & 5 or old == 2)  # bit 0: a reduced copy, bit 2: a mask; so old files say the former
            masks |= kind & 5 == 4
        seen.add(at)
        at = form.offset.unpack(data)[0] if len(data) == form.offset.size else 0
    return count, ("a transparency mask on a page of its own is left out",) if masks else ()


def find_sparse(path: Path) -> frozenset[int]:
    """The numbers of the strips or tiles that a TIFF leaves out on purpose: offset and length are 0."""
    with open(path, "rb") as file:
        if (found := exif.find_first(file)) is None:
            return frozenset()
        form, at = found
        entries, _ = exif.read_ifd(file, form, at)
        absent = [np.zeros(0, bool)]
        for tags in ((324, 325), (273, 279)):
            values = [exif.read_value(file, form, entries[tag], _MAX_PLACES) for tag in tags if tag in entries]
            kinds = [_PLACES.get(value.field_type) for value in values if value]
            if len(kinds) == 2 and all(kinds):
                numbers = [
                    np.frombuffer(v.data, form.byte_order + k) for v, k in zip(values, kinds, strict=True) if v and k
                ]
                if len(numbers[0]) == len(numbers[1]):
                    absent.append((numbers[0] == 0) & (numbers[1] == 0))
        return frozenset(map(int, np.flatnonzero(np.concatenate(absent[:2]))))

"""A TIFF's 16-bit floating-point samples, read as whole numbers of the same bits.

libvips makes infinity of NaN when it widens them. So it is told that they are whole numbers, and they are widened here.
"""

import struct
from typing import BinaryIO

import numpy as np

from . import exif

_BITS, _COMPRESSION, _PREDICTOR, _SAMPLE_FORMAT = 258, 259, 317, 339
_BYTEWISE = (1, 5, 8, 32773, 32946, 34925, 50000)  # compressions that do not ask what samples are
_BY_FORMAT = 3  # the predictor that does
_FLOATING, _WHOLE = 3, 1
NO_NAN = "its 16-bit samples without a number (NaN) cannot be told from infinity as it is stored, and become infinity"


def find_half(file: BinaryIO, tags: dict[int, int]) -> dict[int, bytes]:
    """What must stand where, so that 16-bit floats are read as whole numbers.

    Args:
        file: the TIFF.
        tags: the numbers in its first IFD.

    Returns:
        offset -> bytes; nothing if its samples are others, or cannot be read so.
    """
    if tags.get(_COMPRESSION, 1) not in _BYTEWISE or tags.get(_PREDICTOR) == _BY_FORMAT:
        return {}
    if (found := exif.find_first(file)) is None:
        return {}
    form, first = found
    entries, _ = exif.read_ifd(file, form, first)
    if _read_all(file, form, entries.get(_BITS)) != {16}:
        return {}
    if _read_all(file, form, entries.get(_SAMPLE_FORMAT)) != {_FLOATING}:
        return {}
    entry = entries[_SAMPLE_FORMAT]
    at = exif.find_values(file, form, first, _SAMPLE_FORMAT, entry)
    return {at: struct.pack(form.byte_order + "H", _WHOLE) * entry.value_count}


def widen(rows: np.ndarray) -> np.ndarray:
    """The bits of 16-bit floats as float32."""
    return rows.view(np.float16).astype(np.float32)


def _read_all(file: BinaryIO, form: exif.TiffForm, entry: exif.Entry | None) -> set[int]:
    """The different whole numbers of 16 bits in an entry; none if it has others."""
    value = exif.read_value(file, form, entry, 1000) if entry and entry.field_type == 3 else None
    return set(struct.unpack(f"{form.byte_order}{value.value_count}H", value.data)) if value else set()

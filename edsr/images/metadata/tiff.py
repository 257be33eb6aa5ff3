"""The tags of a TIFF's first directory besides those that describe its pixels (TIFF 6.0; registered tags)."""

import struct
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from .. import exif
from ..exif import Entry as Value
from .entries import MAX_BYTES, Entry

ICC, XMP, IPTC, PHOTOSHOP = 34675, 700, 33723, 34377
RESOLUTION = (282, 283, 296)  # horizontally, vertically, unit
STRUCTURE = {
    *range(254, 260), 262, 263, 264, 265, 266, 273, 274, 277, 278, 279, 280, 281, *RESOLUTION, 284, 286, 287, 288,
    289, 290, 292, 293, 297, 317, 320, 321, 322, 323, 324, 325, 326, 327, 328, 332, 333, 334, 336, 338, 339,
    340, 341, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 32995, 32996, 32997, 32998,
    34665, 34853, 40965,
}  # fmt: skip
_GEO = {33550, 33922, 34264, 34735, 34736, 34737, 33920, 50844}
_GDAL, NODATA = 42112, 42113
_BLACK_WHITE = 532
_NAMES = {
    291: "GrayResponseCurve", 301: "TransferFunction", 318: "WhitePoint", 319: "PrimaryChromaticities",
    330: "SubIFDs", 342: "TransferRange", 343: "ClipPath", _BLACK_WHITE: "ReferenceBlackWhite",
    37724: "ImageSourceData", _GDAL: "GDAL_METADATA",
}  # fmt: skip
_KINDS = {ICC: ("icc", "ICC profile"), XMP: ("xmp", "XMP"), IPTC: ("iptc", "IPTC data")}
_KINDS |= {PHOTOSHOP: ("photoshop", "Photoshop's image resources")}


def scan(file: BinaryIO) -> Iterator[Entry]:
    """List a TIFF's entries, but for EXIF data, which `edsr.images.exif.parse` reads."""
    found = exif.find_first(file)
    if found is None:
        return
    form, first = found
    entries, _ = exif.read_ifd(file, form, first)
    if _has_reduced_copy(file):
        yield Entry("thumbnail", "254", "reduced copy")
    for tag, entry in sorted(entries.items()):
        if tag in STRUCTURE or tag in exif.DESCRIPTIVE_TAGS or not entry.value_count:
            continue
        if tag == _BLACK_WHITE and (_photometric(form, entries) == 6 or _full_range(file, form, entry)):
            continue
        size = entry.value_count * exif.SIZES.get(entry.field_type, 1)
        code = str(tag)
        if tag in _KINDS:
            kind, name = _KINDS[tag]
            if size > MAX_BYTES:
                yield Entry("large", code, name, b"", size)
                continue
            value = exif.read_value(file, form, entry, MAX_BYTES + 32)
            if value is None:
                yield Entry("damaged", code, name, b"", size)
            else:
                yield Entry(kind, code, name, _in_order(value.data) if tag == IPTC else value.data, size)
        elif tag in _GEO:
            yield Entry("geo", code, "GeoTIFF", b"", size)
        elif tag == NODATA:
            value = exif.read_value(file, form, entry, 256) if entry.field_type == 2 else None  # a number as text
            yield Entry("nodata", code, "GDAL_NODATA", value.data if value else b"", size)
        else:
            yield Entry("other", code, _NAMES.get(tag, code), b"", size)


def _photometric(form: exif.TiffForm, entries: dict[int, Value]) -> int | None:
    return exif.read_number(form, entries[262]) if 262 in entries else None


def _full_range(file: BinaryIO, form: exif.TiffForm, entry: Value) -> bool:
    """Whether black is 0, and white the most that samples can be, as where the file says nothing of it."""
    value = exif.read_value(file, form, entry, 1000) if entry.field_type == 5 else None
    numbers = struct.unpack(f"{form.byte_order}{len(value.data) // 4}I", value.data) if value else ()
    blacks, whites = numbers[::4], [(n, d) for n, d in zip(numbers[2::4], numbers[3::4], strict=False)]
    return bool(whites) and not any(blacks) and all(d and n / d in (255, 65535) for n, d in whites)


def _has_reduced_copy(file: BinaryIO) -> bool:
    """Whether a further directory is that of a smaller copy of the image."""
    further = islice(exif.walk_ifds(file, 1000), 1, None)
    return any(tags.get(254, 0) & 5 == 1 or tags.get(255) == 2 for tags in further)


def _in_order(data: bytes) -> bytes:
    """IPTC records that somebody has stored as whole numbers of the other byte order, as bytes."""
    if data[:1] != b"\x1c" and data[3:4] == b"\x1c" and len(data) % 4 == 0:
        return b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))
    return data


def density(file: BinaryIO) -> tuple[float, float, int] | None:
    """What a TIFF, or EXIF data, says of its resolution.

    Returns:
        Pixels per unit horizontally and vertically, and the unit: 1 none, 2 an inch, 3 a centimeter. None if there is
        no such pair of numbers.
    """
    found = exif.find_first(file)
    if found is None:
        return None
    form, first = found
    entries, _ = exif.read_ifd(file, form, first)
    sides = [_rational(file, form, entries[tag]) for tag in RESOLUTION[:2] if tag in entries]
    unit = exif.read_number(form, entries[296]) if 296 in entries else 2
    if len(sides) != 2 or None in sides or unit not in (1, 2, 3):
        return None
    x, y = sides
    return (x, y, unit) if x and y else None


def _rational(file: BinaryIO, form: exif.TiffForm, entry: Value) -> float | None:
    value = exif.read_value(file, form, entry, 1000) if entry.value_count == 1 else None
    if value is None:
        return None
    if value.field_type in (5, 10):
        numerator, denominator = struct.unpack(form.byte_order + ("II" if value.field_type == 5 else "ii"), value.data)
        return numerator / denominator if denominator else None
    if value.field_type in (11, 12):
        return struct.unpack(form.byte_order + ("f" if value.field_type == 11 else "d"), value.data)[0]
    number = exif.read_number(form, entry)
    return None if number is None else float(number)


# ---- mended

_RANGES = {274: (1, 8, 1), 296: (1, 3, 1)}  # orientation, unit of resolution: lowest, highest, what else is taken for


def find_mends(file: BinaryIO) -> dict[int, bytes]:
    """Offset -> the bytes that must stand there, of tags that say nothing of pixels, but for which libtiff refuses."""
    found = exif.find_first(file)
    if found is None:
        return {}
    form, first = found
    file.seek(first)
    start = file.read(form.number.size)
    count = form.number.unpack(start)[0] if len(start) == form.number.size else 0
    mends = {}
    for i in range(min(count, 65_535)):
        data = file.read(form.entry.size)
        if len(data) < form.entry.size:
            break
        tag, *rest = form.entry.unpack(data)
        if tag in _RANGES:
            low, high, instead = _RANGES[tag]
            value = exif.read_number(form, Value(*rest))
            if value is not None and rest[0] == 3 and not low <= value <= high:
                at = first + form.number.size + i * form.entry.size + form.entry.size - len(rest[2])
                mends[at] = struct.pack(form.byte_order + "H", instead)
    return mends


# ---- written


def rational(number: float, byte_order: str) -> Value:
    """A positive number as a TIFF's fraction."""
    denominator = next((d for d in (1, 10, 1000, 10**5) if round(number * d) == number * d), 10**5)
    while number * denominator >= 2**32:
        denominator //= 10
    return Value(5, 1, struct.pack(byte_order + "II", round(number * denominator), max(1, denominator)))


def resolution_tags(x: float, y: float, unit: int, byte_order: str = "<") -> dict[int, Value]:
    """The three tags that hold a resolution."""
    return {
        282: rational(x, byte_order),
        283: rational(y, byte_order),
        296: Value(3, 1, struct.pack(byte_order + "H", unit)),
    }


def bytes_tag(data: bytes) -> Value:
    """A tag that holds bytes as they are."""
    return Value(7, len(data), data)

"""EXIF data read from TIFF files and added to them, which libvips does neither of.

EXIF data is a TIFF without an image: directories (IFDs) of entries (TIFF 6.0, section 2; Exif 2.32, section 4.6). In a
TIFF file these IFDs are the image's own, so only `DESCRIPTIVE_TAGS` are taken from the first IFD or added to it: the
rest says how the pixels are stored, or belongs to the program that wrote it. Orientation and thumbnail are never taken.
In between, the data is what libvips keeps as "exif-data".

Values are not interpreted. A MakerNote is copied byte for byte; offsets that its maker may have put into it no longer
hold, as after every editor that does not know the maker's format.
"""

import io
import os
import struct
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

import numpy as np

MAX_READ = 512_000  # bytes of EXIF data that are read; no directory can have 65,536 entries then
MAX_WRITTEN = 65_000  # bytes written into a JPEG, where a segment ends at 65,533
_MAX_OFFSET = 2**40  # of what is read; systems refuse some that are larger
DESCRIPTION, _PRINT_IM = 270, 50341
DESCRIPTIVE_TAGS = frozenset(
    (269, DESCRIPTION, 271, 272, 285, 305, 306, 315, 316, 18246, 18249, 33432, *range(40091, 40096), _PRINT_IM)
)
"""Tags of a first IFD: name of the document, description, make, model, name of the page, software, date, artist, host
computer, rating, the same in percent, copyright; Windows' title, comment, author, keywords and subject; what cameras
tell printers."""
_EXIF, _GPS, _INTEROPERABILITY = 34665, 34853, 40965  # each IFD goes by the tag that points to it, the first by 0
_SUB_IFDS = {0: (_EXIF, _GPS), _EXIF: (_INTEROPERABILITY,), _GPS: (), _INTEROPERABILITY: ()}
_NEVER_COPIED = {274, 513, 514, _EXIF, _GPS, _INTEROPERABILITY}  # orientation, thumbnail, pointers where none should be
_WIDTH, _HEIGHT, _COMMENT = 0xA002, 0xA003, 0x9286
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # type -> bytes of a value
_UNITS = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8}  # type -> bytes that have an order
_LONG, _LONG8, _UTF8 = 4, 16, 129
_NUMBERS = {3: "H", _LONG: "I", 13: "I", _LONG8: "Q", 18: "Q"}  # type of a tag's only value, which may be an offset


class Entry(NamedTuple):
    """An entry of an IFD.

    field_type: its number in TIFF. data: the bytes of `value_count` values or, as read from a table, the four or eight
    bytes that hold them or their offset.
    """

    field_type: int
    value_count: int
    data: bytes


class Exif(NamedTuple):
    """byte_order: "<" or ">", of all values. ifds: tag that points to an IFD (0: the first) -> tag -> entry."""

    byte_order: str
    ifds: dict[int, dict[int, Entry]]


class TiffForm(NamedTuple):
    """The structure of a TIFF. byte_order: "<" or ">". big: whether it is a BigTIFF."""

    byte_order: str
    big: bool

    @property
    def number(self) -> struct.Struct:
        """The number of entries that an IFD begins with."""
        return struct.Struct(self.byte_order + ("Q" if self.big else "H"))

    @property
    def offset(self) -> struct.Struct:
        return struct.Struct(self.byte_order + ("Q" if self.big else "I"))

    @property
    def entry(self) -> struct.Struct:
        """An entry: tag, type, count, and the values or their offset."""
        return struct.Struct(self.byte_order + ("HHQ8s" if self.big else "HHI4s"))


_FORMS = {
    b"II*\0": TiffForm("<", False),
    b"MM\0*": TiffForm(">", False),
    b"II+\0": TiffForm("<", True),
    b"MM\0+": TiffForm(">", True),
}


def incomplete_warning(limit: int) -> str:
    """A line for a person about EXIF data that was not kept as a whole. limit: bytes that it may have."""
    return f"EXIF data is left out in part: damaged, of an unknown type, or above {limit // 1000} kB"


def find_first(file: BinaryIO) -> tuple[TiffForm, int] | None:
    """The structure of a TIFF and the offset of its first IFD; None if it is no TIFF."""
    file.seek(0)
    head = file.read(16)
    form = _FORMS.get(head[:4])
    at = 8 if form and form.big else 4
    return (form, form.offset.unpack_from(head, at)[0]) if form and len(head) >= at + form.offset.size else None


def read_ifd(file: BinaryIO, form: TiffForm, offset: int) -> tuple[dict[int, Entry], bool]:
    """Read an IFD: (tag -> entry as it stands in the table, whether the table is complete)."""
    file.seek(min(offset, _MAX_OFFSET))
    start = file.read(form.number.size)
    there = len(start) == form.number.size
    count = form.number.unpack(start)[0] if there else 0
    table = file.read(form.entry.size * min(count, 65_535))
    table = table[: len(table) // form.entry.size * form.entry.size]
    entries: dict[int, Entry] = {}
    for tag, *rest in form.entry.iter_unpack(table):
        entries.setdefault(tag, Entry(*rest))  # libtiff keeps the first of a kind, too
    return entries, there and count == len(table) // form.entry.size


def find_values(file: BinaryIO, form: TiffForm, offset: int, tag: int, entry: Entry) -> int:
    """Where in the file the values of an entry stand, of the IFD at `offset`; it must be there."""
    if entry.value_count * SIZES.get(entry.field_type, 1) > len(entry.data):
        return form.offset.unpack(entry.data)[0]
    return find_entry(file, form, offset, tag) + form.entry.size - len(entry.data)


def find_entry(file: BinaryIO, form: TiffForm, offset: int, tag: int) -> int:
    """Where in the file an entry stands, of the IFD at `offset`; it must be there."""
    file.seek(offset + form.number.size)
    places = range(file.tell(), file.tell() + 65_535 * form.entry.size, form.entry.size)
    return next(at for at in places if form.entry.unpack(file.read(form.entry.size))[0] == tag)


def walk_ifds(file: BinaryIO, most: int) -> Iterator[dict[int, int]]:
    """Tag -> its whole number, 0 for others, of each directory of a TIFF, up to `most`, the first included.

    It ends where all tables together are longer than the file: then they lie upon each other, and are no pages.
    """
    if (found := find_first(file)) is None:
        return
    form, at = found
    left, seen = file.seek(0, os.SEEK_END), set[int]()
    while at and at not in seen and len(seen) < most and left > 0:
        entries, _ = read_ifd(file, form, at)
        left -= max(file.tell() - at, form.number.size)
        data = file.read(form.offset.size)  # which directory is next
        yield {tag: read_number(form, entry) or 0 for tag, entry in entries.items()}
        seen.add(at)
        at = form.offset.unpack(data)[0] if len(data) == form.offset.size else 0


def read_number(form: TiffForm, entry: Entry) -> int | None:
    """The single whole number or offset in an entry; None if it holds something else."""
    code = _NUMBERS.get(entry.field_type)
    if code is None or entry.value_count != 1 or struct.calcsize(code) > len(entry.data):
        return None
    return struct.unpack_from(form.byte_order + code, entry.data)[0]


def parse(file: BinaryIO, but: frozenset[int] | None = None) -> tuple[Exif, bool]:
    """Read a TIFF's EXIF data: (what is understood, whether that is all of it). At most `MAX_READ` bytes are read.

    but: if given, the first IFD is EXIF data's own, and all its tags are taken but these.
    """
    found = find_first(file)
    if found is None:
        return Exif("<", {}), False
    form, first = found
    exif, whole, left = Exif(form.byte_order, {}), True, MAX_READ
    offsets, seen = {0: first}, set()
    for name, below in _SUB_IFDS.items():
        if name not in offsets:
            continue
        entries, intact = read_ifd(file, form, offsets[name])
        whole &= intact and offsets[name] not in seen
        if offsets[name] in seen:
            continue
        seen.add(offsets[name])
        for tag, entry in entries.items():
            if tag in below:
                pointer = read_number(form, entry)
                whole &= pointer is not None
                offsets |= {tag: pointer} if pointer else {}  # 0: none
            elif (
                (name or tag in DESCRIPTIVE_TAGS or (but is not None and tag not in but))
                and tag not in _NEVER_COPIED
                and entry.value_count
            ):
                value = read_value(file, form, entry, left)
                whole &= value is not None
                if value is not None:
                    exif.ifds.setdefault(name, {})[tag] = value
                    left -= form.entry.size + len(value.data)
    return exif, whole


def read_value(file: BinaryIO, form: TiffForm, entry: Entry, limit: int) -> Entry | None:
    """An entry with its values read; None if damaged, of unknown type or, with the entry, above `limit` bytes."""
    kind = 2 if entry.field_type == _UTF8 else entry.field_type  # as which everybody writes and reads it
    size = entry.value_count * SIZES.get(kind, MAX_READ)
    if form.entry.size + size > limit:
        return None
    data = entry.data[:size]
    if size > len(entry.data):
        file.seek(min(form.offset.unpack(entry.data)[0], _MAX_OFFSET))
        data = file.read(size)
    return Entry(kind, entry.value_count, data) if len(data) == size else None


def trim(exif: Exif, limit: int) -> Exif:
    """Leave out the largest entries, so that the rest takes at most `limit` bytes when packed."""
    entries = [(13 + len(entry.data), name, tag) for name, own in exif.ifds.items() for tag, entry in own.items()]
    total = 200 + sum(size for size, _, _ in entries)  # the heads of four IFDs, and what points to them
    ifds = {name: dict(own) for name, own in exif.ifds.items()}
    for size, name, tag in sorted(entries, reverse=True):
        if total <= limit:
            break
        del ifds[name][tag]
        total -= size
    return Exif(exif.byte_order, ifds)


def pack(exif: Exif) -> bytes:
    """The bytes that libvips keeps as "exif-data": "Exif" and a small TIFF; none if there is no entry."""
    if not any(exif.ifds.values()):
        return b""
    form = TiffForm(exif.byte_order, False)
    data, first = _lay_out(exif.ifds, form, 8)
    signature = next(signature for signature, other in _FORMS.items() if other == form)
    return b"Exif\0\0" + signature + form.offset.pack(first) + data


def append(
    file: BinaryIO, exif: Exif, width: int, height: int, own: Mapping[int, Entry] = MappingProxyType({})
) -> bool:
    """Add EXIF data, and tags of other kinds, to a TIFF of one image.

    Entries that the image has already stay as they are, but for those in `own`. The IFDs, the first one included, are
    written at the end of the file; the header is changed last, to point to the new first one.

    Args:
        file: open for reading and writing.
        exif: what to add.
        width: of the image, in pixels; the EXIF IFD will say so, too.
        height: likewise.
        own: further entries of the first IFD, in little-endian order.

    Returns:
        False if a classic TIFF would grow beyond 4 GiB; the file is unchanged then.

    Raises:
        OSError: if the file cannot be written.
    """
    found = find_first(file)
    if found is None or not (own or any(exif.ifds.values())):
        return True
    form, first = found
    ifds = {
        name: {tag: _convert_byte_order(tag, entry, exif.byte_order, form.byte_order) for tag, entry in own.items()}
        for name, own in exif.ifds.items()
    }
    if _EXIF in ifds:
        sizes = {_WIDTH: width, _HEIGHT: height}
        ifds[_EXIF] |= {tag: Entry(_LONG, 1, struct.pack(form.byte_order + "I", size)) for tag, size in sizes.items()}
    added = {tag: _convert_byte_order(tag, entry, "<", form.byte_order) for tag, entry in own.items()}
    ifds[0] = ifds.get(0, {}) | read_ifd(file, form, first)[0] | added
    end = file.seek(0, os.SEEK_END)
    end += end % 2  # offsets are even
    if not form.big and end + len(_lay_out(ifds, form, 0)[0]) >= 2**32:
        return False
    data, first = _lay_out(ifds, form, end)
    file.seek(end)
    file.write(data)
    file.seek(8 if form.big else 4)
    file.write(form.offset.pack(first))
    return True


def _convert_byte_order(tag: int, entry: Entry, source: str, target: str) -> Entry:
    """The entry with its bytes in another order; source, target: "<" or ">"."""
    if source == target:
        return entry
    unit, start = _UNITS.get(entry.field_type, 1), 0
    if tag == _COMMENT and entry.data.startswith(b"UNICODE\0") and len(entry.data) % 2 == 0:
        unit, start = 2, 8  # in the file's order, as everybody takes it, though the standard is silent
    values = np.frombuffer(entry.data[start:], f"u{unit}").byteswap().tobytes()
    return entry._replace(data=entry.data[:start] + values)


def _lay_out(ifds: dict[int, dict[int, Entry]], form: TiffForm, start: int) -> tuple[bytes, int]:
    """(IFDs and their values as they stand in a file from offset `start` on, the offset of the first IFD)."""
    out, places = io.BytesIO(), {}
    for name, below in reversed(_SUB_IFDS.items()):  # those that are pointed to come before
        own = dict(ifds.get(name, {}))
        for tag in below:
            if tag in places:
                own[tag] = Entry(_LONG8 if form.big else _LONG, 1, form.offset.pack(places[tag]))
        if not own:
            continue
        places[name] = start + out.tell()
        out.write(form.number.pack(len(own)))
        values, at = bytearray(), places[name] + form.number.size + form.entry.size * len(own) + form.offset.size
        for tag, entry in sorted(own.items()):
            field = entry.data
            if len(field) > form.offset.size:
                field = form.offset.pack(at + len(values))
                values += entry.data + bytes(len(entry.data) % 2)
            out.write(form.entry.pack(tag, entry.field_type, entry.value_count, field))
        out.write(form.offset.pack(0) + values)
    return out.getvalue(), places[0]

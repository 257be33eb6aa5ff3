"""EXIF data out of TIFF files and into them, which libvips does neither of; from and for its "exif-data".

EXIF data is a TIFF without an image: directories of entries (TIFF 6.0, section 2; Exif 2.32, section 4.6). In a TIFF
they are the image's own, so only what is in `DESCRIPTIVE_TAGS` is taken from the first directory or added to it: the rest
says how the pixels are stored, or belongs to the program that wrote it. Orientation and thumbnail are never taken.

Values are bytes to us. A MakerNote is kept as it is; offsets that its maker may have put into it no longer hold, as
after every editor that does not know the maker's format.
"""

import io
import os
import struct
from typing import BinaryIO, NamedTuple

import numpy as np

MAX_READ = 512_000  # bytes of EXIF data that are read; no directory can have 65,536 entries then
MAX_WRITTEN = 65_000  # bytes that libvips writes anywhere: its libexif reads 65,534, and adds a few entries of its own
_MAX_OFFSET = 2**40  # offset that is tried; systems refuse some that are larger
DESCRIPTION = 270
DESCRIPTIVE_TAGS = frozenset(
    (269, DESCRIPTION, 271, 272, 285, 305, 306, 315, 316, 18246, 18249, 33432, *range(40091, 40096))
)
"""Tags of a first directory: name of the document, description, make, model, name of the page, software, date, artist,
host computer, rating, the same in percent, copyright; Windows' title, comment, author, keywords and subject."""
_UNKNOWN_TO_LIBEXIF = {
    285: "PageName",
    316: "HostComputer",
    18246: "Rating",
    18249: "RatingPercent",
}  # to libexif, so to libvips
_EXIF, _GPS, _INTEROPERABILITY = 34665, 34853, 40965  # each directory goes by the tag that points to it, the first by 0
_SUB_IFDS = {0: (_EXIF, _GPS), _EXIF: (_INTEROPERABILITY,), _GPS: (), _INTEROPERABILITY: ()}
_NEVER_COPIED = {274, 513, 514, _EXIF, _GPS, _INTEROPERABILITY}  # orientation, thumbnail, pointers where none should be
_WIDTH, _HEIGHT, _COMMENT = 0xA002, 0xA003, 0x9286
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # type -> bytes of a value
_UNITS = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8}  # type -> bytes that have an order
_LONG, _LONG8, _UTF8 = 4, 16, 129
_NUMBERS = {3: "H", _LONG: "I", 13: "I", _LONG8: "Q", 18: "Q"}  # type of a tag's only value, which may be an offset


class Entry(NamedTuple):
    """Of a directory. kind: its type's number. data: `count` values, or in a file's table what stands for them."""

    field_type: int
    count: int
    data: bytes


class Exif(NamedTuple):
    """order: "<" or ">", of the bytes in all values. directories: tag that points to it (0: none) -> tag -> entry."""

    byte_order: str
    ifds: dict[int, dict[int, Entry]]


class TiffForm(NamedTuple):
    """How a TIFF is written. order: "<" or ">". big: whether it is a BigTIFF."""

    byte_order: str
    big: bool

    @property
    def number(self) -> struct.Struct:
        """Of the entries in a directory."""
        return struct.Struct(self.byte_order + ("Q" if self.big else "H"))

    @property
    def offset(self) -> struct.Struct:
        return struct.Struct(self.byte_order + ("Q" if self.big else "I"))

    @property
    def entry(self) -> struct.Struct:
        """Tag, type, count, and the values or their offset."""
        return struct.Struct(self.byte_order + ("HHQ8s" if self.big else "HHI4s"))


_FORMS = {
    b"II*\0": TiffForm("<", False),
    b"MM\0*": TiffForm(">", False),
    b"II+\0": TiffForm("<", True),
    b"MM\0+": TiffForm(">", True),
}


def incomplete_warning(limit: int) -> str:
    """What to say of data that is not whole. most: bytes that it may have."""
    return f"EXIF data is left out in part: damaged, of an unknown type, or above {limit // 1000} kB"


def list_unknown(exif: Exif) -> str:
    """What libvips leaves out of it when it writes another format than TIFF, by name."""
    return ", ".join(name for tag, name in _UNKNOWN_TO_LIBEXIF.items() if tag in exif.ifds.get(0, {}))


def find_first(file: BinaryIO) -> tuple[TiffForm, int] | None:
    """A TIFF's form and the offset of its first directory; None if it is no TIFF."""
    file.seek(0)
    head = file.read(16)
    form = _FORMS.get(head[:4])
    at = 8 if form and form.big else 4
    return (form, form.offset.unpack_from(head, at)[0]) if form and len(head) >= at + form.offset.size else None


def read_ifd(file: BinaryIO, form: TiffForm, offset: int) -> tuple[dict[int, Entry], bool]:
    """(tag -> entry as it stands in the table, whether that is whole), of a TIFF's directory."""
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


def read_number(form: TiffForm, entry: Entry) -> int | None:
    """The one whole number or offset that the entry holds, None if it is something else."""
    code = _NUMBERS.get(entry.field_type)
    if code is None or entry.count != 1 or struct.calcsize(code) > len(entry.data):
        return None
    return struct.unpack_from(form.byte_order + code, entry.data)[0]


def parse(file: BinaryIO) -> tuple[Exif, bool]:
    """(what is understood of a TIFF's EXIF data, whether that is all of it). Takes `MAX_READ` bytes at most."""
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
            elif (name or tag in DESCRIPTIVE_TAGS) and tag not in _NEVER_COPIED and entry.count:
                value = read_value(file, form, entry, left)
                whole &= value is not None
                if value is not None:
                    exif.ifds.setdefault(name, {})[tag] = value
                    left -= form.entry.size + len(value.data)
    return exif, whole


def read_value(file: BinaryIO, form: TiffForm, entry: Entry, limit: int) -> Entry | None:
    """The entry with its values in it; None if they are damaged, of unknown type or, with their entry, above `limit`."""
    kind = 2 if entry.field_type == _UTF8 else entry.field_type  # as which everybody writes and reads it
    size = entry.count * _SIZES.get(kind, MAX_READ)
    if form.entry.size + size > limit:
        return None
    data = entry.data[:size]
    if size > len(entry.data):
        file.seek(min(form.offset.unpack(entry.data)[0], _MAX_OFFSET))
        data = file.read(size)
    return Entry(kind, entry.count, data) if len(data) == size else None


def trim(exif: Exif, limit: int) -> Exif:
    """Without its largest entries, so that the rest takes at most `limit` bytes when packed."""
    entries = [(13 + len(entry.data), name, tag) for name, own in exif.ifds.items() for tag, entry in own.items()]
    total = 200 + sum(size for size, _, _ in entries)  # the heads of four directories, and what points to them
    directories = {name: dict(own) for name, own in exif.ifds.items()}
    for size, name, tag in sorted(entries, reverse=True):
        if total <= limit:
            break
        del directories[name][tag]
        total -= size
    return Exif(exif.byte_order, directories)


def pack(exif: Exif) -> bytes:
    """As libvips keeps it: "Exif" and a small TIFF; nothing if there is no entry."""
    if not any(exif.ifds.values()):
        return b""
    form = TiffForm(exif.byte_order, False)
    data, first = _lay_out(exif.ifds, form, 8)
    signature = next(signature for signature, other in _FORMS.items() if other == form)
    return b"Exif\0\0" + signature + form.offset.pack(first) + data


def append(file: BinaryIO, exif: Exif, width: int, height: int) -> bool:
    """Adds it to a TIFF of one image, `width` x `height` pixels, which its EXIF directory will say, too.

    Entries that the image has already stay as they are. Directories go to the end of the file, the first one among
    them, and at last the header comes to point to that. False if that would lead a classic TIFF beyond 4 GiB; the file
    is unchanged then. Raises OSError.
    """
    found = find_first(file)
    if found is None or not any(exif.ifds.values()):
        return True
    form, first = found
    directories = {
        name: {tag: _convert_byte_order(tag, entry, exif.byte_order, form.byte_order) for tag, entry in own.items()}
        for name, own in exif.ifds.items()
    }
    if _EXIF in directories:
        sizes = {_WIDTH: width, _HEIGHT: height}
        directories[_EXIF] |= {
            tag: Entry(_LONG, 1, struct.pack(form.byte_order + "I", size)) for tag, size in sizes.items()
        }
    directories[0] = directories.get(0, {}) | read_ifd(file, form, first)[0]
    end = file.seek(0, os.SEEK_END)
    end += end % 2  # offsets are even
    if not form.big and end + len(_lay_out(directories, form, 0)[0]) >= 2**32:
        return False
    data, first = _lay_out(directories, form, end)
    file.seek(end)
    file.write(data)
    file.seek(8 if form.big else 4)
    file.write(form.offset.pack(first))
    return True


def _convert_byte_order(tag: int, entry: Entry, source: str, target: str) -> Entry:
    """The entry with its bytes in another order."""
    if source == target:
        return entry
    unit, start = _UNITS.get(entry.field_type, 1), 0
    if tag == _COMMENT and entry.data.startswith(b"UNICODE\0") and len(entry.data) % 2 == 0:
        unit, start = 2, 8  # in the file's order, as everybody takes it, though the standard is silent
    values = np.frombuffer(entry.data[start:], f"u{unit}").byteswap().tobytes()
    return entry._replace(data=entry.data[:start] + values)


def _lay_out(directories: dict[int, dict[int, Entry]], form: TiffForm, start: int) -> tuple[bytes, int]:
    """(directories and their values as they stand in a file from `start` on, offset of the first directory)."""
    out, places = io.BytesIO(), {}
    for name, below in reversed(_SUB_IFDS.items()):  # those that are pointed to come before
        own = dict(directories.get(name, {}))
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
            out.write(form.entry.pack(tag, entry.field_type, entry.count, field))
        out.write(form.offset.pack(0) + values)
    return out.getvalue(), places[0]

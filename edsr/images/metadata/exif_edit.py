"""EXIF data of an image, changed as little as possible so that it suits the result.

Directories are written anew at the end of the data, and all values stay where they were: so a MakerNote is the same
byte for byte and its offsets hold. libexif, by which libvips writes EXIF data, writes MakerNotes that it knows anew
instead, and loses what it does not know in them.
"""

import io
import struct

from .. import exif
from ..exif import Entry, TiffForm

_EXIF, _GPS = 34665, 34853
_ORIENTATION, _WIDTH, _HEIGHT = 274, 0xA002, 0xA003


def has_thumbnail(data: bytes) -> bool:
    """Whether EXIF data has a second directory that holds a thumbnail."""
    file = io.BytesIO(data)
    found = exif.find_first(file)
    if found is None or not (place := _following(data, *found)):
        return False
    entries, intact = exif.read_ifd(file, found[0], place)
    return not intact or 513 in entries or 273 in entries  # where its bytes are, as a JPEG or in strips


def orientation(data: bytes) -> int:
    """The orientation that EXIF data states, 1 to 8; 0 if none."""
    file = io.BytesIO(data)
    found = exif.find_first(file)
    if found is None:
        return 0
    entries, _ = exif.read_ifd(file, *found)
    value = exif.read_number(found[0], entries[_ORIENTATION]) if _ORIENTATION in entries else 0
    return value if value and 1 <= value <= 8 else 0


def _following(data: bytes, form: TiffForm, first: int) -> int:
    """Where the next IFD begins; 0 if there is none, or no such place."""
    if form.big or len(data) < first + form.number.size:
        return 0
    at = first + form.number.size + form.entry.size * form.number.unpack_from(data, first)[0]
    place = form.offset.unpack_from(data, at)[0] if len(data) >= at + form.offset.size else 0
    return place if place + 2 <= len(data) else 0


def _regions(form: TiffForm, entries: dict[int, Entry]) -> list[tuple[int, int]]:
    """(start, end) of values that do not stand in the table itself."""
    sizes = ((entry, entry.value_count * exif.SIZES.get(entry.field_type, 1)) for entry in entries.values())
    return [(at, at + size) for entry, size in sizes if size > 4 for at in form.offset.unpack(entry.data)]


def adapt(
    data: bytes, width: int, height: int, turned: bool, resolution: dict[str, dict[int, Entry]] | None = None
) -> bytes | None:
    """EXIF data for a result.

    Args:
        data: a TIFF.
        width, height: of the result, in pixels.
        turned: whether width and height have changed places, and resolutions must, too.
        resolution: byte order -> the tags that state the resolution, where the data's own do not count.

    Returns:
        The data, upright and without thumbnail; None if its structure is damaged.
    """
    file = io.BytesIO(data)
    found = exif.find_first(file)
    if found is None or found[0].big:
        return None
    form, first = found
    entries, intact = exif.read_ifd(file, form, first)
    if not intact:
        return None
    below: dict[int, Entry] = {}
    pointer = exif.read_number(form, entries[_EXIF]) if _EXIF in entries else None
    if pointer:
        below, intact = exif.read_ifd(file, form, pointer)
        if not intact:
            return None
    out = _without_thumbnail(data, form, first, {**entries, **{-tag: entry for tag, entry in below.items()}})
    if _ORIENTATION in entries:
        place = data.find(form.entry.pack(_ORIENTATION, *entries[_ORIENTATION]), first)
        entries[_ORIENTATION] = Entry(3, 1, struct.pack(form.byte_order + "HH", 1, 0))
        if 0 <= place <= len(out) - form.entry.size:
            out[place : place + form.entry.size] = form.entry.pack(_ORIENTATION, *entries[_ORIENTATION])
    if turned and 282 in entries and 283 in entries:
        entries[282], entries[283] = entries[283], entries[282]
    if resolution:
        for tag, entry in resolution[form.byte_order].items():
            field = entry.data.ljust(4, b"\0")
            if len(entry.data) > 4:
                out += bytes(len(out) % 2)
                field = form.offset.pack(len(out))
                out += entry.data
            entries[tag] = Entry(entry.field_type, entry.value_count, field)
    if below:
        for tag, size in ((_WIDTH, width), (_HEIGHT, height)):
            below[tag] = Entry(4, 1, struct.pack(form.byte_order + "I", size))
        entries[_EXIF] = Entry(4, 1, form.offset.pack(_append(out, form, below)))
    place = _append(out, form, entries)
    out[4:8] = form.offset.pack(place)
    return bytes(out)


def _without_thumbnail(data: bytes, form: TiffForm, first: int, entries: dict[int, Entry]) -> bytearray:
    """The data without the thumbnail's bytes, where they are nothing else's."""
    out, place = bytearray(data), _following(data, form, first)
    if not place:
        return out
    found, _ = exif.read_ifd(io.BytesIO(data), form, place)
    starts = [exif.read_number(form, found[tag]) for tag in (513, 514) if tag in found]
    if len(starts) != 2 or not all(starts):
        return out
    start, end = starts[0] or 0, (starts[0] or 0) + (starts[1] or 0)
    tables = [exif.read_number(form, entries[tag]) or 0 for tag in (_EXIF, _GPS) if tag in entries]
    taken = [*_regions(form, entries), *((at, at + 2) for at in (*tables, first, place)), (0, 8)]
    if end > len(out) or any(low < end and start < high for low, high in taken):
        return out
    if end >= len(out) - 4:
        del out[start:]
    else:
        out[start:end] = bytes(end - start)
    return out


def _append(out: bytearray, form: TiffForm, entries: dict[int, Entry]) -> int:
    """Write a table at the end, with no other behind it. Returns where it begins."""
    out += bytes(len(out) % 2)
    place = len(out)
    out += form.number.pack(len(entries))
    for tag, entry in sorted(entries.items()):
        out += form.entry.pack(tag, *entry)
    out += form.offset.pack(0)
    return place


def minimal(resolution: dict[int, Entry]) -> bytes:
    """EXIF data that states a resolution (little-endian) and nothing else."""
    return exif.pack(exif.Exif("<", {0: resolution})).removeprefix(b"Exif\0\0")

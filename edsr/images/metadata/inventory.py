"""All entries of a file together: what they say of orientation and resolution, and where they contradict each other."""

import io
import struct
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from . import exif_edit, gif, heif, jpeg, photoshop, png, tiff, webp, xmp
from .entries import MAX_ENTRIES, Entry, data_of

_SCANNERS = {"PNG": png.scan, "JPEG": jpeg.scan, "WebP": webp.scan, "TIFF": tiff.scan, "GIF": gif.scan}
_DENSITIES = {"PNG": png.density, "JPEG": jpeg.density, "TIFF": tiff.density, "GIF": gif.density}
_MAX_TOTAL = 2**27  # bytes of all entries together
_SINGLE = {"exif": "EXIF data", "xmp": "XMP", "icc": "color profile"}
_UNITS = {"PNG": {0: 0, 1: 1000}, "JPEG": {0: 0, 1: 25.4, 2: 10}}  # code -> mm; 0: none
_TIFF_UNITS = {1: 0, 2: 25.4, 3: 10}


class Inventory(NamedTuple):
    """What a file holds besides pixels.

    Attributes:
        entries: in the order of the file; of EXIF data, XMP and profile only those that count.
        orientation: 1 to 8, as the decoder leaves the pixels.
        resolution: pixels per mm, horizontally and vertically as stored; None if unknown.
        aspect: the same without a unit of length, where the file states no more than that and they differ.
        warnings: lines about what is told twice, damaged or too large.
    """

    entries: tuple[Entry, ...]
    orientation: int = 1
    resolution: tuple[float, float] | None = None
    aspect: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()


def take(path: Path, form: str, exif: bytes, orientation: int, decoded: Mapping[str, bytes]) -> Inventory:
    """List all that a file holds.

    Args:
        path: the file.
        form: its format's name.
        exif: of a TIFF, its EXIF data.
        orientation: of a TIFF, what its tag says.
        decoded: of an AVIF or HEIF file, "exif", "xmp" and "icc" as libvips gives them.

    Raises:
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        entries, warnings = _list(file, form)
        found = [Entry(kind, "", kind.upper(), data, len(data)) for kind, data in decoded.items() if data]
        entries = [entry for entry in entries if entry.kind not in decoded or not decoded[entry.kind]] + found
        if form == "TIFF" and exif:
            entries.append(Entry("exif", "", "EXIF", exif, len(exif)))
        stated = list(_orientations(entries))
        if form == "TIFF":
            stated = [("its own tag", orientation)] * (1 <= orientation <= 8) + stated
        upright, lines = _choose(stated, form, form in _SCANNERS or heif.has_turn(file))
        warnings += lines
        entries, lines = _drop_second_ones(entries)
        resolution, aspect = _density(file, form, data_of(entries, "exif"))
    return Inventory(tuple(_name_hidden_ones(entries)), upright, resolution, aspect, tuple(warnings + lines))


def _list(file: BinaryIO, form: str) -> tuple[list[Entry], list[str]]:
    entries, warnings, left = [], [], _MAX_TOTAL
    try:
        for entry in islice(_SCANNERS.get(form, heif.scan)(file), MAX_ENTRIES):
            left -= len(entry.data)
            entries.append(entry if left >= 0 else entry._replace(kind="large", data=b""))
    except (EOFError, ValueError, struct.error, IndexError, OverflowError):
        warnings.append("metadata is left out in part: damaged")
    if len(entries) == MAX_ENTRIES:
        warnings.append(f"metadata is left out in part: there are more than {MAX_ENTRIES:,} entries")
    return entries, warnings


def _orientations(entries: list[Entry]) -> Iterator[tuple[str, int]]:
    """(where, what is said) of each orientation that is told, the most trustworthy first."""
    for raw in (False, True):
        for kind, read in (("exif", exif_edit.orientation), ("xmp", xmp.orientation)):
            for entry in entries:
                if entry.kind == kind and (entry.code == "raw") == raw and (value := read(entry.data)):
                    yield kind.upper() + " in a text of ImageMagick's" * raw, value


def _choose(stated: list[tuple[str, int]], form: str, counts: bool) -> tuple[int, list[str]]:
    """(the orientation, lines about others that are told). counts: whether what is told needs no line if unused."""
    if form not in _SCANNERS:  # its boxes count alone, and the decoder has obeyed them
        others = [f"{value} in {where}" for where, value in stated if value != 1]
        return 1, [f"orientation {others[0]} does not count in {form}, it is left out"] if others and not counts else []
    if not stated:
        return 1, []
    (first, chosen), *rest = stated
    others = [f"{value} in {where}" for where, value in rest if value != chosen]
    told = f"the orientation is told more than once: {chosen} in {first} counts, {', '.join(others)} does not"
    return chosen, [told] if others else []


def _drop_second_ones(entries: list[Entry]) -> tuple[list[Entry], list[str]]:
    """Keep one of a kind where there can be only one, that which is not in a text of ImageMagick's first."""
    lines: list[str] = []
    for kind, name in _SINGLE.items():
        own = sorted((entry for entry in entries if entry.kind == kind), key=lambda entry: entry.code == "raw")
        if any(entry.data != own[0].data for entry in own[1:]):
            lines.append(f"a second {name} is left out")
        entries = [entry for entry in entries if entry.kind != kind or entry is own[0]]
    resources = [entry for entry in entries if entry.kind == "photoshop"]
    if len(resources) > 1:
        joined = resources[0]._replace(data=b"".join(entry.data for entry in resources))
        entries = [entry for entry in entries if entry.kind != "photoshop"] + [joined]
    return entries, lines


def _name_hidden_ones(entries: list[Entry]) -> Iterator[Entry]:
    """The entries, and those inside them: thumbnails, and the gain map that XMP speaks of."""
    gain_map = xmp.announces_gain_map(data_of(entries, "xmp")) or any(entry.kind == "gain map" for entry in entries)
    seen = False
    for entry in entries:
        if gain_map and entry.kind in ("images", "gain map"):
            entry = entry._replace(kind="gain map", name="gain map")
            if seen:
                continue
            seen = True
        yield entry
        if entry.kind == "exif" and exif_edit.has_thumbnail(entry.data):
            yield Entry("thumbnail", "EXIF", "thumbnail")
        if entry.kind == "photoshop" and photoshop.has_thumbnail(entry.data):
            yield Entry("thumbnail", "8BIM", "thumbnail")
    if gain_map and not seen:
        yield Entry("gain map", "XMP", "gain map")


def _density(file: BinaryIO, form: str, exif: bytes) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """(pixels per mm, or None, ratio without unit, or None). EXIF data's own counts where the format states none."""
    found = _DENSITIES.get(form, heif.density if form not in _SCANNERS else lambda _: None)(file)
    aspect = None
    if found:
        x, y, code = found
        unit = {**_UNITS, "TIFF": _TIFF_UNITS}.get(form, {}).get(code, 0)
        if unit and (resolution := _plausible(x / unit, y / unit)):
            return resolution, None
        if not unit and x > 0 and y > 0 and x != y:
            aspect = x, y
    found = tiff.density(io.BytesIO(exif)) if exif and form != "TIFF" and not aspect else None
    if found:
        x, y, code = found
        unit = _TIFF_UNITS[code]
        return (_plausible(x / unit, y / unit) if unit else None), aspect
    return None, aspect


def _plausible(x: float, y: float) -> tuple[float, float] | None:
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None

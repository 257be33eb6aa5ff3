"""What becomes of each entry of a file in the format that is written: kept, converted, or named in a line."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from .. import exif
from . import exif_edit, jpeg, photoshop, png, profiles, tiff, xmp
from .entries import Entry, data_of, list_names

_MM = 25.4
_DEFAULT = (72 / _MM, 72 / _MM)  # what others assume
_NOT_OF_EXIF = frozenset((*tiff.STRUCTURE, tiff.ICC, tiff.XMP, tiff.IPTC, tiff.PHOTOSHOP))
_LARGEST = {"JPEG": jpeg.MOST_ICC, "PNG": 8_000_000}  # profiles; libpng reads no larger ones


@dataclass
class Plan:
    """What is written besides pixels.

    Attributes:
        profile: ICC, for libvips to write or to convert by; only PNG and JPEG have theirs in `head`.
        xmp: for libvips to write.
        head: chunks of a PNG or segments of a JPEG, that go in front.
        exif_data: for WebP and AVIF.
        tiff_exif, tags: for TIFF.
        warnings: a line for each thing that is lost or changed.
    """

    profile: bytes = b""
    xmp: bytes = b""
    head: bytes = b""
    exif_data: bytes = b""
    tiff_exif: exif.Exif = field(default_factory=lambda: exif.Exif("<", {}))
    tags: dict[int, exif.Entry] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """What a reader says of its file. Resolution and aspect are upright; None if unknown."""

    entries: tuple[Entry, ...] = ()
    resolution: tuple[float, float] | None = None
    aspect: tuple[float, float] | None = None
    turned: bool = False


@dataclass(frozen=True)
class Result:
    """What is written. form: the format's name. gray: whether the pixels are. width, height: in pixels."""

    form: str
    gray: bool
    width: int
    height: int


def plan(source: Source, result: Result) -> Plan:
    """Decide what becomes of each entry."""
    out = Plan()
    color = _plan_profile(out, source.entries, result)
    _plan_exif(out, source, result)
    packet = _plan_xmp(out, source.entries, result)
    iptc = _plan_iptc(out, source.entries, result)
    comments = list(_plan_texts(out, source.entries, result))
    density = _plan_density(out, source, result)
    if result.form == "PNG":
        # The order of PNG third edition, table 7; texts stand before the pixels, where all programs look for them.
        out.head = color + density + _png_exif(out) + packet + iptc + b"".join(comments)
    elif result.form == "JPEG":
        out.head = density + _jpeg_exif(out) + packet + color + iptc + b"".join(comments)
    if (nodata := data_of(source.entries, "nodata")) and result.form == "TIFF":
        out.tags[tiff.NODATA] = exif.Entry(2, len(nodata), nodata)
    out.warnings += _name_losses(source.entries, result)
    return out


def _plan_profile(out: Plan, entries: tuple[Entry, ...], result: Result) -> bytes:
    """Returns the chunks or segments that say what colors are."""
    chunks: dict[str, bytes] = {}
    for entry in entries:
        if entry.kind == "color" and chunks.setdefault(entry.code, entry.data) != entry.data:  # decoders take the first
            out.warnings.append(f"a second {entry.code} is left out")
    profile, wanted = data_of(entries, "icc"), (b"GRAY", "gray") if result.gray else (b"RGB ", "RGB")
    stated = bool(profile)
    if profile and profile[16:20] != wanted[0]:
        out.warnings.append(f"the color profile is left out, it is not for {wanted[1]} images")
        profile = b""
    elif profile:
        profile, wrong = profiles.mend(profile)
        if wrong:
            out.warnings.append(f"the color profile is {wrong}, it is {'mended' if profile else 'left out'}")
        if len(profile) > _LARGEST.get(result.form, len(profile)):
            size = f"{len(profile) / 1e6:.1f} MB"
            out.warnings.append(f"the color profile is left out, {result.form} does not hold its {size}")
            profile = b""
    if result.form == "PNG":
        kept = [png.chunk(code.encode(), _for_result(code, data)) for code, data in chunks.items()]
        return b"".join(kept) + (png.profile_chunk(profile) if profile else b"")
    if not stated and "sRGB" not in chunks and "cICP" not in chunks:
        profile = _convert_chunks(out, chunks, result)
    lost = [code for code in ("mDCV", "cLLI") if code in chunks]
    if "cICP" in chunks and chunks["cICP"][:2] not in (b"\1\r", b"\2\2"):
        lost.append("cICP")
    if lost:
        out.warnings.append(f"PNG chunks are left out: {list_names(lost)}")
    if result.form == "JPEG":
        return jpeg.profile_segments(profile)
    out.profile = profile
    return b""


def _for_result(code: str, data: bytes) -> bytes:
    """A chunk as it is right for the result, whose numbers always have the full range."""
    return data[:2] + b"\0\1" if code == "cICP" and len(data) == 4 else data


def _convert_chunks(out: Plan, chunks: dict[str, bytes], result: Result) -> bytes:
    """The profile of gAMA and cHRM; none where they say nothing that matters."""
    gamma = struct.unpack(">I", chunks["gAMA"])[0] if len(chunks.get("gAMA", b"")) == 4 else None
    points = struct.unpack(">8I", chunks["cHRM"]) if len(chunks.get("cHRM", b"")) == 32 and not result.gray else None
    names = " and ".join(name for name, value in (("gAMA", gamma), ("cHRM", points)) if value is not None)
    if not names or profiles.is_srgb(gamma, points):
        return b""
    profile = profiles.make_profile(gamma, points, result.gray)
    out.warnings.append(
        f"{names} {'is' if ' ' not in names else 'are'} "
        + (f"converted to a color profile, which {result.form} has instead" if profile else "left out: no such colors")
    )
    return profile


def _plan_exif(out: Plan, source: Source, result: Result) -> None:
    data = data_of(source.entries, "exif")
    from_tiff = any(entry.kind == "exif" and not entry.code for entry in source.entries)
    found, whole = exif.parse(io.BytesIO(data), None if from_tiff else _NOT_OF_EXIF)
    if result.form == "TIFF":
        out.tiff_exif = found
        if data and not whole:
            out.warnings.append(exif.incomplete_warning(exif.MAX_READ))
        return
    limit = exif.MAX_WRITTEN if result.form == "JPEG" else exif.MAX_READ
    tags = None
    if result.form in ("WebP", "AVIF"):  # which state a resolution nowhere else
        x, y = source.resolution or _DEFAULT
        stated = tiff.density(io.BytesIO(data)) if data else None
        units = {2: _MM, 3: 10}
        if not stated or stated[2] not in units or not source.resolution or not _same(stated, units[stated[2]], source):
            tags = {order: tiff.resolution_tags(x * _MM, y * _MM, 2, order) for order in "<>"}
    if not data:
        out.exif_data = exif_edit.minimal(tags["<"]) if tags else b""
        return
    adapted = exif_edit.adapt(data, result.width, result.height, source.turned, tags)
    if adapted is None or len(adapted) > limit:
        trimmed = exif.trim(found, limit - 200)
        if adapted is None or not whole or trimmed != found:
            out.warnings.append(exif.incomplete_warning(limit))
        packed = exif.pack(trimmed).removeprefix(b"Exif\0\0")
        adapted = exif_edit.adapt(packed, result.width, result.height, source.turned, tags) if packed else None
        adapted = adapted or (exif_edit.minimal(tags["<"]) if tags else b"")
    out.exif_data = adapted


def _same(stated: tuple[float, float, int], unit: float, source: Source) -> bool:
    """Whether EXIF data as stored states the source's resolution."""
    pair = stated[:2][::-1] if source.turned else stated[:2]
    return all(abs(a / unit - b) <= 0.001 * b for a, b in zip(pair, source.resolution or (), strict=False))


def _png_exif(out: Plan) -> bytes:
    data, out.exif_data = out.exif_data, b""
    return png.chunk(b"eXIf", data) if data else b""


def _jpeg_exif(out: Plan) -> bytes:
    data, out.exif_data = out.exif_data, b""
    return jpeg.segment(0xE1, jpeg.EXIF + data) if data else b""


def _plan_xmp(out: Plan, entries: tuple[Entry, ...], result: Result) -> bytes:
    """Returns the chunks or segments of XMP."""
    packet = data_of(entries, "xmp")
    extended = [entry.data for entry in entries if entry.kind == "extended xmp"]
    if packet:
        changed = xmp.without_further_images(xmp.upright(packet))
        if not changed:
            out.warnings.append("XMP is left out, it speaks of images that are left out, too")
        packet = changed
    if extended and result.form != "JPEG":
        whole = jpeg.join_extended(packet, extended)
        if not whole:
            out.warnings.append("extended XMP is left out")
        packet = whole or xmp.without_extension(packet)
    if not packet:
        return b""
    if result.form == "PNG":
        return png.xmp_chunk(packet)
    if result.form == "JPEG":
        if len(jpeg.XMP) + len(packet) > jpeg.MOST:
            if extended:
                out.warnings.append("extended XMP is left out")
                packet = xmp.without_extension(packet)
                extended = []
            out.warnings.append("XMP does not fit into one segment of a JPEG, it is written as extended XMP")
        return jpeg.xmp_segments(packet) + b"".join(jpeg.segment(0xE1, data) for data in extended)
    out.xmp = packet
    return b""


def _plan_iptc(out: Plan, entries: tuple[Entry, ...], result: Result) -> bytes:
    """Returns the chunks or segments of IPTC data and Photoshop's resources."""
    records = data_of(entries, "iptc")
    found = next((entry for entry in entries if entry.kind == "photoshop"), None)
    resources = found.data.removeprefix(jpeg.PHOTOSHOP) if found else b""
    if records.startswith((jpeg.PHOTOSHOP, b"8BIM")):
        resources, records = records.removeprefix(jpeg.PHOTOSHOP), b""
    elif resources and not resources.startswith(b"8BIM") and resources.startswith(b"\x1c"):
        resources, records = b"", records or resources
    if not records and not resources:
        return b""
    parts = photoshop.split(resources)
    if (
        records
        and parts
        and parts[0]
        and result.form not in ("WebP", "AVIF")
        and parts[0].rstrip(b"\0") != records.rstrip(b"\0")
    ):
        out.warnings.append("IPTC data is told twice, that among Photoshop's image resources is left out")
    if result.form == "JPEG":
        whole = photoshop.clean(resources) if parts is None or not records else photoshop.join(records, parts[1])
        return jpeg.photoshop_segments(whole) if parts is not None or whole else b""
    if result.form == "PNG":
        whole = photoshop.clean(resources) if parts is None or not records else photoshop.join(records, parts[1])
        if not whole:
            return b""
        if found is None or found.code != "raw":
            what = "IPTC data is" if records or (parts and parts[0]) else "Photoshop's image resources are"
            out.warnings.append(f'{what} kept as a text, "Raw profile type iptc", as ImageMagick does')
        return png.iptc_chunk(whole)
    if parts is None:
        out.warnings.append("IPTC data is left out: damaged")
        return b""
    records, rest = records or parts[0], parts[1]
    if result.form == "TIFF":
        if records:
            out.tags[tiff.IPTC] = tiff.bytes_tag(records)
        if rest:
            out.tags[tiff.PHOTOSHOP] = tiff.bytes_tag(rest)
    else:
        if records:
            out.warnings.append("IPTC data is left out")
        if rest:
            out.warnings.append("Photoshop's image resources are left out")
    return b""


def _plan_texts(out: Plan, entries: tuple[Entry, ...], result: Result) -> Iterator[bytes]:
    """Yields the chunks or segments of texts, comments and chunks of unknown kinds."""
    texts = [entry for entry in entries if entry.kind == "text"]
    turns = list(filter(_turns, texts))
    if turns:
        names = list_names(entry.name for entry in turns)
        out.warnings.append(f"a PNG text is left out, it would turn the result: {names}")
        texts = [entry for entry in texts if not _turns(entry)]
    comments = [entry.data for entry in entries if entry.kind == "comment"]
    of_gif = any(entry.kind == "comment" and entry.code == "GIF" for entry in entries)
    if result.form == "PNG":
        yield from (png.chunk(entry.code.encode(), entry.data) for entry in texts)
        yield from map(png.comment_chunk, comments)
        yield from (png.chunk(entry.code.encode(), entry.data) for entry in entries if _copied(entry))
    elif texts:
        out.warnings.append(f"PNG texts are left out: {list_names(entry.name or '(no keyword)' for entry in texts)}")
    if result.form == "JPEG":
        most = jpeg.MOST
        yield from (
            jpeg.segment(0xFE, data[at : at + most]) for data in comments for at in range(0, max(1, len(data)), most)
        )
    elif comments and result.form != "PNG":
        form = "GIF" if of_gif else "JPEG"
        out.warnings.append(
            f"the {form} comment is left out" if len(comments) == 1 else f"{form} comments are left out"
        )


def _turns(text: Entry) -> bool:
    """Whether it is a text by which ImageMagick would turn the result."""
    value = text.data.partition(b"\0")[2].strip()
    return text.name.lower().endswith("orientation") and value not in (b"1", b"TopLeft")


def _copied(entry: Entry) -> bool:
    """Whether it is a chunk of an unknown kind that says that it may be copied to other pixels."""
    return entry.kind == "other" and bool(entry.data) and len(entry.code) == 4


def _plan_density(out: Plan, source: Source, result: Result) -> bytes:
    """Returns the chunk or segment that holds the resolution, or the shape of pixels."""
    if source.aspect and not source.resolution:
        x, y = _whole(source.aspect)
        if result.form == "PNG":
            return png.chunk(b"pHYs", struct.pack(">IIB", x, y, 0))
        if result.form == "JPEG":
            return jpeg.jfif(x, y, 0)
        if result.form == "TIFF":
            out.tags |= tiff.resolution_tags(x, y, 1)
        else:
            out.warnings.append(f"the ratio of the pixels' sides, {x}:{y} without a unit of length, is left out")
        return b""
    x, y = source.resolution or _DEFAULT
    if result.form == "PNG":
        return png.chunk(b"pHYs", struct.pack(">IIB", max(1, round(x * 1000)), max(1, round(y * 1000)), 1))
    if result.form == "JPEG":
        error, unit, (a, b) = min(
            (_rounding(x * mm, y * mm), code, (x * mm, y * mm)) for code, mm in ((1, _MM), (2, 10))
        )
        if error > 0.01:
            out.warnings.append(
                f"the resolution is rounded, JPEG has whole numbers up to 65,535: {x * _MM:g} x {y * _MM:g} dpi"
            )
        return jpeg.jfif(_sixteen_bits(a), _sixteen_bits(b), unit)
    return b""


def _sixteen_bits(value: float) -> int:
    return min(max(1, round(value)), 65_535)


def _rounding(*sides: float) -> float:
    return max(abs(_sixteen_bits(side) - side) / side for side in sides)


def _whole(pair: tuple[float, float]) -> tuple[int, int]:
    """A ratio as whole numbers that every format holds."""
    x, y = pair
    if x == int(x) and y == int(y) and max(x, y) <= 65_535:
        return int(x), int(y)
    scale = 65_535 / max(x, y)
    return max(1, round(x * scale)), max(1, round(y * scale))


def _name_losses(entries: tuple[Entry, ...], result: Result) -> Iterator[str]:
    """A line for each kind of thing that no format takes over."""
    kinds = {entry.kind for entry in entries}
    if "thumbnail" in kinds:
        yield "the thumbnail is left out, it shows the image as it was"
    if "gain map" in kinds:
        yield "the gain map is left out, the image is what screens without HDR show"
    if "images" in kinds:
        yield "further images behind the first are left out"
    if "geo" in kinds:
        yield "the georeference (GeoTIFF) is left out, it is for the pixels as they were"
    if "nodata" in kinds and not (result.form == "TIFF" and data_of(entries, "nodata")):
        yield "the nodata value (GDAL) is left out"
    if others := [
        entry for entry in entries if entry.kind == "other" and not (result.form == "PNG" and _copied(entry))
    ]:
        yield f"left out, not known to suit the result: {list_names(entry.name for entry in others)}"
    for kind, why in (("damaged", "damaged"), ("large", "above 32 MB")):
        if found := [entry.name for entry in entries if entry.kind == kind]:
            yield f"left out, {why}: {list_names(found)}"

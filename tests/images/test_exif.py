"""EXIF data out of TIFF files and into them, with Pillow, tifffile and TIFF files written by hand as witnesses."""

import dataclasses
import io
import struct

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import IFD

from edsr.images import exif
from edsr.images.exif import Entry, Exif
from edsr.images.reader import ImageReader, read_image
from tests.support.image_files import EXTENSIONS, ICC, encoded, linux, make_image, names, pillow, refused, write

ASCII, SHORT, LONG, RATIONAL, UNDEFINED, LONG8 = 2, 3, 4, 5, 7, 16
MAKE, COPYRIGHT, HOST, ORIENTATION = 271, 33432, 316, 274
EXIF, GPS, INTEROPERABILITY = 34665, 34853, 40965
TAKEN, MAKER_NOTE, COMMENT, WIDTH, HEIGHT, TITLE = 0x9003, 0x927C, 0x9286, 0xA002, 0xA003, 0xA436
LAYOUTS = [(order, big) for order in "<>" for big in (False, True)]
LIMIT = {False: 10**9, True: 0}  # bytes above which a TIFF is a BigTIFF
LEFT_OUT = "EXIF data is left out in part"


# ---- TIFF by hand


def values(order, kind, *numbers):
    """An entry: (type, count, data)."""
    code, each = {SHORT: ("H", 1), LONG: ("I", 1), RATIONAL: ("I", 2)}[kind]
    return kind, len(numbers) // each, struct.pack(f"{order}{len(numbers)}{code}", *numbers)


def text(data):
    return ASCII, len(data) + 1, data + b"\0"


def tiff(order="<", big=False, pixels=None, first=None, **below):
    """An uncompressed RGB image with entries {tag: (type, count, data)} in its first directory and others, by name.

    Data that is an int is an offset.
    """
    pixels = make_image() if pixels is None else pixels
    number, word, entry = (f"{order}{code}" for code in (("Q", "Q", "HHQ") if big else ("H", "I", "HHI")))
    size = struct.calcsize(word)
    out = io.BytesIO()
    signature = b"II" if order == "<" else b"MM"
    out.write(signature + struct.pack(f"{order}HHH", 43, 8, 0) if big else signature + struct.pack(f"{order}H", 42))
    out.write(struct.pack(word, 0))
    strips = out.tell()
    out.write(pixels.tobytes())

    def directory(entries, following=0):
        placed = {}
        for tag, (kind, count, data) in entries.items():
            if isinstance(data, bytes) and len(data) > size:
                out.write(bytes(out.tell() % 2))
                at = out.tell()
                out.write(data)
                data = at
            placed[tag] = kind, count, struct.pack(word, data) if isinstance(data, int) else data.ljust(size, b"\0")
        out.write(bytes(out.tell() % 2))
        at = out.tell()
        out.write(struct.pack(number, len(placed)))
        for tag, (kind, count, data) in sorted(placed.items()):
            out.write(struct.pack(entry, tag, kind, count) + data)
        out.write(struct.pack(word, following))
        return at

    first = dict(first or {})
    kind = LONG8 if big else LONG
    if "interoperability" in below:
        below["exif"][INTEROPERABILITY] = kind, 1, directory(below["interoperability"])
    for tag, name in ((EXIF, "exif"), (GPS, "gps")):
        if name in below:
            first[tag] = kind, 1, directory(below[name])
    height, width, _ = pixels.shape
    structure = {256: (width,), 257: (height,), 258: (8, 8, 8), 259: (1,), 262: (2,), 277: (3,), 278: (height,)}
    own = {tag: values(order, SHORT, *numbers) for tag, numbers in structure.items()}
    own |= {273: values(order, LONG, strips), 279: values(order, LONG, pixels.size)}
    thumbnail = below.get("thumbnail", b"")
    place = out.tell()
    out.write(thumbnail)
    following = directory({513: (LONG, 1, place), 514: values(order, LONG, len(thumbnail))}) if thumbnail else 0
    at = directory(first | own, following)
    out.seek(8 if big else 4)
    out.write(struct.pack(word, at))
    return out.getvalue()


def full(order):
    """Entries of every kind, as they come from a camera."""
    comment = "höher".encode("utf-16-le" if order == "<" else "utf-16-be")
    return {
        "first": {
            MAKE: text(b"A maker"),
            COPYRIGHT: text("© Müller".encode()),
            HOST: text(b"den"),
            ORIENTATION: values(order, SHORT, 6),
        },
        "exif": {
            0x829A: values(order, RATIONAL, 1, 125),
            0x8827: values(order, SHORT, 400),
            TAKEN: text(b"2020:02:03 04:05:06"),
            MAKER_NOTE: (UNDEFINED, 21, b"of its own making \0\1\2"),
            COMMENT: (UNDEFINED, 8 + len(comment), b"UNICODE\0" + comment),
            WIDTH: values(order, LONG, 60),
            HEIGHT: values(order, LONG, 41),
        },
        "interoperability": {1: text(b"R98")},
        "gps": {
            0: (1, 4, b"\2\3\0\0"),
            1: text(b"N"),
            2: values(order, RATIONAL, 48, 1, 8, 1, 2503, 200),
        },
    }


def check(path, width, height, seconds=2503 / 200):
    """The file holds what `full` has, of an image of that size, as Pillow reads it."""
    with Image.open(path) as image:
        found, size = image.getexif(), image.size
        own, gps, interoperability = (found.get_ifd(tag) for tag in (EXIF, GPS, INTEROPERABILITY))
        assert not found.get_ifd(IFD.IFD1)
    assert size == (width, height)
    assert found[MAKE] == "A maker" and found[COPYRIGHT].encode("latin-1") == "© Müller".encode()
    assert found.get(ORIENTATION, 1) == 1
    assert own[0x829A] == 1 / 125 and own[0x8827] == 400 and own[TAKEN] == "2020:02:03 04:05:06"
    assert (own[WIDTH], own[HEIGHT]) == (width, height)
    assert own[MAKER_NOTE] == b"of its own making \0\1\2" and own[COMMENT].startswith(b"UNICODE\0")
    assert interoperability[1] == "R98"
    assert gps == {0: b"\2\3\0\0", 1: "N", 2: (48, 8, seconds)}
    return found, own


# ---- out of TIFF, into TIFF


@pytest.mark.parametrize("order, big", LAYOUTS)
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_out_of_a_tiff(tmp_path, order, big, extension):
    source, target, pixels = tmp_path / "a.tif", tmp_path / f"b{extension}", make_image()
    source.write_bytes(tiff(order, big, pixels, **full(order)))
    with tifffile.TiffFile(source) as file:  # as it was meant
        assert file.byteorder == order and file.is_bigtiff == big and np.array_equal(file.asarray(), pixels)
    upright = np.rot90(pixels, -1)
    with ImageReader(source) as reader:
        assert reader.warnings == ()
        assert np.array_equal(np.concatenate(list(reader.rows(7))), upright)
        writer = write(target, np.repeat(np.repeat(upright, 2, 0), 2, 1), like=reader)
    assert writer.warnings == ()
    found, own = check(target, 120, 82)
    swapped = extension == ".tif" and order == ">"  # libvips writes its own order there, elsewhere that of the data
    assert own[COMMENT][8:].decode("utf-16-le" if swapped or order == "<" else "utf-16-be") == "höher"
    assert found[HOST] == "den"
    if extension == ".tif":
        with tifffile.TiffFile(target) as file:
            (page,) = file.pages
            assert np.array_equal(page.asarray(), np.repeat(np.repeat(upright, 2, 0), 2, 1))
            assert page.tags["Make"].value == "A maker" and page.tags["Copyright"].value == "© Müller"
            assert page.tags["ExifTag"].value["ExposureTime"] == (1, 125)
            assert page.tags["ExifTag"].value["PixelXDimension"] == 120
            assert page.tags["GPSTag"].value["GPSLatitude"] == (48, 1, 8, 1, 2503, 200)
            codes = [tag.code for tag in page.tags]
            assert codes == sorted(set(codes)) and page.tags["Orientation"].value == 1


def jpeg_with(data, pixels=None):
    return encoded("jpeg", pillow(make_image() if pixels is None else pixels), exif=b"Exif\0\0" + data)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_into_a_tiff(tmp_path, order, big):
    # EXIF data is a TIFF, and this one describes pixels of its own, which say nothing about ours.
    (tmp_path / "a.jpg").write_bytes(jpeg_with(tiff(order, False, make_image(9, 9), **full(order))))
    pixels = make_image(82, 120)
    with ImageReader(tmp_path / "a.jpg") as reader:
        writer = write(tmp_path / "b.tif", pixels, like=reader, bigtiff_above=LIMIT[big])
    assert writer.warnings == () and names(tmp_path) == ["a.jpg", "b.tif"]
    found, own = check(tmp_path / "b.tif", 120, 82)
    assert found[HOST] == "den" and own[COMMENT][8:].decode("utf-16-le") == "höher"
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.is_bigtiff == big and file.byteorder == "<"
        (page,) = file.pages
        assert np.array_equal(page.asarray(), pixels)
        assert page.tags["GPSTag"].value["GPSLatitude"] == (48, 1, 8, 1, 2503, 200)
        assert page.tags["ExifTag"].value["PixelYDimension"] == 82
    with ImageReader(tmp_path / "b.tif") as reader:  # counts one page
        assert np.array_equal(np.concatenate(list(reader.rows(7))), pixels)


def test_a_tiff_keeps_what_it_says_itself(tmp_path):
    structure = {256: 9, 273: 7, 282: 5, 339: 3, 700: 1, 34675: 2}  # size, strips, resolution, XMP, profile, ...
    first = {tag: values("<", LONG, number) for tag, number in structure.items()} | {MAKE: text(b"A maker")}
    own = {ORIENTATION: values("<", SHORT, 6), TAKEN: text(b"2020:02:03 04:05:06"), 513: values("<", LONG, 8)}
    data = tiff(first=first, exif=own)
    options = {"icc_profile": ICC, "exif": b"Exif\0\0" + data}
    (tmp_path / "a.png").write_bytes(encoded("png", pillow(make_image()), dpi=(300, 300), **options))
    with ImageReader(tmp_path / "a.png") as reader:
        write(tmp_path / "b.tif", make_image(), like=reader)
        reader.source = dataclasses.replace(
            reader.source, entries=tuple(entry for entry in reader.metadata if entry.kind != "exif")
        )
        write(tmp_path / "c.tif", make_image(), like=reader)
    with tifffile.TiffFile(tmp_path / "b.tif") as file, tifffile.TiffFile(tmp_path / "c.tif") as without:
        tags, plain = ({tag.code: tag.value for tag in each.pages.first.tags} for each in (file, without))
    below = tags.pop(EXIF)
    for tag in (282, 283, 296):  # the same in centimetres and in inches
        del tags[tag], plain[tag]
    assert ImageReader(tmp_path / "b.tif").resolution == pytest.approx((300 / 25.4, 300 / 25.4), rel=1e-4)
    assert tags == plain | {MAKE: "A maker"}
    assert below == {"DateTimeOriginal": "2020:02:03 04:05:06", "PixelXDimension": 41, "PixelYDimension": 60}


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("big", [False, True])
def test_append(tmp_path, big, odd):
    write(tmp_path / "a.tif", make_image(), bigtiff_above=LIMIT[big])
    before = (tmp_path / "a.tif").read_bytes()
    before += bytes((len(before) + odd) % 2)
    (tmp_path / "a.tif").write_bytes(before)
    texts = {tag: Entry(*text(b"x" * tag)) for tag in range(40, 60)}
    own = {256: Entry(*values("<", SHORT, 7)), MAKE: Entry(*text(b"A maker, of an odd length")), COPYRIGHT: texts[40]}
    with open(tmp_path / "a.tif", "rb+") as file:
        assert exif.append(file, Exif("<", {0: own, EXIF: texts, GPS: texts}), 41, 60)
    after = (tmp_path / "a.tif").read_bytes()
    size = 16 if big else 8
    assert after[size : len(before)] == before[size:] and after[: size // 2] == before[: size // 2]
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        (page,) = file.pages
        aside = [tag.valueoffset for tag in page.tags if tag.valuebytecount > (8 if big else 4)]
        assert all(place % 2 == 0 for place in (page.offset, *aside))
        assert page.tags[256].value == 41 and page.tags[MAKE].value == "A maker, of an odd length"
        pointers = [page.tags[tag] for tag in (EXIF, GPS)]
        assert [tag.dtype for tag in pointers] == [LONG8 if big else LONG] * 2
        form = exif.TiffForm("<", big)
        for tag in pointers:
            place = int.from_bytes(after[tag.offset + (12 if big else 8) :][: form.offset.size], "little")
            entries, _ = exif.read_ifd(io.BytesIO(after), form, place)
            aside = [form.offset.unpack(entry.data)[0] for entry in entries.values() if entry.value_count > 8]
            assert len(aside) == 20 and all(each % 2 == 0 for each in (place, *aside))
        assert np.array_equal(file.asarray(), make_image())


@pytest.mark.parametrize("data", [b"A field", "Wiese, grün".encode(), "Wiese, grün".encode("latin-1"), b"\xff\xfe\x80"])
@pytest.mark.parametrize("target", [".tif", ".png", ".jpg", ".webp"])
def test_text_of_any_kind(tmp_path, data, target):
    (tmp_path / "a.tif").write_bytes(tiff(first={270: text(data), 315: text(data)}))
    with ImageReader(tmp_path / "a.tif") as reader:
        assert reader.warnings == ()
        write(tmp_path / f"b{target}", make_image(), like=reader)
    with Image.open(tmp_path / f"b{target}") as image:
        assert [image.getexif()[tag].encode("latin-1") for tag in (270, 315)] == [data, data]


def test_utf8_of_exif_3(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(exif={TITLE: (129, 6, "grün\0".encode())}))
    with ImageReader(tmp_path / "a.tif") as reader:
        assert reader.warnings == ()
        write(tmp_path / "b.tif", make_image(), like=reader)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        file.filehandle.seek(0)
        assert struct.pack("<HHI", TITLE, ASCII, 6) in file.filehandle.read()


def test_no_exif_leaves_a_tiff_as_it_is(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff())
    with ImageReader(tmp_path / "a.tif") as reader:
        assert not any(entry.kind == "exif" for entry in reader.metadata)
        write(tmp_path / "b.tif", make_image(), like=reader)
    write(tmp_path / "c.tif", make_image())
    with Image.open(tmp_path / "b.tif") as image:
        assert not image.getexif().get_ifd(EXIF)
    assert (tmp_path / "b.tif").read_bytes() == (tmp_path / "c.tif").read_bytes()


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_thumbnails_are_dropped(tmp_path, extension):
    thumbnail = encoded("jpeg", pillow(make_image(12, 16)))
    data = tiff(pixels=make_image(2, 2), first=full("<")["first"], thumbnail=thumbnail)
    (tmp_path / "a.jpg").write_bytes(jpeg_with(data))
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.getexif().get_ifd(IFD.IFD1)[514] == len(thumbnail)
    with ImageReader(tmp_path / "a.jpg") as reader:
        write(tmp_path / f"b{extension}", make_image(), like=reader)
    with Image.open(tmp_path / f"b{extension}") as image:
        assert image.getexif()[MAKE] == "A maker" and not image.getexif().get_ifd(IFD.IFD1)
    assert thumbnail not in (tmp_path / f"b{extension}").read_bytes()


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_resolution_is_turned_in_exif_too(tmp_path, extension):
    resolution = {282: values("<", RATIONAL, 100, 1), 283: values("<", RATIONAL, 200, 1), 296: values("<", SHORT, 2)}
    data = tiff(pixels=make_image(2, 2), first=resolution | {ORIENTATION: values("<", SHORT, 6)})
    (tmp_path / "a.jpg").write_bytes(jpeg_with(data))
    with ImageReader(tmp_path / "a.jpg") as reader:
        assert reader.resolution == pytest.approx((200 / 25.4, 100 / 25.4))
        write(tmp_path / f"b{extension}", make_image(), like=reader)
    with Image.open(tmp_path / f"b{extension}") as image:
        assert (image.getexif()[282], image.getexif()[283]) == pytest.approx((200, 100), abs=0.01)


def test_the_first_of_two(tmp_path):
    data = tiff(first={MAKE: text(b"A maker"), MAKE + 1: text(b"Another"), EXIF: (LONG, 1, 0)})
    data = data.replace(struct.pack("<HH", MAKE + 1, ASCII), struct.pack("<HH", MAKE, ASCII))
    (tmp_path / "a.tif").write_bytes(data)
    with ImageReader(tmp_path / "a.tif") as reader:
        assert reader.warnings == ()  # nor is a pointer to nowhere a loss
        write(tmp_path / "b.png", make_image(), like=reader)
    with Image.open(tmp_path / "b.png") as image:
        assert image.getexif()[MAKE] == "A maker"


# ---- too large


def note(size):
    return {MAKE: text(b"A maker")}, {MAKER_NOTE: (UNDEFINED, size, b"n" * size), TAKEN: text(b"2020:02:03 04:05:06")}


@pytest.mark.parametrize("size", [60_000, 100_000, 600_000])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_large(tmp_path, size, extension):
    first, own = note(size)
    (tmp_path / "a.tif").write_bytes(tiff(first=first, exif=own))
    with ImageReader(tmp_path / "a.tif") as reader:
        writer = write(tmp_path / f"b{extension}", make_image(), like=reader)
    most = 65_000 if extension == ".jpg" else 512_000
    lost = [line for line in (*reader.warnings, *writer.warnings) if LEFT_OUT in line]
    assert len(lost) == (size > most)
    with Image.open(tmp_path / f"b{extension}") as image:
        found = image.getexif()
        assert found[MAKE] == "A maker" and found.get_ifd(EXIF)[TAKEN] == "2020:02:03 04:05:06"
        assert len(found.get_ifd(EXIF).get(MAKER_NOTE, b"")) == (size if size <= most else 0)


def test_large_because_of_a_thumbnail(tmp_path):
    # 66 kB in a PNG, of which what is kept would fit.
    data = tiff(pixels=make_image(150, 148), first={MAKE: text(b"A maker")})
    (tmp_path / "a.png").write_bytes(encoded("png", pillow(make_image()), exif=b"Exif\0\0" + data))
    with ImageReader(tmp_path / "a.png") as reader:
        writer = write(tmp_path / "b.jpg", make_image(), like=reader)
    assert writer.warnings == ()
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.getexif()[MAKE] == "A maker"


def test_large_and_damaged(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("png", pillow(make_image()), exif=b"Exif\0\0II*\0" + bytes(70_000)))
    with ImageReader(tmp_path / "a.png") as reader:
        writer = write(tmp_path / "b.jpg", make_image(), like=reader)
    assert [LEFT_OUT in line for line in writer.warnings] == [True]
    assert read_image(tmp_path / "b.jpg").shape == (60, 41, 3)


def test_many_entries_of_the_same_data(tmp_path):
    own = {1000 + i: (UNDEFINED, 1000, 8) for i in range(40_000)}
    (tmp_path / "a.tif").write_bytes(tiff(exif=own))
    with ImageReader(tmp_path / "a.tif") as reader:
        assert any(LEFT_OUT in line for line in reader.warnings)
        (data,) = (entry.data for entry in reader.metadata if entry.kind == "exif")
        assert 500_000 < len(data) <= exif.MAX_READ + 100
        for name in ("b.tif", "b.jpg"):
            write(tmp_path / name, make_image(), like=reader)
            assert read_image(tmp_path / name).shape == (60, 41, 3)


@given(st.lists(st.integers(0, 3000), max_size=60), st.integers(300, 20_000))
def test_trim(sizes, most):
    own = {i: Entry(UNDEFINED, size, bytes(size)) for i, size in enumerate(sizes)}
    whole = Exif("<", {0: {MAKE: Entry(*text(b"A maker"))}, EXIF: own})
    trimmed = exif.trim(whole, most)
    assert len(exif.pack(trimmed)) <= most
    kept, dropped = trimmed.ifds[EXIF], own.keys() - trimmed.ifds[EXIF].keys()
    assert not dropped or max(map(len, (own[tag].data for tag in kept)), default=0) <= min(
        len(own[tag].data) for tag in dropped
    )
    if len(exif.pack(whole)) + 200 + len(sizes) <= most:
        assert trimmed == whole


@linux  # where a file may have holes
@pytest.mark.parametrize("big", [False, True])
def test_four_gigabytes(tmp_path, big):
    path, size = tmp_path / "a.tif", 2**32 - 100
    write(path, make_image(), bigtiff_above=LIMIT[big])
    before = path.read_bytes()
    found = Exif("<", {0: {MAKE: Entry(*text(b"A maker"))}, EXIF: {TAKEN: Entry(*text(b"2020:02:03 04:05:06"))}})
    with open(path, "rb+") as file:
        file.truncate(size)
        assert exif.append(file, found, 41, 60) == big
    if big:
        with tifffile.TiffFile(path) as file:
            assert file.pages.first.tags["Make"].value == "A maker"
            assert np.array_equal(file.asarray(), make_image())
        return
    assert path.stat().st_size == size
    with open(path, "rb") as file:
        assert file.read(len(before)) == before


def test_no_room_below_four_gigabytes_is_told(tmp_path, monkeypatch):
    (tmp_path / "a.tif").write_bytes(tiff(first={MAKE: text(b"A maker")}))
    monkeypatch.setattr(exif, "append", lambda *_: False)
    with ImageReader(tmp_path / "a.tif") as reader:
        writer = write(tmp_path / "b.tif", make_image(), like=reader)
    assert writer.warnings == ("EXIF data is left out, the file would become larger than 4 GB",)


def test_disk_full_at_the_end(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "a.tif").write_bytes(tiff(first={MAKE: text(b"A maker")}))
    monkeypatch.setattr(exif, "append", full_disk)
    with ImageReader(tmp_path / "a.tif") as reader:
        refused("No space left on device", write, tmp_path / "b.tif", make_image(), like=reader)
    assert names(tmp_path) == ["a.tif"]


# ---- damaged

DAMAGED = {
    "beyond the file": ({EXIF: (LONG, 1, 2**31)}, None),
    "the first again": ({EXIF: (LONG, 1, 8 + 60 * 41 * 3)}, None),
    "no pointer": ({EXIF: text(b"abc")}, None),
    "two pointers": ({GPS: (LONG, 2, 8)}, None),
    "in the pixels": ({GPS: (LONG, 1, 100)}, None),
    "unknown type": ({COPYRIGHT: (99, 1, 0)}, None),
    "no type": ({COPYRIGHT: (0, 1, 0)}, None),
    "an offset without base": ({}, {330: (13, 1, 8)}),
    "data beyond the file": ({}, {MAKER_NOTE: (UNDEFINED, 5000, 7000)}),
    "offset beyond the file": ({}, {MAKER_NOTE: (UNDEFINED, 50, 2**32 - 1)}),
    "huge": ({}, {MAKER_NOTE: (UNDEFINED, 2**32 - 1, 8)}),
    "overflow": ({}, {0x829A: (12, 2**29 + 1, 8)}),
    "below itself": ({}, {INTEROPERABILITY: (LONG, 1, "itself")}),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("extension", [".tif", ".jpg", ".png"])
def test_damaged_in_a_tiff(tmp_path, name, extension):
    first, own = DAMAGED[name]
    first = {MAKE: text(b"A maker")} | first
    if own and own.get(INTEROPERABILITY, ("",))[-1] == "itself":
        own = {INTEROPERABILITY: (LONG, 1, 8 + 60 * 41 * 3)}
    data = tiff(first=first) if own is None else tiff(first=first, exif=own)
    if name == "the first again":
        first[EXIF] = (LONG, 1, struct.unpack_from("<I", data, 4)[0])
        data = tiff(first=first)
    (tmp_path / "a.tif").write_bytes(data)
    with ImageReader(tmp_path / "a.tif") as reader:
        assert [LEFT_OUT in line for line in reader.warnings] == [True]
        assert np.array_equal(np.concatenate(list(reader.rows(9))), make_image())
        writer = write(tmp_path / f"b{extension}", make_image(), like=reader)
    assert writer.warnings == ()
    with Image.open(tmp_path / f"b{extension}") as image:
        assert image.getexif()[MAKE] == "A maker"
        below = {tag: image.getexif().get_ifd(tag) for tag in (EXIF, GPS, INTEROPERABILITY)}
    made_up = {0x9000, 0xA000, 0xA001, WIDTH, HEIGHT}  # by libexif
    assert not below[EXIF].keys() - made_up and not below[GPS] and not below[INTEROPERABILITY]
    assert read_image(tmp_path / f"b{extension}").shape == (60, 41, 3)


@pytest.mark.parametrize("place", [2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_far_away_in_a_bigtiff(tmp_path, place):
    own = {MAKER_NOTE: (UNDEFINED, 50, place), TAKEN: text(b"2020:02:03 04:05:06")}
    (tmp_path / "a.tif").write_bytes(tiff(">", True, first={GPS: (LONG8, 1, place)}, exif=own))
    with ImageReader(tmp_path / "a.tif") as reader:
        assert [LEFT_OUT in line for line in reader.warnings] == [True]
        write(tmp_path / "b.png", make_image(), like=reader)
    with Image.open(tmp_path / "b.png") as image:
        below = image.getexif().get_ifd(EXIF)
    assert below[TAKEN] == "2020:02:03 04:05:06" and MAKER_NOTE not in below


@pytest.mark.parametrize("data", [b"", b"II", b"nonsense", b"II*\0\xff\xff\xff\x7f", tiff()[:-60], tiff(big=True)[:9]])
def test_damaged_in_another_format(tmp_path, data):
    (tmp_path / "a.png").write_bytes(encoded("png", pillow(make_image()), exif=b"Exif\0\0" + data))
    with ImageReader(tmp_path / "a.png") as reader:
        writer = write(tmp_path / "b.tif", make_image(), like=reader)
    assert [LEFT_OUT in line for line in writer.warnings] in ([True], [])
    assert np.array_equal(read_image(tmp_path / "b.tif"), make_image())


def test_any_byte_may_be_wrong(tmp_path):
    data = tiff(**full("<"))
    whole, _ = exif.parse(io.BytesIO(data))
    for at in range(60 * 41 * 3, len(data)):
        for value in (0, 255):
            damaged = data[:at] + bytes([value]) + data[at + 1 :]
            found, _ = exif.parse(io.BytesIO(damaged))
            again, _ = exif.parse(io.BytesIO(exif.pack(found).removeprefix(b"Exif\0\0")))
            assert again.ifds == found.ifds
    assert whole.ifds.keys() == {0, EXIF, GPS, INTEROPERABILITY}

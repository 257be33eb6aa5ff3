"""Things told twice, in odd places or in odd ways; and results that are read again."""

import io
import struct
import zlib

import pytest

from edsr.images.metadata import exif_edit, heif, inventory, jpeg, photoshop, png, tiff, xmp
from edsr.images.tiff_parts import count_pages
from tests.images.metadata.files import (
    ICC,
    IIM,
    OUTPUTS,
    PIXELS,
    RESOURCES,
    chunk,
    chunks,
    convert,
    directory,
    exif,
    found_in,
    icc_chunk,
    jpeg_with,
    png_with,
    segment,
    webp_with,
    xmp_chunk,
)
from tests.images.metadata.files import tiff as tiff_with
from tests.images.metadata.files import xmp as packet
from tests.support.image_files import encoded, pillow

GAMMA = [chunk(b"gAMA", struct.pack(">I", value)) for value in (45455, 100_000)]
OTHER_ICC = ICC[:8] + b"\2\x10\0\0" + ICC[12:]
AVIF = encoded("avif", pillow(PIXELS))
OTHER_IIM = IIM.replace(b"Harbour", b"Airport")
SOURCES = {  # name -> file, and what must be said in every format
    "twice.png": (png_with(*GAMMA), "a second gAMA is left out"),
    "behind.png": (png_with(after=GAMMA[1:]), "gAMA behind the pixels"),
    "profile_behind.png": (png_with(after=[icc_chunk(ICC)]), "iCCP behind the pixels"),
    "nine_patch.png": (png_with(chunk(b"npTc", bytes(32))), "npTc"),
    "profiles.jpg": (
        jpeg_with(*(segment(0xE2, b"ICC_PROFILE\0\1\1" + profile) for profile in (ICC, OTHER_ICC))),
        "a second color profile",
    ),
    "tail.webp": (webp_with() + b"bytes behind the end of the container", "bytes after the image's end"),
    "uuid.avif": (AVIF + struct.pack(">I4s", 44, b"uuid") + bytes(36), "box uuid"),
    "film.avif": (AVIF + struct.pack(">I4s", 28, b"mpvd") + bytes(20), "box mpvd"),
    "tail.avif": (AVIF + b"\0\0\0\5and other bytes, no box", "bytes after the image's end"),
}


@pytest.mark.parametrize("target", OUTPUTS)
@pytest.mark.parametrize("name", SOURCES)
def test_named(tmp_path, name, target):
    data, text = SOURCES[name]
    (tmp_path / name).write_bytes(data)
    said = convert(tmp_path / name, tmp_path / f"b{target}")
    assert [line for line in said if text in line] and not [line for line in said if "converted" in line]
    assert ("gAMA", GAMMA[1][8:12]) not in (chunks(tmp_path / "b.png") if target == ".png" else [])


def test_padding_behind_an_avif_is_nothing(tmp_path):
    (tmp_path / "a.avif").write_bytes(AVIF + struct.pack(">I4s", 28, b"free") + bytes(20))
    assert convert(tmp_path / "a.avif", tmp_path / "b.png") == ()


def test_auxiliary_images():
    def box(kind, data):
        return struct.pack(">I4s", 8 + len(data), kind) + data

    names = [b"urn:mpeg:mpegB:cicp:systems:auxiliary:" + name for name in (b"alpha", b"depth")]
    names += [b"urn:mpeg:hevc:2015:auxid:1", b"urn:com:apple:photo:2020:aux:hdrgainmap"]
    content = box(b"iprp", box(b"ipco", b"".join(box(b"auxC", bytes(4) + name + b"\0") for name in names)))
    file = io.BytesIO(box(b"ftyp", b"avif") + box(b"meta", bytes(4) + content))
    assert [entry.name for entry in heif.scan(file)] == ["auxiliary image (depth)", "gain map"]


@pytest.mark.parametrize("target", OUTPUTS)
@pytest.mark.parametrize("value", ["&#x36;", "&#54;", "6"])
def test_orientation_in_characters_by_number(tmp_path, value, target):
    (tmp_path / "a.png").write_bytes(png_with(xmp_chunk(packet(value))))
    assert convert(tmp_path / "a.png", tmp_path / f"b{target}") == ()
    found = found_in(tmp_path / f"b{target}")
    assert found["size"] == (40, 48) and b'tiff:Orientation="1"' in found["xmp"]


@pytest.mark.parametrize("target", OUTPUTS)
def test_a_second_directory_without_thumbnail_is_none(tmp_path, target):
    size = len(directory({271: (2, b"Maker\0")}, 8))
    data = b"II*\0\x08\0\0\0" + directory({271: (2, b"Maker\0")}, 8, 8 + size) + directory({296: (3, 2)}, 8 + size)
    assert not exif_edit.has_thumbnail(data)
    (tmp_path / "a.jpg").write_bytes(jpeg_with(segment(0xE1, b"Exif\0\0" + data)))
    assert convert(tmp_path / "a.jpg", tmp_path / f"b{target}") == ()
    assert found_in(tmp_path / f"b{target}")["maker"] == "Maker"


def test_a_text_that_says_upright_stays(tmp_path):
    text = b"exif:Orientation\0" + b"1"
    (tmp_path / "a.png").write_bytes(png_with(chunk(b"tEXt", text)))
    assert convert(tmp_path / "a.png", tmp_path / "b.png") == ()
    assert ("tEXt", text) in chunks(tmp_path / "b.png")


@pytest.mark.parametrize("target", [".png", ".jpg", ".tif"])
def test_iptc_that_contradicts_itself(tmp_path, target):
    (tmp_path / "a.tif").write_bytes(tiff_with({33723: (7, OTHER_IIM), 34377: (7, RESOURCES)}))
    said = convert(tmp_path / "a.tif", tmp_path / f"b{target}")
    assert [line for line in said if "IPTC data is told twice" in line]
    (tmp_path / "c.tif").write_bytes(tiff_with({33723: (7, IIM), 34377: (7, RESOURCES)}))
    assert not [line for line in convert(tmp_path / "c.tif", tmp_path / f"d{target}") if "twice" in line]


def test_resources_in_a_png_begin_as_readers_want_it(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg_with(segment(0xED, b"Photoshop 3.0\0" + RESOURCES)))
    convert(tmp_path / "a.jpg", tmp_path / "b.png")
    _, kind, size, digits = found_in(tmp_path / "b.png")["info"]["Raw profile type iptc"].split("\n", 3)
    assert (kind, int(size), bytes.fromhex(digits)) == ("iptc", len(RESOURCES), RESOURCES)


def test_records_in_two_resources_are_joined():
    parts = [b"8BIM\4\4\0\0" + struct.pack(">I", len(iim)) + iim + bytes(len(iim) % 2) for iim in (IIM, OTHER_IIM)]
    assert photoshop.split(b"".join(parts)) == (IIM + OTHER_IIM, b"")


@pytest.mark.parametrize("target", OUTPUTS)
def test_a_result_is_read_without_a_line(tmp_path, target):
    first = {271: (2, b"Maker\0"), 50341: (7, b"PrintIM\x000300\0\0\0\0")}
    (tmp_path / "a.jpg").write_bytes(jpeg_with(segment(0xE1, b"Exif\0\0" + exif(6, first))))
    for source, result in (("a.jpg", f"b{target}"), (f"b{target}", f"c{target}")):
        assert convert(tmp_path / source, tmp_path / result) == ()
    assert b"PrintIM" in (tmp_path / f"c{target}").read_bytes()


@pytest.mark.parametrize("target", OUTPUTS)
def test_extended_xmp_of_ours_becomes_one_again(tmp_path, target):
    large = packet(more="<a:b>" + "long " * 30_000 + "</a:b>")
    (tmp_path / "a.png").write_bytes(png_with(xmp_chunk(large)))
    assert len(convert(tmp_path / "a.png", tmp_path / "b.jpg")) == 1
    assert convert(tmp_path / "b.jpg", tmp_path / f"c{target}") == ()
    if target != ".jpg":
        assert found_in(tmp_path / f"c{target}")["xmp"] == large


# ---- hostile files: each takes time by its length


def test_many_tiny_resources():
    data = b"8BIM\x10\0\0\0\0\0\0\0" * 200_000
    assert photoshop.split(data) == (b"", data)


def test_many_prefixes_of_one_address():
    names = b" ".join(b'xmlns:a%d="http://ns.adobe.com/hdr-gain-map/1.0/"' % i for i in range(2000))
    assert b"xmlns" not in xmp.without_further_images(b"<a " + names + b"></a>")


def test_many_bombs_are_not_all_inflated(monkeypatch):
    inflated = []

    class Stream:
        def __init__(self):
            self.stream = zlib.decompressobj()

        def decompress(self, data, most):
            plain = self.stream.decompress(data, most)
            inflated.append(len(plain))
            return plain

        eof = False

    monkeypatch.setattr(png, "zlib", type("", (), {"decompressobj": Stream, "crc32": zlib.crc32, "error": zlib.error}))
    data = png_with(*[icc_chunk(bytes(40_000_000))] * 20)
    assert {entry.kind for entry in png.scan(io.BytesIO(data))} == {"damaged"}
    assert 0 < sum(inflated) <= 2**27


def test_directories_upon_each_other():
    count, pages = 65_535, 5_000
    data = bytearray(8 + 4 * pages + 2 + 12 * count + 8)
    data[:8] = b"II*\0\x08\0\0\0"
    for at in range(8, 8 + 4 * pages, 4):
        struct.pack_into("<H", data, at, count)
        struct.pack_into("<I", data, at + 2 + 12 * count, at + 4)
    list(tiff.scan(io.BytesIO(data)))
    assert count_pages(io.BytesIO(data))[0] < 5


def test_segments_are_not_read_over_and_over():
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size=-1):
            data = super().read(size)
            self.taken += len(data)
            return data

    file = Counting(jpeg_with(*[segment(0xDB, bytes(700))] * 5_000))
    assert list(jpeg.scan(file)) == []
    assert file.taken < 10 * len(file.getvalue())


def test_a_scan_of_any_bytes_ends(tmp_path):
    (tmp_path / "a").write_bytes(b"\0" * 1000)
    for form in ("GIF", "WebP", "AVIF", "PNG", "JPEG", "TIFF"):
        inventory.take(tmp_path / "a", form, b"", 0, {})

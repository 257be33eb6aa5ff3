"""What files hold besides pixels, in every output: kept, converted or named. Witnesses: Pillow and parsers by hand."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, IptcImagePlugin

from edsr.images.metadata import exif_edit, heif, jpeg, photoshop, profiles, tiff, xmp
from edsr.images.reader import ImageReader, read_image
from tests.images.metadata.files import (
    IIM,
    NIKON,
    OUTPUTS,
    PIXELS,
    RESOURCE,
    RESOURCES,
    chunks,
    convert,
    directory,
    exif,
    found_in,
    icc_chunk,
    jpeg_with,
    png_with,
    raw_profile,
    segment,
    segments,
    webp_with,
    xmp_chunk,
)
from tests.images.metadata.files import (
    tiff as tiff_with,
)
from tests.images.metadata.files import (
    xmp as packet,
)
from tests.support.image_files import ICC, chunk, encoded, pillow, write

PHOTOSHOP = b"Photoshop 3.0\0"
NAMES = {".png": "PNG", ".jpg": "JPEG"}
MAKER = {271: (2, b"Maker\0")}


def lines(text, said):
    return [line for line in said if text in line]


# ---- orientation

TURNED = {  # file -> (contents, whether a contradiction is to be told)
    "exif.png": (png_with(chunk(b"eXIf", exif(6))), False),
    "exif_after.png": (png_with(after=[chunk(b"eXIf", exif(6))]), False),
    "xmp.png": (png_with(xmp_chunk(packet(6))), False),
    "xmp_after.png": (png_with(after=[xmp_chunk(packet(6))]), False),
    "xmp_other_prefix.png": (png_with(xmp_chunk(packet(6).replace(b"tiff:", b"t:").replace(b":tiff", b":t"))), False),
    "xmp_element.png": (png_with(xmp_chunk(packet(more="<tiff:Orientation>6</tiff:Orientation>"))), False),
    "xmp_utf16.png": (png_with(xmp_chunk(packet(6).decode().encode("utf-16"))), False),
    "xmp_as_text.png": (png_with(chunk(b"tEXt", b"XML:com.adobe.xmp\0" + packet(6))), False),
    "xmp_packed.png": (png_with(chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(packet(6)))), False),
    "both.png": (png_with(chunk(b"eXIf", exif(6)), xmp_chunk(packet(6))), False),
    "against.png": (png_with(chunk(b"eXIf", exif(6)), xmp_chunk(packet(3))), True),
    "raw_exif.png": (png_with(raw_profile("exif", b"Exif\0\0" + exif(6, MAKER))), False),
    "raw_app1.png": (png_with(raw_profile("APP1", b"Exif\0\0" + exif(6, MAKER))), False),
    "raw_app1_xmp.png": (png_with(raw_profile("APP1", b"http://ns.adobe.com/xap/1.0/\0" + packet(6))), False),
    "raw_xmp.png": (png_with(raw_profile("xmp", packet(6))), False),
    "raw_against.png": (png_with(raw_profile("exif", b"Exif\0\0" + exif(3)), chunk(b"eXIf", exif(6))), True),
    "exif_invalid.png": (png_with(chunk(b"eXIf", exif(9)), xmp_chunk(packet(6))), False),
    "exif.jpg": (jpeg_with(segment(0xE1, b"Exif\0\0" + exif(6))), False),
    "xmp.jpg": (encoded("jpeg", pillow(PIXELS), quality=95, xmp=packet(6)), False),
    "both.jpg": (encoded("jpeg", pillow(PIXELS), quality=95, exif=b"Exif\0\0" + exif(6), xmp=packet(6)), False),
    "against.jpg": (encoded("jpeg", pillow(PIXELS), exif=b"Exif\0\0" + exif(6), xmp=packet(1)), True),
    "both.tif": (tiff_with({274: (3, 6), 700: (7, packet(6))}), False),
    "against.tif": (tiff_with({274: (3, 6), 700: (7, packet(8))}), True),
    "xmp.tif": (tiff_with({700: (7, packet(6))}), False),
    "both.webp": (encoded("webp", pillow(PIXELS), lossless=True, exif=b"Exif\0\0" + exif(6), xmp=packet(6)), False),
    "both.avif": (encoded("avif", pillow(PIXELS), quality=90, exif=exif(6), xmp=packet(6)), False),
}


@pytest.mark.parametrize("target", OUTPUTS)
@pytest.mark.parametrize("name", TURNED)
def test_orientation_is_applied_once_whoever_states_it(tmp_path, name, target):
    data, told = TURNED[name]
    (tmp_path / name).write_bytes(data)
    with ImageReader(tmp_path / name) as reader:
        upright = np.concatenate(list(reader.rows(7)))
        assert (reader.width, reader.height) == (20, 24)
        assert bool(lines("orientation is told more than once: 6", reader.warnings)) == told
    if name.endswith((".png", ".tif")):
        assert np.array_equal(upright, np.rot90(PIXELS, -1))
    convert(tmp_path / name, tmp_path / f"out{target}")
    found = found_in(tmp_path / f"out{target}")
    assert found["size"] == (40, 48) and found["orientation"] == 1
    text = (found["xmp"] or b"").replace(b"\0", b"")
    assert b"rientation=" not in text or b'rientation="1"' in text
    assert not any(text in str(found["info"]).lower() for text in ("raw profile type exif", "raw profile type app1"))
    again = read_image(tmp_path / f"out{target}")
    assert again.shape[:2] == (48, 40)


@pytest.mark.parametrize("target", OUTPUTS)
def test_xmp_is_otherwise_the_same_byte_for_byte(tmp_path, target):
    (tmp_path / "a.png").write_bytes(png_with(xmp_chunk(packet(6))))
    convert(tmp_path / "a.png", tmp_path / f"b{target}")
    assert found_in(tmp_path / f"b{target}")["xmp"] == packet(1)


@pytest.mark.parametrize("code", [0, 9, 65535])
@pytest.mark.parametrize("unit", [None, 0, 7])
def test_invalid_orientation_of_a_tiff_is_1(tmp_path, code, unit):
    tags = {274: (3, code)} | ({} if unit is None else {282: (5, (300, 1)), 283: (5, (300, 1)), 296: (3, unit)})
    (tmp_path / "a.tif").write_bytes(tiff_with(tags))
    assert np.array_equal(read_image(tmp_path / "a.tif"), PIXELS)
    with ImageReader(tmp_path / "a.tif") as reader:
        for _ in range(2):  # each call starts again
            assert np.array_equal(np.concatenate(list(reader.rows(7))), PIXELS)
        assert reader.resolution == (72 / 25.4, 72 / 25.4)


def test_an_avif_is_turned_by_its_own_boxes_alone(tmp_path):
    write(tmp_path / "a.avif", PIXELS)
    with open(tmp_path / "a.avif", "r+b") as file:
        assert heif.replace_exif(file, exif(6, MAKER))
    with ImageReader(tmp_path / "a.avif") as reader:
        assert (reader.width, reader.height) == (24, 20)
        assert lines("orientation 6 in EXIF does not count in AVIF", reader.warnings)
    convert(tmp_path / "a.avif", tmp_path / "b.jpg")
    found = found_in(tmp_path / "b.jpg")
    assert found["orientation"] == 1 and found["maker"] == "Maker"


def test_a_text_that_would_turn_the_result_is_left_out(tmp_path):
    (tmp_path / "a.png").write_bytes(png_with(chunk(b"tEXt", b"exif:Orientation\x006")))
    assert lines("would turn the result: exif:Orientation", convert(tmp_path / "a.png", tmp_path / "b.png"))
    assert "exif:Orientation" not in found_in(tmp_path / "b.png")["info"]


# ---- EXIF


@pytest.mark.parametrize("maker", [b"NIKON CORPORATION\0", b"Canon\0", b"Anybody\0"])
@pytest.mark.parametrize("target", OUTPUTS)
def test_maker_notes_byte_for_byte(tmp_path, maker, target):
    data = exif(6, {271: (2, maker)}, {37500: (7, NIKON), 0x9003: (2, b"2020:02:03 04:05:06\0")})
    (tmp_path / "a.jpg").write_bytes(jpeg_with(segment(0xE1, b"Exif\0\0" + data)))
    assert convert(tmp_path / "a.jpg", tmp_path / f"b{target}") == ()
    found = found_in(tmp_path / f"b{target}")
    assert found["note"] == NIKON and found["maker"] == maker[:-1].decode()
    if target != ".tif":  # where it stood, so that offsets in it hold
        place = data.index(NIKON)
        with Image.open(tmp_path / f"b{target}") as image:
            assert image.info["exif"].removeprefix(b"Exif\0\0")[place:].startswith(NIKON)


@pytest.mark.parametrize("target", OUTPUTS)
def test_tags_that_libexif_does_not_know(tmp_path, target):
    data = exif(None, MAKER | {50341: (7, b"PrintIM\0000300"), 316: (2, b"den\0"), 18246: (3, 4)})
    (tmp_path / "a.jpg").write_bytes(jpeg_with(segment(0xE1, b"Exif\0\0" + data)))
    assert convert(tmp_path / "a.jpg", tmp_path / f"b{target}") == ()
    with Image.open(tmp_path / f"b{target}") as image:
        tags = image.getexif()
        assert tags[316] == "den" and tags[18246] == 4 and tags[50341] == b"PrintIM\0000300"


@pytest.mark.parametrize("target", OUTPUTS)
def test_thumbnails_are_named(tmp_path, target):
    thumbnail = encoded("jpeg", pillow(PIXELS[::4, ::4]))
    data = exif(None, MAKER, {37500: (7, NIKON)}, thumbnail)
    (tmp_path / "a.jpg").write_bytes(jpeg_with(segment(0xE1, b"Exif\0\0" + data)))
    assert lines("the thumbnail is left out", convert(tmp_path / "a.jpg", tmp_path / f"b{target}"))
    found = found_in(tmp_path / f"b{target}")
    assert found["note"] == NIKON and not found["thumbnail"]
    assert thumbnail not in (tmp_path / f"b{target}").read_bytes()


@pytest.mark.parametrize("at", range(0, 180, 3))
def test_damaged_exif_never_stops_an_image(tmp_path, at):
    data = exif(6, MAKER | {282: (5, (72, 1))}, {37500: (7, NIKON)}, b"\xff\xd8thumbnail")
    for value in (0, 255):
        damaged = data[:at] + bytes([value] * 2) + data[at + 2 :]
        exif_edit.orientation(damaged)
        exif_edit.has_thumbnail(damaged)
        tiff.density(io.BytesIO(damaged))
        adapted = exif_edit.adapt(damaged, 9, 9, True, None)
        assert adapted is None or len(adapted) < 3 * len(data)


# ---- XMP


@pytest.mark.parametrize("target", OUTPUTS)
def test_large_xmp(tmp_path, target):
    big = packet(more="<tiff:note>" + "y" * 100_000 + "</tiff:note>")
    (tmp_path / "a.png").write_bytes(png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(big))))
    said = convert(tmp_path / "a.png", tmp_path / f"b{target}")
    if target != ".jpg":
        assert said == () and found_in(tmp_path / f"b{target}")["xmp"] == big
        return
    assert lines("extended XMP", said)
    head = b"http://ns.adobe.com/xmp/extension/\0"
    parts = [data[len(head) :] for _, data in segments(tmp_path / "b.jpg") if data.startswith(head)]
    assert b"".join(part[40:] for part in parts) == big
    offsets = [struct.unpack(">II", part[32:40]) for part in parts]
    assert offsets == [(len(big), 0), (len(big), 65_400)]
    assert parts[0][:32] in found_in(tmp_path / "b.jpg")["xmp"]  # HasExtendedXMP names it


@pytest.mark.parametrize("target", OUTPUTS)
def test_extended_xmp_of_a_jpeg(tmp_path, target):
    name = b"0123456789ABCDEF" * 2
    pointer = f' xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="{name.decode()}"'
    head = b"http://ns.adobe.com/xmp/extension/\0" + name
    parts = [segment(0xE1, head + struct.pack(">II", 8, at) + data) for at, data in ((0, b"<a><"), (4, b"/a>\n"))]
    main = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet(attributes=pointer))
    (tmp_path / "a.jpg").write_bytes(jpeg_with(main, *parts))
    said, found = convert(tmp_path / "a.jpg", tmp_path / f"b{target}"), found_in(tmp_path / f"b{target}")
    if target == ".jpg":
        kept = [data for _, data in segments(tmp_path / "b.jpg") if data.startswith(head)]
        assert said == () and [segment(0xE1, data) for data in kept] == parts and name in found["xmp"]
    else:
        assert lines("extended XMP is left out", said) and b"HasExtendedXMP" not in found["xmp"]


def gain_map_xmp():
    inner = (
        '<Container:Directory><rdf:Seq><rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="Primary"/>'
        '</rdf:li><rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="GainMap" Item:Length="400"/></rdf:li>'
        "</rdf:Seq></Container:Directory>"
    )
    google = "http://ns.google.com/photos/1.0/"
    attributes = f' xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" xmlns:Container="{google}container/" '
    attributes += f'xmlns:Item="{google}container/item/" hdrgm:Version="1.0"'
    return packet(6, inner, attributes)


@pytest.mark.parametrize("mpf", [False, True])
@pytest.mark.parametrize("target", OUTPUTS)
def test_gain_maps(tmp_path, target, mpf):
    more = [segment(0xE2, b"MPF\0" + bytes(60))] if mpf else []
    main = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + gain_map_xmp())
    gain = encoded("jpeg", pillow(PIXELS[::2, ::2]))
    (tmp_path / "a.jpg").write_bytes(jpeg_with(main, *more, after=gain))
    said = convert(tmp_path / "a.jpg", tmp_path / f"b{target}")
    assert len(said) == 1 and "the gain map is left out" in said[0]
    left = found_in(tmp_path / f"b{target}")["xmp"]
    assert left == packet(1)  # Rating and all else is there, no trace of the gain map


@pytest.mark.parametrize("target", [".jpg", ".png"])
def test_further_images_behind_a_jpeg(tmp_path, target):
    (tmp_path / "a.jpg").write_bytes(jpeg_with(after=encoded("jpeg", pillow(PIXELS[::2, ::2]))))
    assert lines("further images behind the first are left out", convert(tmp_path / "a.jpg", tmp_path / f"b{target}"))
    (tmp_path / "c.jpg").write_bytes(jpeg_with(after=bytes(100)))  # padding
    assert convert(tmp_path / "c.jpg", tmp_path / f"d{target}") == ()


# ---- IPTC


def iptc_of(path):
    """IIM records by another reader."""
    if path.suffix == ".png":
        text = dict(part.split(b"\0", 1) for name, part in chunks(path) if name == "zTXt")[b"Raw profile type iptc"]
        digits = zlib.decompress(text[1:]).split(b"\n", 3)[3].replace(b"\n", b"")
        data = bytes.fromhex(digits.decode()).removeprefix(PHOTOSHOP)
        at = data.index(b"8BIM\x04\x04")
        return data[at + 12 :][: int.from_bytes(data[at + 8 : at + 12], "big")]
    with Image.open(path) as image:
        if path.suffix == ".tif":
            return image.tag_v2[33723]
        found = IptcImagePlugin.getiptcinfo(image)
        assert found is not None
        return b"".join(
            b"\x1c" + bytes(key) + struct.pack(">H", len(one)) + one
            for key, value in found.items()
            for one in (value if isinstance(value, list) else [value])
        )


IPTC = {
    "app13.jpg": jpeg_with(segment(0xED, PHOTOSHOP + RESOURCES)),
    "tag.tif": tiff_with({33723: (7, IIM)}),
    "longs.tif": tiff_with({33723: (4, struct.unpack("<6I", IIM.ljust(24, b"\0")))}),
    "resources.tif": tiff_with({34377: (7, RESOURCES)}),
    "raw.png": png_with(raw_profile("iptc", PHOTOSHOP + RESOURCES)),
    "raw_8bim.png": png_with(raw_profile("8bim", RESOURCES)),
}


@pytest.mark.parametrize("target", OUTPUTS)
@pytest.mark.parametrize("name", IPTC)
def test_iptc(tmp_path, name, target):
    (tmp_path / name).write_bytes(IPTC[name])
    said = convert(tmp_path / name, tmp_path / f"b{target}")
    if target in (".webp", ".avif"):
        assert lines("IPTC data is left out", said)
        return
    assert iptc_of(tmp_path / f"b{target}").rstrip(b"\0") == IIM
    assert bool(lines("IPTC data is kept as a text", said)) == (target == ".png" and not name.endswith(".png"))
    rest = RESOURCE if name not in ("tag.tif", "longs.tif") else b""
    if target == ".jpg":
        assert dict(segments(tmp_path / "b.jpg"))[0xED].endswith(rest)
    if target == ".tif" and rest:
        with Image.open(tmp_path / "b.tif") as image:
            assert image.tag_v2[34377] == (RESOURCE,)


def test_photoshops_thumbnail_is_named(tmp_path):
    thumbnail = b"8BIM\x04\x0c\0\0" + struct.pack(">I", 30) + bytes(30)
    (tmp_path / "a.jpg").write_bytes(jpeg_with(segment(0xED, PHOTOSHOP + thumbnail + RESOURCES)))
    assert lines("the thumbnail is left out", convert(tmp_path / "a.jpg", tmp_path / "b.jpg"))
    assert (0xED, PHOTOSHOP + RESOURCES) in segments(tmp_path / "b.jpg")


def test_large_resources_are_cut_into_segments(tmp_path):
    large = b"8BIM\x04\x0a\0\0" + struct.pack(">I", 100_000) + bytes(100_000)
    parts = [(large + RESOURCES)[at : at + 60_000] for at in range(0, len(large + RESOURCES), 60_000)]
    (tmp_path / "a.jpg").write_bytes(jpeg_with(*(segment(0xED, PHOTOSHOP + part) for part in parts)))
    assert convert(tmp_path / "a.jpg", tmp_path / "b.jpg") == ()
    found = [data.removeprefix(PHOTOSHOP) for marker, data in segments(tmp_path / "b.jpg") if marker == 0xED]
    assert b"".join(found) == large + RESOURCES


@pytest.mark.parametrize("data", [b"8BIM", b"8BIM\x04\x04\0\0\xff\xff\xff\xff", b"nonsense", b""])
def test_damaged_resources(data):
    assert photoshop.split(data) in (None, (b"", b"")) and photoshop.clean(data) == data


# ---- color profiles


def resized(profile):
    return struct.pack(">I", len(profile)) + profile[4:]


BAD = {  # profile -> what is said and kept
    "padded": (ICC + bytes(100), "is padded, it is mended", ICC),
    "odd": (resized(ICC + bytes(2)), "of an odd length, it is mended", None),
    "cut": (ICC[:-40], "is cut off, it is left out", b""),
    "cut, size mended": (resized(ICC[:-40]), "is damaged, it is left out", b""),
    "nonsense": (b"nonsense" * 40, "left out", b""),
    "tiny": (b"abc", "left out", b""),
    "of no color space": (ICC[:16] + b"CMYK" + ICC[20:], "is left out, it is not for RGB images", b""),
}


@pytest.mark.parametrize("target", OUTPUTS)
@pytest.mark.parametrize("name", BAD)
def test_profiles_with_faults(tmp_path, name, target):
    profile, text, kept = BAD[name]
    (tmp_path / "a.jpg").write_bytes(encoded("jpeg", pillow(PIXELS), icc_profile=profile))
    assert lines(text, convert(tmp_path / "a.jpg", tmp_path / f"b{target}"))
    found = found_in(tmp_path / f"b{target}")["icc"] or b""
    if kept is None:
        assert len(found) % 4 == 0 == len(found) - int.from_bytes(found[:4], "big")
        assert found[128 : len(profile)] == profile[128:]
        ImageCms.ImageCmsProfile(io.BytesIO(found))
    else:
        assert found == kept


@pytest.mark.parametrize("size", [65_520, 200_000, 20_000_000])
@pytest.mark.parametrize("target", OUTPUTS)
def test_large_profiles(tmp_path, size, target):
    profile = resized(ICC + bytes(size - len(ICC)))
    (tmp_path / "a.tif").write_bytes(tiff_with({34675: (7, profile)}))
    said = convert(tmp_path / "a.tif", tmp_path / f"b{target}")
    whole = size < 8_000_000 or target in (".webp", ".tif", ".avif")
    assert found_in(tmp_path / f"b{target}")["icc"] == (profile if whole else None)
    assert said == (() if whole else (f"the color profile is left out, {NAMES[target]} does not hold its 20.0 MB",))


def test_a_profile_in_segments_out_of_order_or_missing(tmp_path):
    parts = [ICC[:200], ICC[200:400], ICC[400:]]
    made = [segment(0xE2, b"ICC_PROFILE\0" + bytes((i + 1, 3)) + part) for i, part in enumerate(parts)]
    (tmp_path / "a.jpg").write_bytes(jpeg_with(made[2], made[0], made[1]))
    assert convert(tmp_path / "a.jpg", tmp_path / "a.png") == ()
    assert found_in(tmp_path / "a.png")["icc"] == ICC
    (tmp_path / "b.jpg").write_bytes(jpeg_with(made[0], made[2]))
    assert lines("left out, damaged: ICC profile", convert(tmp_path / "b.jpg", tmp_path / "b.png"))


@pytest.mark.parametrize("target", OUTPUTS)
def test_gray_with_a_profile_of_rgb(tmp_path, target):
    (tmp_path / "a.png").write_bytes(png_with(icc_chunk(ICC), pixels=PIXELS[..., :1]))
    said = convert(tmp_path / "a.png", tmp_path / f"b{target}")
    assert said == ("the color profile is left out, it is not for gray images",)
    assert found_in(tmp_path / f"b{target}")["icc"] is None


# ---- gAMA and cHRM

ADOBE = (31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
P3 = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
SRGB = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


def color_chunks(gamma, points):
    out = [chunk(b"gAMA", struct.pack(">I", gamma))] if gamma else []
    return out + ([chunk(b"cHRM", struct.pack(">8I", *points))] if points else [])


def to_linear(encoded, gamma):
    """By gAMA's definition; without it by sRGB's."""
    encoded = np.asarray(encoded)
    if gamma:
        return encoded ** (1e5 / gamma)
    return np.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)


def matrix(points):
    """Linear RGB to CIE XYZ, by the definition of primaries and white."""
    columns = np.array([[x / y, 1, (1e5 - x - y) / y] for x, y in zip(points[::2], points[1::2], strict=True)])
    return columns[1:].T * np.linalg.solve(columns[1:].T, columns[0])


@pytest.mark.parametrize("gamma, points", [(100_000, None), (62_500, None), (45_455, P3), (45_470, ADOBE), (None, P3)])
@pytest.mark.parametrize("target", OUTPUTS)
def test_gamma_and_primaries(tmp_path, gamma, points, target):
    (tmp_path / "a.png").write_bytes(png_with(*color_chunks(gamma, points)))
    said = convert(tmp_path / "a.png", tmp_path / f"b{target}")
    if target == ".png":
        kept = dict(chunks(tmp_path / "b.png"))
        assert said == () and kept.get("gAMA") == (gamma and struct.pack(">I", gamma))
        assert kept.get("cHRM") == (points and struct.pack(">8I", *points))
        return
    assert lines("converted to a color profile", said)
    profile = found_in(tmp_path / f"b{target}")["icc"]
    assert profile and len(profile) == int.from_bytes(profile[:4], "big")
    # A few colors through the profile, by littlecms, and by the definition of the chunks.
    colors = np.array([[200, 90, 60], [90, 180, 100], [128, 128, 128], [90, 100, 220]], np.uint8)
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    to_srgb = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent)
    seen = np.asarray(ImageCms.applyTransform(Image.fromarray(colors[None]), to_srgb))[0]
    srgb = np.linalg.inv(matrix(SRGB)) @ matrix(points or SRGB) @ to_linear(colors / 255, gamma).T
    srgb = srgb.T.clip(0, 1)
    expected = np.where(srgb > 0.0031308, 1.055 * srgb ** (1 / 2.4) - 0.055, 12.92 * srgb) * 255
    assert np.abs(expected - seen).max() <= 1.5, (expected, seen)


@pytest.mark.parametrize("parts", [(45_455, None), (45_455, SRGB), (45_000, SRGB), (None, SRGB)])
@pytest.mark.parametrize("target", OUTPUTS)
def test_srgb_needs_no_line(tmp_path, parts, target):
    (tmp_path / "a.png").write_bytes(png_with(*color_chunks(*parts)))
    assert convert(tmp_path / "a.png", tmp_path / f"b{target}") == ()


@pytest.mark.parametrize("target", OUTPUTS)
def test_gamma_of_gray(tmp_path, target):
    gray = np.full((8, 8, 1), 128, np.uint8)
    (tmp_path / "a.png").write_bytes(png_with(*color_chunks(100_000, None), pixels=gray))
    convert(tmp_path / "a.png", tmp_path / f"b{target}")
    found = found_in(tmp_path / f"b{target}")
    if target in (".webp", ".avif"):  # which store RGB: converted to sRGB, 188 is half of white's light
        assert abs(int(found["pixels"][4, 4, 0]) - 188) <= 2
    elif target != ".png":
        assert found["icc"][16:20] == b"GRAY" and found["pixels"][4, 4] == pytest.approx(128, abs=1)


@pytest.mark.parametrize(
    "points", [(0,) * 8, (31270, 0, *P3[2:]), (31270, 32900, *[30000, 30000] * 3), (2**32 - 1,) * 8]
)
@pytest.mark.parametrize("gamma", [0, 1, 2**32 - 1, 45_455])
def test_impossible_colors(points, gamma):
    assert profiles.make_profile(gamma, points, False) == b""


@pytest.mark.parametrize("target", [".jpg", ".tif"])
def test_a_profile_counts_more_than_gamma(tmp_path, target):
    (tmp_path / "a.png").write_bytes(png_with(*color_chunks(100_000, P3), icc_chunk(ICC)))
    assert convert(tmp_path / "a.png", tmp_path / f"b{target}") == ()
    assert found_in(tmp_path / f"b{target}")["icc"] == ICC


# ---- texts and comments


TEXTS = [
    chunk(b"tEXt", b"parameters\0a castle, steps: 20, seed: 1"),
    chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"box 12")),
    chunk(b"iTXt", "Title\0\0\0en\0Titel\0Häuser".encode()),
    chunk(b"tEXt", b"Titre fran\xe7ais\0texte \xe9"),
]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("target", OUTPUTS)
def test_texts_of_a_png(tmp_path, target, behind):
    (tmp_path / "a.png").write_bytes(png_with(*(() if behind else TEXTS), after=TEXTS if behind else ()))
    said = convert(tmp_path / "a.png", tmp_path / f"b{target}")
    if target != ".png":
        assert said == ("PNG texts are left out: parameters, Comment, Title, Titre français",)
        return
    assert said == ()
    found = chunks(tmp_path / "b.png")
    texts = [chunk(name.encode(), data) for name, data in found if name in ("tEXt", "zTXt", "iTXt")]
    assert texts == TEXTS
    names = [name for name, _ in found]
    assert max(i for i, name in enumerate(names) if name.endswith("Xt")) < names.index("IDAT")  # where all look
    with Image.open(tmp_path / "b.png") as image:
        assert image.text["parameters"] == "a castle, steps: 20, seed: 1" and image.text["Title"] == "Häuser"


@pytest.mark.parametrize("comment", [b"Scanned in May, box 12", "Häuser".encode(), b"H\xe4user"])
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("target", OUTPUTS)
def test_comment_of_a_jpeg(tmp_path, target, comment, behind):
    data = encoded("jpeg", pillow(PIXELS), progressive=behind)
    at = data.rindex(b"\xff\xda") if behind else 20  # between two scans
    (tmp_path / "a.jpg").write_bytes(data[:at] + segment(0xFE, comment) + data[at:])
    said = convert(tmp_path / "a.jpg", tmp_path / f"b{target}")
    if target in (".png", ".jpg"):
        info = found_in(tmp_path / f"b{target}")["info"]["comment" if target == ".jpg" else "Comment"]
        assert said == () and info in (comment, comment.decode("utf-8", "ignore"), comment.decode("latin-1"))
    else:
        assert said == ("the JPEG comment is left out",)


# ---- density


@pytest.mark.parametrize("target", OUTPUTS)
@pytest.mark.parametrize("source", ["png", "jpg", "tif"])
def test_a_ratio_without_unit(tmp_path, source, target):
    jfif = jpeg_with()
    made = {
        "png": png_with(chunk(b"pHYs", struct.pack(">IIB", 2, 1, 0))),
        "jpg": jfif[:13] + b"\0" + struct.pack(">HH", 2, 1) + jfif[18:],
        "tif": tiff_with({282: (5, (2, 1)), 283: (5, (1, 1)), 296: (3, 1)}),
    }
    (tmp_path / f"a.{source}").write_bytes(made[source])
    said = convert(tmp_path / f"a.{source}", tmp_path / f"b{target}")
    info = found_in(tmp_path / f"b{target}")["info"]
    if target in (".webp", ".avif"):
        assert lines("2:1 without a unit of length, is left out", said)
    elif target == ".png":
        assert info["aspect"] == (2, 1) and "dpi" not in info
    elif target == ".jpg":
        assert info["jfif_density"] == (2, 1) and info["jfif_unit"] == 0
    else:
        with Image.open(tmp_path / "b.tif") as image:
            assert (image.tag_v2[282], image.tag_v2[283], image.tag_v2[296]) == (2, 1, 1)


@pytest.mark.parametrize("target", OUTPUTS)
@pytest.mark.parametrize("source", ["png", "tif"])
def test_one_pixel_per_millimeter(tmp_path, source, target):
    made = png_with(chunk(b"pHYs", struct.pack(">IIB", 1000, 1000, 1)))
    tags = {282: (5, (254, 10)), 283: (5, (254, 10)), 296: (3, 2)}
    (tmp_path / f"a.{source}").write_bytes(made if source == "png" else tiff_with(tags))
    assert convert(tmp_path / f"a.{source}", tmp_path / f"b{target}") == ()
    found = found_in(tmp_path / f"b{target}")
    assert (found["exif dpi"] if target in (".webp", ".avif") else found["dpi"][0]) == pytest.approx(25.4, abs=0.001)


@pytest.mark.parametrize("x, y, said", [(300, 300, False), (204, 98, False), (0.4, 0.4, True), (3e6, 300, True)])
def test_density_of_a_jpeg(tmp_path, x, y, said):
    tags = {282: (5, (round(x * 100), 100)), 283: (5, (round(y * 100), 100)), 296: (3, 2)}
    (tmp_path / "a.tif").write_bytes(tiff_with(tags))
    assert bool(lines("the resolution is rounded", convert(tmp_path / "a.tif", tmp_path / "b.jpg"))) == said
    if not said:
        assert found_in(tmp_path / "b.jpg")["dpi"] == pytest.approx((x, y), rel=0.01)


def test_what_jfif_and_exif_say_is_both_kept(tmp_path):
    data = exif(None, {282: (5, (72, 1)), 283: (5, (72, 1)), 296: (3, 2)})
    (tmp_path / "a.jpg").write_bytes(jpeg_with(segment(0xE1, b"Exif\0\0" + data), dpi=(300, 300)))
    for target in (".jpg", ".png"):
        convert(tmp_path / "a.jpg", tmp_path / f"b{target}")
        found = found_in(tmp_path / f"b{target}")
        assert found["dpi"] == pytest.approx((300, 300), abs=0.01) and found["exif dpi"] == 72


# ---- what is only named

NAMED = {
    "geo.tif": (
        tiff_with(
            {33550: (12, (1.0, 1.0, 0.0)), 34735: (3, (1, 1, 0, 1, 1024, 0, 1, 1)), 42112: (2, b"<GDALMetadata/>\0")}
        ),
        ["georeference (GeoTIFF) is left out", "GDAL_METADATA"],
    ),
    "private.tif": (tiff_with({65001: (7, b"private"), 301: (3, (1, 2, 3))}), ["65001", "TransferFunction"]),
    "app.jpg": (
        jpeg_with(segment(0xEC, b"Ducky\0\1"), segment(0xE3, b"Meta\0\0"), segment(0xEB, b"JP\0\1jumb")),
        ["APP12 (Ducky)", "APP3 (Meta)", "APP11 (JP)"],
    ),
    "chunk.webp": (webp_with((b"ABCD", b"something")), ["ABCD"]),
    "jfif.jpg": (
        jpeg_with(segment(0xE0, b"JFXX\0\x10" + encoded("jpeg", pillow(PIXELS[::4, ::4])))),
        ["the thumbnail"],
    ),
    "tail.jpg": (jpeg_with(after=b"SEFH and more of a telephone's own"), ["bytes after the image's end"]),
    "tail.png": (png_with() + b"more bytes than padding would have", ["bytes after the image's end"]),
    "unsafe.png": (
        png_with(chunk(b"tIME", bytes(7)), chunk(b"abCD", b"unsafe"), chunk(b"oFFs", bytes(9))),
        ["tIME, abCD, oFFs"],
    ),
    "damaged.png": (png_with(chunk(b"tEXt", b"Title\0text")[:-1] + b"?"), ["left out, damaged: tEXt"]),
}


@pytest.mark.parametrize("target", OUTPUTS)
@pytest.mark.parametrize("name", NAMED)
def test_named(tmp_path, name, target):
    data, texts = NAMED[name]
    (tmp_path / name).write_bytes(data)
    said = convert(tmp_path / name, tmp_path / f"b{target}")
    for text in texts:
        assert lines(text, said), (text, said)


def box(kind, *contents, version=None):
    data = b"".join(contents)
    data = data if version is None else struct.pack(">I", version << 24) + data
    return struct.pack(">I4s", 8 + len(data), kind) + data


def test_boxes_of_heif():
    items = [
        box(b"infe", struct.pack(">HH4s", i, 0, kind), b"\0" + more, version=2)
        for i, (kind, more) in enumerate(
            [
                (b"av01", b""),
                (b"tmap", b""),
                (b"uri ", b"urn:x\0"),
                (b"mime", b"application/rdf+xml\0"),
                (b"mime", b"text/x\0"),
            ]
        )
    ]
    properties = box(b"iprp", box(b"ipco", box(b"pasp", struct.pack(">II", 2, 1)), box(b"clli", bytes(4))))
    thumbnail = box(b"iref", box(b"thmb", struct.pack(">HHH", 2, 1, 1)), version=0)
    meta = box(
        b"meta", box(b"iinf", struct.pack(">H", len(items)), *items, version=0), thumbnail, properties, version=0
    )
    file = io.BytesIO(box(b"ftyp", b"avif") + meta)
    assert [(entry.kind, entry.name) for entry in heif.scan(file)] == [
        ("gain map", "gain map"),
        ("thumbnail", "thumbnail"),
        ("other", "uri , mime (text/x), clli"),
    ]
    assert heif.density(file) == (1, 2, 0) and not heif.has_turn(file) and not heif.replace_exif(file, b"")


@pytest.mark.parametrize("target", OUTPUTS)
def test_a_gain_map_of_avif(tmp_path, target):
    write(tmp_path / "a.avif", PIXELS)
    data = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "b.avif").write_bytes(data.replace(b"Exif\0", b"tmap\0", 1))
    assert lines("the gain map is left out", convert(tmp_path / "b.avif", tmp_path / f"c{target}"))


def test_jfif_behind_exif(tmp_path):
    data = encoded("jpeg", pillow(PIXELS), dpi=(300, 300))
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment(0xE1, b"Exif\0\0" + exif(None, MAKER)) + data[2:])
    with ImageReader(tmp_path / "a.jpg") as reader:
        assert reader.resolution == (300 / 25.4, 300 / 25.4)


@pytest.mark.parametrize("bits, said", [(b"\x08\x08\x08", False), (b"\5\6\5", True)])
def test_significant_bits(tmp_path, bits, said):
    (tmp_path / "a.png").write_bytes(png_with(chunk(b"sBIT", bits)))
    assert bool(lines("sBIT", convert(tmp_path / "a.png", tmp_path / "b.png"))) == said


def test_chunks_that_may_be_copied(tmp_path):
    (tmp_path / "a.png").write_bytes(png_with(chunk(b"abCd", b"safe to copy"), after=[chunk(b"xyZz", b"likewise")]))
    assert convert(tmp_path / "a.png", tmp_path / "b.png") == ()
    assert {("abCd", b"safe to copy"), ("xyZz", b"likewise")} <= set(chunks(tmp_path / "b.png"))
    assert lines("abCd, xyZz", convert(tmp_path / "a.png", tmp_path / "b.jpg"))


# ---- bounded


def test_a_bomb_is_named(tmp_path):
    bomb = zlib.compress(bytes(2**26), 9)
    (tmp_path / "a.png").write_bytes(png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb)))
    with ImageReader(tmp_path / "a.png") as reader:
        assert [(entry.kind, entry.data) for entry in reader.metadata] == [("damaged", b"")]
    assert lines("XMP", convert(tmp_path / "a.png", tmp_path / "b.png"))


def test_many_chunks(tmp_path):
    (tmp_path / "a.png").write_bytes(png_with(*[chunk(b"tEXt", b"k%d\0v" % i) for i in range(12_000)]))
    assert lines("more than 10,000 entries", convert(tmp_path / "a.png", tmp_path / "b.png"))


HOSTILE = {
    "unclosed": b"<hdrgm:a>" * 200_000,
    "names": b"".join(b"<hdrgm:a%d>" % i for i in range(100_000)),
    "blanks": b" " * 2_000_000,
    "attributes": b" hdrgm:a=" * 200_000,
    "quotes": b" hdrgm:a='" * 200_000,
    "orientations": b"<tiff:Orientation " * 100_000 + b"tiff:Orientation=" * 100_000 + b'"' + b"1" * 1_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_xmp_takes_time_by_its_length(name):
    hostile = gain_map_xmp().replace(b"</rdf:Description>", HOSTILE[name] + b"</rdf:Description>")
    assert xmp.orientation(hostile) == 6
    xmp.upright(hostile)
    xmp.without_further_images(hostile)
    xmp.without_extension(hostile)


@pytest.mark.parametrize(
    "text", [b"\n" * 2_000_000, b" \n" * 1_000_000, b"\nexif\n" + b" " * 2_000_000, b"\nexif\n9\nzz"]
)
def test_hostile_raw_profiles_are_texts(tmp_path, text):
    data = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    (tmp_path / "a.png").write_bytes(png_with(data))
    assert convert(tmp_path / "a.png", tmp_path / "b.png") == ()
    assert data in (tmp_path / "b.png").read_bytes()


def test_a_jpeg_of_a_million_segments(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg_with(b"\xff\xcc\0\2" * 1_000_000))  # 0xCC: arithmetic coding's tables
    with open(tmp_path / "a.jpg", "rb") as file, pytest.raises(ValueError, match="100000 segments"):
        list(jpeg.scan(file))


COPIES = [({254: (4, 1)}, True), ({255: (3, 2)}, True), ({254: (4, 4)}, False), ({}, False)]


@pytest.mark.parametrize("tags, listed", COPIES)
def test_a_reduced_copy_in_a_tiff_is_a_thumbnail(tags, listed):
    data = tiff_with({65001: (7, b"private")})
    first = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, first)[0]
    link = first + 2 + 12 * count
    second = directory({256: (4, 12)} | tags, len(data))
    file = io.BytesIO(data[:link] + struct.pack("<I", len(data)) + data[link + 4 :] + second)
    assert ("thumbnail" in [entry.kind for entry in tiff.scan(file)]) == listed

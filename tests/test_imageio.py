"""Reading and writing picture files, with Pillow as the independent witness."""

import errno
import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from edsr import imageio
from edsr.imageio import FORMATS, ImageError, Reader, Writer, find_pictures, output_path, read

LOSSLESS = [".png", ".tif"]
EXTENSIONS = [".png", ".jpg", ".webp", ".tif"]
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><note>kept</note></x:xmpmeta>"
linux = pytest.mark.skipif(sys.platform != "linux", reason="uses a Linux interface")


def picture(height=60, width=41, channels=3, seed=0):
    """A smooth picture with a little noise, so that lossy formats stay close to it."""
    rng = np.random.default_rng(seed)
    y, x, c = np.mgrid[:height, :width, :channels]
    smooth = 128 + 90 * np.sin(y / 17 + c) * np.cos(x / 13)
    return (smooth + rng.uniform(-2, 2, smooth.shape)).round().astype(np.uint8)


def pillow(pixels):
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def with_pillow(path, channels=3):
    with Image.open(path) as image:
        pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1) if channels == 3 else pixels[..., None]


def write(path, pixels, step=7, **options):
    height, width, channels = pixels.shape
    with Writer(path, width, height, channels, **options) as writer:
        for y in range(0, height, step):
            writer.write(pixels[y : y + step])


def names(folder):
    return sorted(os.listdir(folder))


def refused(text, action, *args, **options):
    """The action raises an ImageError of one line that contains `text`."""
    with pytest.raises(ImageError) as caught:
        action(*args, **options)
    message = str(caught.value)
    assert text in message and "\n" not in message and message == message.strip()
    return message


# ---- pixels


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (300, 1), (60, 41)])
def test_round_trip(tmp_path, extension, channels, height, width):
    path, pixels = tmp_path / f"picture{extension.upper()}", picture(height, width, channels)
    write(path, pixels)
    assert names(tmp_path) == [path.name]
    stored = 3 if extension == ".webp" else channels  # WebP has no gray
    seen, ours = with_pillow(path, stored), read(path)
    assert seen.shape == (height, width, stored)
    assert ours.dtype == np.uint8 and ours.shape == seen.shape
    if FORMATS[extension] in ("pngsave", "tiffsave"):
        assert np.array_equal(seen, pixels) and np.array_equal(ours, pixels)
    else:
        assert np.abs(seen.astype(int) - pixels).mean() < 2
        assert np.abs(ours.astype(int) - pixels).mean() < 2


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("count", [1, 7, 64, 1000])
def test_rows_are_the_picture(tmp_path, extension, count):
    path, pixels = tmp_path / f"a{extension}", picture(130, 33)
    pillow(pixels).save(path)
    with Reader(path) as reader:
        assert (reader.path, reader.width, reader.height, reader.channels) == (path, 33, 130, 3)
        first, again = list(reader.rows(count)), list(reader.rows(count))
    assert [len(rows) for rows in first] == [min(count, 130 - y) for y in range(0, 130, count)]
    assert np.array_equal(np.concatenate(first), read(path))
    assert np.array_equal(np.concatenate(again), read(path))
    if extension in LOSSLESS:
        assert np.array_equal(read(path), pixels)


def test_rows_needs_a_count(tmp_path):
    write(tmp_path / "a.png", picture())
    with pytest.raises(ValueError, match="1 or more"):
        next(Reader(tmp_path / "a.png").rows(0))


def test_changed_file_is_noticed(tmp_path):
    path = tmp_path / "a.png"
    write(path, picture())
    with Reader(path) as reader:
        reader.close()
        write(path, picture(50), overwrite=True)
        refused("has changed", list, reader.rows(8))


@pytest.mark.parametrize(
    "mode, name, options",
    [
        ("1", "a.png", {}),
        ("1", "a.tif", {"compression": "group4"}),
        ("P", "a.png", {"bits": 8}),
        ("P", "a.png", {"bits": 4}),
        ("P", "a.tif", {}),
        ("L", "a.tif", {}),
        ("RGB", "a.tif", {"compression": "packbits"}),
        ("RGB", "a.tif", {"compression": "jpeg"}),
        ("YCbCr", "a.tif", {"compression": "jpeg"}),
        ("YCbCr", "a.jpg", {}),
        ("RGB", "a.webp", {"lossless": True}),
    ],
)
def test_simple_kinds_become_8_bit(tmp_path, mode, name, options):
    path, channels = tmp_path / name, 1 if mode in "1L" else 3
    image = pillow(picture())
    image = image.quantize(16) if options.get("bits") == 4 else image.convert(mode)
    image.save(path, **options)
    with Image.open(path) as stored:
        expected = np.asarray(stored.convert("L" if channels == 1 else "RGB")).reshape(60, 41, channels)
    ours = read(path)
    assert ours.shape == expected.shape
    # Subsampled colours may be interpolated differently; everything else is exact.
    error = np.abs(ours.astype(int) - expected)
    assert error.mean() < 3 if mode == "YCbCr" else error.max() == 0


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": "4:2:0"}])
def test_kinds_of_jpeg(tmp_path, options):
    pillow(picture(200, 90)).save(tmp_path / "a.jpg", **options)
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - picture(200, 90)).mean() < 4


def test_interlaced_png(tmp_path):
    pixels = picture()
    array = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")
    array.pngsave(str(tmp_path / "a.png"), interlace=True)
    with Reader(tmp_path / "a.png") as reader:
        assert np.array_equal(np.concatenate(list(reader.rows(7))), pixels)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, extension, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    source, target = tmp_path / f"a{extension}", tmp_path / f"b{extension}"
    pillow(picture(50, 30)).save(source, exif=exif)
    with Image.open(source) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    pixels = read(source)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= (0 if extension in LOSSLESS else 6)
    with Reader(source) as reader:
        write(target, pixels, like=reader)
    with Image.open(target) as image:
        assert image.getexif().get(0x0112, 1) == 1
        assert image.size == (pixels.shape[1], pixels.shape[0])
    assert read(target).shape == pixels.shape


# ---- metadata


def save_with_metadata(path):
    exif = Image.Exif()
    exif[0x010F], exif[0x8298] = "A maker", "Copyright Müller"
    exif.get_ifd(0x8769)[0x9003] = "2020:02:03 04:05:06"
    options = {"icc_profile": ICC, "dpi": (300, 300), "exif": exif}
    if path.suffix == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    elif path.suffix == ".tif":
        options["tiffinfo"] = {700: XMP}
        del options["exif"]
    else:
        options["xmp"] = XMP
    pillow(picture()).save(path, **options)


@pytest.mark.parametrize("source", EXTENSIONS)
@pytest.mark.parametrize("target", EXTENSIONS)
def test_metadata_is_kept(tmp_path, source, target):
    first, second = tmp_path / f"a{source}", tmp_path / f"b{target}"
    save_with_metadata(first)
    with Reader(first) as reader:
        write(second, picture(120, 82), like=reader)
    with Image.open(second) as image:
        image.load()  # a PNG's texts may stand behind the pixels
        assert image.info["icc_profile"] == ICC
        # libvips puts it into a PNG as a compressed text, which Pillow does not call "xmp".
        xmp = {".tif": lambda: image.getexif()[700], ".png": lambda: image.info["XML:com.adobe.xmp"]}
        xmp = xmp.get(target, lambda: image.info["xmp"])()
        if target != ".webp" and source != ".webp":  # WebP has no resolution of its own
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        if target != ".tif" and source != ".tif":  # libvips does not move EXIF into or out of a TIFF
            exif = image.getexif()
            assert exif[0x010F] == "A maker"
            assert exif.get_ifd(0x8769)[0x9003] == "2020:02:03 04:05:06"
            assert (exif.get_ifd(0x8769)[0xA002], exif.get_ifd(0x8769)[0xA003]) == (82, 120)


def test_thumbnail_and_foreign_profile_are_dropped(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(1)[0x0112] = 6
    pillow(picture()).save(tmp_path / "a.jpg", exif=exif, icc_profile=ICC)
    with Reader(tmp_path / "a.jpg") as reader:
        write(tmp_path / "gray.jpg", picture(channels=1), like=reader)
    with Image.open(tmp_path / "gray.jpg") as image:
        assert "icc_profile" not in image.info  # it has three channels
        assert 0x0112 not in image.getexif().get_ifd(1)


def test_unknown_resolution_is_72_dpi(tmp_path):
    pillow(picture()).save(tmp_path / "a.png")
    with Reader(tmp_path / "a.png") as reader:
        write(tmp_path / "b.png", picture(), like=reader)
    write(tmp_path / "c.png", picture())
    for name in ("b.png", "c.png"):
        with Image.open(tmp_path / name) as image:
            assert image.info["dpi"] == pytest.approx((72, 72), abs=0.02)


@pytest.mark.parametrize("extension", [".jpg", ".webp"])
def test_quality(tmp_path, extension):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sizes = []
    for quality in (20, None, 100):
        path = tmp_path / f"{quality}{extension}"
        write(path, pixels, quality=quality)
        sizes.append(path.stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2]


def test_large_tiff_is_bigtiff(tmp_path):
    # Only the choice is tested: 4 GB of pixels are too many to write here.
    assert Writer(tmp_path / "a.tif", 40_000, 40_000, 3)._options["bigtiff"] is True
    assert Writer(tmp_path / "a.tif", 30_000, 30_000, 3)._options["bigtiff"] is False
    write(tmp_path / "b.tif", picture())
    assert (tmp_path / "b.tif").read_bytes()[:4] in (b"II*\0", b"MM\0*")
    pyvips.Image.new_from_array(picture()).copy(interpretation="srgb").tiffsave(str(tmp_path / "big.tif"), bigtiff=True)
    assert np.array_equal(read(tmp_path / "big.tif"), picture())


# ---- 16 bits, where they are asked for


def png16(pixels):
    """A 16-bit PNG written by hand: no library is asked twice."""

    def chunk(kind, data):
        return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def levels(channels):
    return np.random.default_rng(0).integers(0, 65536, (60, 41, channels), np.uint16)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["png", "tif", "big.tif"])
def test_sixteen_bits(tmp_path, channels, kind):
    path, pixels = tmp_path / f"a.{kind}", levels(channels)
    path.write_bytes(png16(pixels))
    if kind != "png":
        space = "grey16" if channels == 1 else "rgb16"
        image = pyvips.Image.new_from_array(pixels).copy(interpretation=space)
        image.tiffsave(str(path), bigtiff=kind == "big.tif", compression="deflate", predictor="horizontal")
    with Reader(path, sixteen=True) as reader:
        assert (reader.dtype, reader.channels) == (np.uint16, channels)
        assert np.array_equal(np.concatenate(list(reader.rows(7))), pixels)
    ours = read(path, sixteen=True)
    assert ours.dtype == np.uint16 and np.array_equal(ours, pixels)
    refused("16-bit", read, path)


def test_eight_bits_stay_where_sixteen_are_allowed(tmp_path):
    write(tmp_path / "a.png", picture())
    with Reader(tmp_path / "a.png", sixteen=True) as reader:
        assert reader.dtype == np.uint8
    assert np.array_equal(read(tmp_path / "a.png", sixteen=True), picture())


def test_what_else_is_refused_where_sixteen_are_allowed(tmp_path):
    (tmp_path / "a.png").write_bytes(png16(levels(2)))
    refused("alpha", read, tmp_path / "a.png", sixteen=True)
    (tmp_path / "a.tif").write_bytes(encoded("tiff", Image.new("F", (9, 9))))
    refused("float", read, tmp_path / "a.tif", sixteen=True)


def test_a_change_of_bits_is_noticed(tmp_path):
    path = tmp_path / "a.png"
    write(path, picture())
    with Reader(path, sixteen=True) as reader:
        reader.close()
        path.write_bytes(png16(levels(3)))
        refused("has changed", list, reader.rows(8))


# ---- what cannot be read


def encoded(kind, image=None, **options):
    buffer = io.BytesIO()
    (image or pillow(picture(80, 70))).save(buffer, kind, **options)
    return buffer.getvalue()


def vips(kind, image):
    return image.write_to_buffer(kind)


TWO = [Image.new("RGB", (9, 9)), Image.new("RGB", (9, 9), (90, 0, 0))]
NOT_READ = {
    "rgba.png": (lambda: encoded("png", pillow(picture()).convert("RGBA")), "alpha"),
    "la.png": (lambda: encoded("png", pillow(picture()).convert("LA")), "alpha"),
    "palette.png": (lambda: encoded("png", pillow(picture()).convert("P"), transparency=3), "alpha"),
    "rgba.tif": (lambda: encoded("tiff", pillow(picture()).convert("RGBA")), "alpha"),
    "rgba.webp": (lambda: encoded("webp", Image.new("RGBA", (9, 9), (1, 2, 3, 4)), lossless=True), "alpha"),
    "gray16.png": (lambda: encoded("png", Image.new("I;16", (9, 9))), "16-bit"),
    "rgb16.tif": (lambda: vips(".tif", pyvips.Image.black(9, 9, bands=3).colourspace("rgb16")), "16-bit"),
    "rgb16.png": (lambda: vips(".png", pyvips.Image.black(9, 9, bands=3).colourspace("rgb16")), "16-bit"),
    "float.tif": (lambda: encoded("tiff", Image.new("F", (9, 9))), "float"),
    "cmyk.jpg": (lambda: encoded("jpeg", Image.new("CMYK", (9, 9))), "CMYK"),
    "cmyk.tif": (lambda: encoded("tiff", Image.new("CMYK", (9, 9))), "CMYK"),
    "lab.tif": (lambda: vips(".tif", pyvips.Image.black(9, 9, bands=3).colourspace("labs")), "not supported"),
    "ycbcr.tif": (lambda: encoded("tiff", pillow(picture()).convert("YCbCr")), "YCbCr"),
    "animated.png": (lambda: encoded("png", TWO[0], save_all=True, append_images=TWO[1:]), "animated"),
    "animated.webp": (lambda: encoded("webp", TWO[0], save_all=True, append_images=TWO[1:]), "animated"),
    "pages.tif": (lambda: encoded("tiff", TWO[0], save_all=True, append_images=TWO[1:]), "multi-page"),
    "gif.png": (lambda: encoded("gif"), "is not a PNG, JPEG, WebP or TIFF picture"),
    "text.jpg": (lambda: b"Hello, this is no picture.", "is not a PNG"),
    "raw.dng": (lambda: encoded("tiff"), "camera raw"),
    "empty.png": (lambda: b"", "is empty"),
    "short.png": (lambda: b"\x89PNG\r\n\x1a\n", "damaged"),
    "zero.png": (lambda: encoded("png")[:16] + bytes(8) + encoded("png")[24:], "damaged"),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_refused_by_the_reader(tmp_path, name, capfd):
    make, text = NOT_READ[name]
    path = tmp_path / name
    path.write_bytes(make())
    assert str(path) in refused(text, Reader, path)
    refused(text, read, path)
    assert capfd.readouterr() == ("", "")


def test_missing_and_folder(tmp_path):
    refused("no such file", Reader, tmp_path / "a.png")
    refused("is a folder", Reader, tmp_path)
    refused("cannot be read", Reader, "a\0b.png")


@linux
def test_not_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    refused("is not a regular file", Reader, tmp_path / "a.png")


@linux
def test_unreadable(tmp_path):
    path = tmp_path / "a.png"
    write(path, picture())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    refused("Permission denied", Reader, path)


def test_open_errors_are_told(tmp_path, monkeypatch):
    write(tmp_path / "a.png", picture())

    def fail(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", fail)
    refused("cannot be read (Permission denied)", Reader, tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_cut_off(tmp_path, kind, part, capfd):
    path = tmp_path / ("a.tif" if kind == "tiff" else f"a.{kind}")
    data = encoded(kind, pillow(picture(400, 300)))
    path.write_bytes(data[: int(len(data) * part)])
    refused("damaged or cut off", read, path)
    assert capfd.readouterr() == ("", "")


def test_damage_half_way_comes_after_good_rows(tmp_path):
    path, pixels = tmp_path / "a.png", picture(400, 300)
    data = encoded("png", pillow(pixels))
    path.write_bytes(data[: len(data) // 2])
    got = []
    with pytest.raises(ImageError, match="damaged or cut off"), Reader(path) as reader:
        got.extend(reader.rows(10))
    assert 0 < len(got) < 40
    assert np.array_equal(np.concatenate(got), pixels[: 10 * len(got)])


def test_turned_pictures_cut_off(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded("jpeg", pillow(picture(400, 300)), exif=exif)
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    refused("damaged or cut off", read, tmp_path / "a.jpg")


SEEDS = {
    ".png": encoded("png"),
    ".jpg": encoded("jpeg", exif=Image.Exif(), icc_profile=ICC),
    ".webp": encoded("webp", icc_profile=ICC),
    ".tif": encoded("tiff", compression="tiff_lzw"),
}


@settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    extension=st.sampled_from(EXTENSIONS),
    keep=st.floats(0, 1),
    cut=st.booleans(),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=6),
    header=st.lists(st.tuples(st.integers(0, 63), st.integers(0, 255)), max_size=3),
)
def test_any_damage_is_an_image_error(tmp_path_factory, extension, keep, cut, flips, header):
    data = bytearray(SEEDS[extension])
    if cut:
        del data[int(keep * len(data)) :]
    for where, value in header:
        if where < len(data):
            data[where] = value
    for where, mask in flips:
        if data:
            data[int(where * len(data))] ^= mask
    path = tmp_path_factory.getbasetemp() / f"fuzz{extension}"
    path.write_bytes(data)
    try:
        pixels = read(path)
    except ImageError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] in (1, 3)


# ---- what cannot be written


def test_refused_by_the_writer(tmp_path):
    (tmp_path / "old.png").write_bytes(b"precious")
    (tmp_path / "folder.png").mkdir()
    before = names(tmp_path)
    size = (10, 10, 3)
    message = refused("unknown extension '.bmp'", Writer, tmp_path / "a.bmp", *size)
    assert all(extension in message for extension in FORMATS)
    refused("unknown extension ''", Writer, tmp_path / "a", *size)
    refused(f"there is no folder {tmp_path / 'none'}", Writer, tmp_path / "none" / "a.png", *size)
    refused("is a folder", Writer, tmp_path / "folder.png", *size, overwrite=True)
    refused("exists; add --overwrite to replace it", Writer, tmp_path / "old.png", *size)
    refused("cannot be written", Writer, tmp_path / f"{'n' * 300}.png", *size)
    refused("use .png or .tif", Writer, tmp_path / "a.jpg", 65_501, 1, 3)
    refused("use .png or .tif", Writer, tmp_path / "a.jpeg", 1, 65_501, 3)
    refused("16383", Writer, tmp_path / "a.webp", 16_384, 1, 3)
    for wrong in [(0, 10, 3), (10, 0, 3), (10, 10, 2)]:
        with pytest.raises(ValueError, match="cannot write"):
            Writer(tmp_path / "a.png", *wrong)
    with pytest.raises(ValueError, match="quality"):
        Writer(tmp_path / "a.jpg", *size, quality=101)
    assert names(tmp_path) == before
    assert (tmp_path / "old.png").read_bytes() == b"precious"


@pytest.mark.parametrize("name, side", [("a.jpg", 65_500), ("a.webp", 16_383)])
def test_longest_sides(tmp_path, name, side):
    write(tmp_path / name, np.zeros((2, side, 1), np.uint8))
    write(tmp_path / f"tall{name}", np.zeros((side, 2, 1), np.uint8), step=5000)
    assert read(tmp_path / name).shape[:2] == (2, side)
    assert read(tmp_path / f"tall{name}").shape[:2] == (side, 2)


@linux
def test_folder_without_permission(tmp_path):
    def begin(path):
        with Writer(path, 4, 4, 3):
            pytest.fail("was let in")

    refused("write into", begin, "/proc/a.png")  # where not even root may create a file
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    refused(f"no permission to write into the folder {tmp_path}", Writer, tmp_path / "a.png", 4, 4, 3)


def test_wrong_rows(tmp_path):
    rows = picture(4, 5)
    with pytest.raises(ValueError, match="context"):
        Writer(tmp_path / "a.png", 5, 4, 3).write(rows)
    for wrong in [rows[:, 1:], rows[..., :1], rows[0], rows.astype(np.float32), np.concatenate([rows, rows])]:
        with pytest.raises(ValueError), Writer(tmp_path / "a.png", 5, 4, 3) as writer:
            writer.write(wrong)
    assert names(tmp_path) == []


def test_rows_in_any_memory_order(tmp_path):
    pixels = picture(30, 20)
    write(tmp_path / "a.png", np.asfortranarray(pixels)[::-1])
    write(tmp_path / "b.png", pixels[:, ::-2])
    assert np.array_equal(read(tmp_path / "a.png"), pixels[::-1])
    assert np.array_equal(read(tmp_path / "b.png"), pixels[:, ::-2])


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [b"precious", None])
def test_exception_half_way_changes_nothing(tmp_path, extension, error, old):
    path, pixels = tmp_path / f"a{extension}", picture(300, 500)
    if old:
        path.write_bytes(old)
    before = names(tmp_path)
    with pytest.raises(error), Writer(path, 500, 300, 3, overwrite=True) as writer:
        assert len(names(tmp_path)) == len(before) + 1
        writer.write(pixels[:200])
        raise error
    assert names(tmp_path) == before
    assert not old or path.read_bytes() == old


def test_missing_rows(tmp_path):
    def short():
        with Writer(tmp_path / "a.png", 41, 60, 3) as writer:
            writer.write(picture()[:59])

    refused("1 of 60 rows are missing", short)
    assert names(tmp_path) == []


def test_overwrite(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    write(path, picture(), overwrite=True)
    assert np.array_equal(read(path), picture()) and names(tmp_path) == ["a.png"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch, links):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "a.png"

    def slow():
        with Writer(path, 41, 60, 3) as writer:
            writer.write(picture())
            path.write_bytes(b"precious")

    refused("exists; add --overwrite", slow)
    assert path.read_bytes() == b"precious" and names(tmp_path) == ["a.png"]
    write(tmp_path / "b.png", picture())
    assert np.array_equal(read(tmp_path / "b.png"), picture()) and names(tmp_path) == ["a.png", "b.png"]


def test_failing_rename_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(os, "replace", fail)
    refused("cannot be written (Input/output error)", write, tmp_path / "a.png", picture())
    assert names(tmp_path) == []


FULL_DISK = """
import os, resource, sys
import numpy as np
from edsr.imageio import ImageError, Writer
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
rows = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
for late in (False, True):  # the damage shows while rows are written, or only at the end
    for name in ("a.png", "a.jpg", "a.webp", "a.tif"):
        height = 150 if late else 4000
        try:
            with Writer(os.path.join(sys.argv[1], name), 500, height, 3, quality=100) as writer:
                for y in range(0, height, 400):
                    writer.write(rows[:min(400, height - y)])
        except ImageError as error:
            print(error)
print(os.listdir(sys.argv[1]))
"""


def run(script, *args):
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", script, *map(str, args)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.splitlines()


@linux
def test_full_disk(tmp_path):
    *messages, left = run(FULL_DISK, tmp_path)
    assert len(messages) == 8
    assert all("cannot be written (File too large)" in message for message in messages)
    assert left == "[]"


MEMORY = """
import sys
import numpy as np
from edsr.imageio import Reader, Writer

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

ramp = np.linspace(0, 250, 1000 * 3).astype(np.uint8).reshape(1, 1000, 3)
rows = np.repeat(ramp, 100, axis=0)
for name in ("a.png", "a.jpg", "a.tif"):
    for height in (1000, 30_000):
        path = f"{sys.argv[1]}/{height}{name}"
        with Writer(path, 1000, height, 3) as writer:
            for _ in range(height // 100):
                writer.write(rows)
        with Reader(path) as reader:
            assert sum(len(part) for part in reader.rows(100)) == height
        print(name, height, peak())
"""


@linux
def test_bounded_memory(tmp_path):
    # 90 MB of pixels against 3 MB, in a process of its own.
    peaks = [int(line.split()[2]) for line in run(MEMORY, tmp_path)]
    assert max(peaks) - peaks[0] < 20_000, peaks


# ---- names


def test_unusual_names(tmp_path):
    folder = tmp_path / "Bilder, 写真 [1]"
    folder.mkdir()
    for name in ("фото ü.png", "a[page=2].tif", "b.png[access=random].jpg", "-c.webp", "%d.png"):
        write(folder / name, picture())
        assert read(folder / name).shape == (60, 41, 3)


@linux
def test_names_that_are_not_unicode(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png"))
    write(path, picture())
    assert np.array_equal(read(path), picture())
    path.write_bytes(path.read_bytes()[:300])
    refused("damaged", read, path)


def test_output_path(tmp_path):
    source = tmp_path / "a.photo.jpg"
    source.write_bytes(b"")
    assert output_path(source, 2) == tmp_path / "a.photo_x2.png"
    assert output_path("a.jpg", 4) == Path("a_x4.png")
    assert output_path(source, 3, tmp_path) == tmp_path / "a.photo_x3.png"
    assert output_path(source, 2, f"{tmp_path}/new/") == tmp_path / "new" / "a.photo_x2.png"
    assert output_path(source, 2, "b.webp") == Path("b.webp")
    refused("is the input itself", output_path, source, 2, source)
    refused("is the input itself", output_path, source, 2, tmp_path / ".." / tmp_path.name / source.name)
    refused("is the input itself", output_path, tmp_path / "none.png", 2, tmp_path / "none.png")
    os.link(source, tmp_path / "same.png")
    refused("is the input itself", output_path, source, 2, tmp_path / "same.png")


def test_find_pictures(tmp_path):
    refused("no pictures", find_pictures, tmp_path)
    refused("cannot be listed", find_pictures, tmp_path / "none")
    for name in ("b.PNG", "a.jpeg", "c.txt", ".hidden.png", "d.tif"):
        (tmp_path / name).write_bytes(b"")
    refused("cannot be listed", find_pictures, tmp_path / "c.txt")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "e.png").write_bytes(b"")
    assert [path.name for path in find_pictures(tmp_path)] == ["a.jpeg", "b.PNG", "d.tif"]


def test_find_pictures_in_folders(tmp_path):
    (tmp_path / "z" / "empty").mkdir(parents=True)
    refused("no pictures", find_pictures, tmp_path, recursive=True)
    refused("cannot be listed", find_pictures, tmp_path / "none", recursive=True)
    for name in ("m.png", "z/b.png", "z/a.txt", "a/deep/c.JPG", ".hidden/d.png", "a/.e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    found = [str(path.relative_to(tmp_path)) for path in find_pictures(tmp_path, recursive=True)]
    assert found == ["a/deep/c.JPG", "m.png", "z/b.png"]
    assert [path.name for path in find_pictures(tmp_path)] == ["m.png"]


@linux
def test_find_pictures_follows_links_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.png").write_bytes(b"")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    (tmp_path / "pictures" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "pictures")
    (tmp_path / "pictures" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert [path.name for path in find_pictures(tmp_path / "pictures", recursive=True)] == ["a.png", "b.png"]


def test_no_cache_is_left(tmp_path):
    write(tmp_path / "a.png", picture())
    write(tmp_path / "a.png", picture(seed=1), overwrite=True)
    assert np.array_equal(read(tmp_path / "a.png"), picture(seed=1))
    assert imageio.pyvips.cache_get_size() == 0


def test_a_signal_while_the_writer_begins_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "out.png", 4, 4, 3):
        pass
    assert not list(tmp_path.iterdir())

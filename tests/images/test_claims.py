"""Files too small for what they claim to hold, and those that merely look so."""

import math
import struct

import numpy as np
import pytest
import pyvips
from PIL import Image

from edsr.images.claims import BELIEVED_PIXELS, PIXELS_PER_BYTE, webp_size
from edsr.images.reader import ImageReader, ReadLimits
from tests.support.image_files import chunk, encoded, make_image, pillow, png, refused

UNLIMITED = ReadLimits(pixels_per_byte=math.inf)


def frame(data, width, height):
    """A JPEG that says that it is of another size."""
    at = next(data.find(marker) for marker in (b"\xff\xc2\x00\x11\x08", b"\xff\xc0\x00\x11\x08") if marker in data) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def extent(width, height):
    """An AVIF that says that it is of another size."""
    data = encoded("avif")
    at = data.find(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def header(width, height):
    """A PNG that says that it is of another size."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png(make_image())[:8] + chunk(b"IHDR", size) + png(make_image())[33:]


def tiff(width, height):
    """A TIFF of sparse tiles, black by definition, that says that it is of a size."""
    tags = {256: width, 257: height, 258: 8, 259: 5, 262: 1, 277: 1, 278: height, 273: 0, 279: 0}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jpg", lambda: frame(encoded("jpeg", progressive=True), 20_000, 20_000), "is not possible in a JPEG"),
        ("b.jpg", lambda: frame(encoded("jpeg"), 5_000, 5_000), "is not possible in a JPEG"),
        ("a.avif", lambda: extent(10_000, 10_000), "limits=ReadLimits(pixels_per_byte=math.inf)"),
        ("b.avif", lambda: extent(16_500, 16_500), "268,435,456 pixels that its decoder takes"),
        ("a.png", lambda: header(40_000, 40_000), "limits=ReadLimits(pixels_per_byte=math.inf)"),
        ("a.tif", lambda: tiff(30_000, 30_000), "limits=ReadLimits(pixels_per_byte=math.inf)"),
    ],
)
def test_claims_that_a_file_does_not_pay_for(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data())
    message = refused(says, ImageReader, tmp_path / name, full=True)
    assert str(tmp_path / name) in message


@pytest.mark.parametrize("gray", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"optimize": True}, {"progressive": True}, {"subsampling": 0}, {"progressive": True, "quality": 1}],
    ids=str,
)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (17, 9), (1500, 1100)])
def test_an_honest_jpeg_of_one_color_has_the_bits(tmp_path, gray, options, width, height):
    Image.new("L" if gray else "RGB", (width, height)).save(tmp_path / "a.jpg", **options)
    with ImageReader(tmp_path / "a.jpg") as reader:
        assert np.ptp(np.concatenate(list(reader.rows(100)))) == 0
    # The bound is near: with the same bytes four times as many pixels are not possible.
    if width > 1000:
        data = (tmp_path / "a.jpg").read_bytes()
        at = data.find(b"\xff\xc2" if "progressive" in options else b"\xff\xc0") + 5
        (tmp_path / "a.jpg").write_bytes(data[:at] + struct.pack(">HH", 4 * height, 4 * width) + data[at + 4 :])
        refused("is not possible in a JPEG", ImageReader, tmp_path / "a.jpg")


def test_a_jpeg_with_much_before_its_frame(tmp_path):
    """The frame is found behind profiles, comments and fill bytes."""
    data = encoded("jpeg", pillow(make_image(80, 70)), comment=b"x" * 5000, icc_profile=bytes(70_000))
    (tmp_path / "a.jpg").write_bytes(frame(data[:2] + b"\xff\xff\xff" + data[2:], 60_000, 60_000))
    refused("is not possible in a JPEG", ImageReader, tmp_path / "a.jpg")


@pytest.mark.parametrize("extension", [".png", ".webp", ".tif"])
def test_an_honest_image_of_one_color_is_read(tmp_path, extension):
    """The most pixels for a byte that each format reaches, in a size that people have."""
    black = pyvips.Image.black(5_000, 5_000).copy(interpretation="b-w")
    options = {
        ".png": {"compression": 9, "bitdepth": 1},
        ".webp": {"lossless": True},
        ".tif": {"compression": "ccittfax4", "bitdepth": 1},
    }
    black.write_to_file(str(tmp_path / f"a{extension}"), **options[extension])
    with ImageReader(tmp_path / f"a{extension}", full=True) as reader:
        assert next(reader.rows(3)).max() == 0


@pytest.mark.parametrize(
    "options",
    [{}, {"lossless": True}, {"exif": Image.Exif()}, {"icc_profile": b"x" * 128}],
    ids=["plain", "lossless", "exif", "icc"],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (300, 7), (5, 9001)])
def test_the_size_that_a_webp_claims(tmp_path, options, mode, size):
    Image.new(mode, size).save(tmp_path / "a.webp", **options)
    assert webp_size(tmp_path / "a.webp") == size


def test_no_png_is_too_small_for_its_pixels(tmp_path):
    """Deflate gives 1032 bytes for one at most, 8256 pixels of one bit."""
    black = pyvips.Image.black(20_000, 20_000).copy(interpretation="b-w")
    black.write_to_file(str(tmp_path / "a.png"), compression=9, bitdepth=1)
    size = (tmp_path / "a.png").stat().st_size
    assert BELIEVED_PIXELS < 20_000**2 and 7_900 < 20_000**2 / size < PIXELS_PER_BYTE
    ImageReader(tmp_path / "a.png").close()


def test_what_is_asked_for_is_read(tmp_path):
    black = pyvips.Image.black(12_000, 12_000).copy(interpretation="b-w")
    black.write_to_file(str(tmp_path / "a.tif"), compression="ccittfax4", bitdepth=1)
    refused("limits=ReadLimits(pixels_per_byte=math.inf)", ImageReader, tmp_path / "a.tif")
    with ImageReader(tmp_path / "a.tif", limits=UNLIMITED) as reader:
        assert (reader.width, reader.height) == (12_000, 12_000) and next(reader.rows(8)).max() == 0

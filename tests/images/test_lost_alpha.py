"""Alpha that a decoder would leave out without a word."""

import struct

import numpy as np
import pytest
import pyvips

from edsr.images.reader import ImageReader, read_image
from edsr.images.writer import ImageWriter
from tests.support.image_files import make_image, refused


def encode(form: str, clear: bool = True, **options) -> bytearray:
    """An image of 64 x 64 whose upper half is transparent, or which is opaque."""
    pixels = make_image(64, 64, 4)
    pixels[..., 3] = 255
    pixels[:32, :, 3] = 0 if clear else 255
    return bytearray(pyvips.Image.new_from_array(pixels).copy(interpretation="srgb").write_to_buffer(form, **options))


def check_lost(path, data: bytes) -> None:
    """Refused, and with salvage given with a line."""
    path.write_bytes(data)
    refused("its transparency", read_image, path, full=True)
    with ImageReader(path, full=True, salvage=True) as reader:
        rows = np.concatenate(list(reader.rows(16)))
    assert rows.shape[:2] == (64, 64) and any(line.startswith("damaged") for line in reader.warnings)


def alpha_place(data: bytes) -> tuple[int, int]:
    """Where the second item of libheif's AVIF lies, which is alpha; an entry of its "iloc" has 18 bytes."""
    at = data.index(b"iloc") + 12 + 18
    assert data[at : at + 2] == b"\0\2"
    base, _, start, length = struct.unpack_from(">IHII", data, at + 4)
    return base + start, length


@pytest.mark.parametrize("clear", [True, False])
def test_intact_avif(tmp_path, clear):
    (tmp_path / "a.avif").write_bytes(encode(".avif", clear))
    with ImageReader(tmp_path / "a.avif", full=True) as reader:
        alpha = np.concatenate(list(reader.rows(16)))[..., 3]
    assert alpha[40:].min() == 255 and alpha[:24].max() == (0 if clear else 255) and not reader.warnings


@pytest.mark.parametrize("value", [0, 255])
def test_avif_whose_alpha_is_overwritten(tmp_path, value):
    data = encode(".avif")
    start, length = alpha_place(data)
    data[start : start + length] = bytes([value]) * length
    (tmp_path / "a.avif").write_bytes(data)
    refused("Invalid input", read_image, tmp_path / "a.avif", full=True)


def test_avif_whose_alpha_is_no_item(tmp_path):
    data = encode(".avif")
    second = data.index(b"infe", data.index(b"infe") + 4)
    data[second : second + 4] = b"free"
    check_lost(tmp_path / "a.avif", data)


@pytest.mark.parametrize(("old", "new"), [(b"iref", b"free"), (b"auxl", b"cdsc"), (b"auxl\0\2", b"auxl\0\7")])
def test_avif_whose_alpha_belongs_to_nothing(tmp_path, old, new):
    data = encode(".avif")
    assert data.count(old) == 1
    (tmp_path / "a.avif").write_bytes(data.replace(old, new))
    refused("2 pages", read_image, tmp_path / "a.avif", full=True)  # libheif takes it for an image of its own


@pytest.mark.parametrize("damage", ["chunk", "flag", "flag of lossless"])
def test_webp_whose_alpha_is_hidden(tmp_path, damage):
    data = encode(".webp", lossless=damage.endswith("lossless"))
    if b"VP8X" not in data:  # libwebp leaves it out where it is not needed
        body = b"VP8X" + struct.pack("<II", 10, 0x10) + (63).to_bytes(3, "little") * 2 + bytes(data[12:])
        data = bytearray(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body)
    if damage == "chunk":
        data = data.replace(b"ALPH", b"ALPI")
    else:
        data[20] &= ~0x10
    check_lost(tmp_path / "a.webp", data)


@pytest.mark.parametrize(("bits", "extension", "line"), [
    (12, ".avif", ""),
    (10, ".avif", ""),
    (12, ".png", ""),
    (12, ".webp", "WebP has at most 8 bits a sample, 12-bit samples are rounded"),
    (10, ".jpg", "JPEG has at most 8 bits a sample, 10-bit samples are rounded"),
    (16, ".avif", "AVIF has at most 12 bits a sample, 16-bit samples are rounded"),
])  # fmt: skip
def test_depth_in_notes(tmp_path, bits, extension, line):
    image = pyvips.Image.new_from_array(make_image(16, 16, 3, dtype="uint16")).copy(interpretation="rgb16")
    source = tmp_path / ("a.png" if bits == 16 else "a.avif")
    image.write_to_file(source, **({} if bits == 16 else {"bitdepth": bits}))
    with ImageReader(source, full=True) as reader:
        writer = ImageWriter(tmp_path / f"b{extension}", 16, 16, 3, like=reader, dtype=reader.dtype)
    assert reader.bits == bits and list(writer.warnings) == ([line] if line else [])

"""Kinds of images that are not read are named as such, and never called damaged; what is ignored in others is told."""

import io
import struct

import numpy as np
import pytest
import tifffile

from edsr.images.reader import ImageReader
from tests.support.image_files import chunk, make_image, png, refused

PIXELS = make_image(20, 24)


def tiff(pixels=PIXELS, photometric="rgb", tags=(), **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric=photometric, metadata=None, extratags=tags, **options)
    return buffer.getvalue()


def retagged(data, tag, *changed):
    """The TIFF with the numbers of a tag changed, or without it: another stands there, which is unknown."""
    data = bytearray(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        found = file.pages[0].tags[tag]
        kind = "H" if int(found.dtype) == 3 else "I"
        if changed:
            struct.pack_into(f"<{len(changed)}{kind}", data, found.valueoffset, *changed)
        else:
            struct.pack_into("<H", data, found.offset, 65_100)
    return bytes(data)


def read(path):
    with ImageReader(path, full=True) as reader:
        return np.concatenate(list(reader.rows(16))), reader.warnings


PALETTE = np.zeros((3, 256), np.uint16)
NOT_READ = {
    "two 4-bit samples": (
        lambda: retagged(tiff(PIXELS[..., :2], "minisblack", extrasamples=["unassalpha"]), 258, 4, 4),
        "cannot be decoded here, convert it to PNG",
    ),
    "samples of 5, 6, 5 bits": (lambda: retagged(tiff(), 258, 5, 6, 5), "cannot be decoded here, convert it to PNG"),
    "32-bit": (
        lambda: tiff(PIXELS.astype(np.uint32)),
        "32-bit whole-number samples are not supported here, convert it to RGB or gray of 8 or 16 bits, or of 32-bit "
        "floats",
    ),
    "signed": (lambda: tiff(PIXELS.astype(np.int32)), "signed 32-bit samples are not supported here"),
    "RGB of one channel": (
        lambda: retagged(tiff(PIXELS[..., 0], "minisblack"), 262, 2),
        "the color space of this file (1 channel) is not supported here",
    ),
    "a mask": (lambda: retagged(tiff(), 262, 4), "a transparency mask is not supported, convert it to RGB"),
    "a camera's": (lambda: retagged(tiff(), 262, 34892), "a camera's linear colors are not supported"),
    "no palette": (
        lambda: retagged(tiff(PIXELS[..., 0], "palette", colormap=PALETTE), 320),
        "damaged, get an intact copy (its palette is missing)",
    ),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_kinds_that_are_not_read(tmp_path, name):
    make, message = NOT_READ[name]
    (tmp_path / "a.tif").write_bytes(make())
    refused(message, read, tmp_path / "a.tif")


NARROW, FULL = (16, 1, 235, 1) * 3, (0, 1, 255, 1) * 3


@pytest.mark.parametrize(
    ("tag", "told"),
    [
        ((532, 5, 6, NARROW, True), "ReferenceBlackWhite"),
        ((532, 5, 6, FULL, True), ""),
        ((291, 3, 256, tuple(range(256)), True), "GrayResponseCurve"),
    ],
)
def test_what_a_tiff_says_of_its_numbers_is_told(tmp_path, tag, told):
    (tmp_path / "a.tif").write_bytes(tiff(tags=[tag]))
    with ImageReader(tmp_path / "a.tif", full=True) as reader:
        assert [entry.name for entry in reader.metadata if entry.kind == "other"] == [told] * bool(told)


@pytest.mark.parametrize(
    ("transparency", "told"), [(bytes([9]), False), (bytes(3), False), (bytes(4), True), (bytes(200), True)]
)
def test_transparency_that_is_ignored_is_told(tmp_path, transparency, told):
    (tmp_path / "a.png").write_bytes(png(PIXELS[..., :1] // 100, 8, PIXELS.reshape(-1, 3)[:3], transparency))
    pixels, warnings = read(tmp_path / "a.png")
    assert any("tRNS" in line for line in warnings) is told
    assert pixels.shape[2] == (3 if told else 4)


def test_transparency_of_other_colors(tmp_path):
    for pixels, data, told in ((PIXELS, bytes(6), False), (PIXELS, bytes(2), True), (PIXELS[..., :1], bytes(6), True)):
        (tmp_path / "a.png").write_bytes(png(pixels, extra=chunk(b"tRNS", data)))
        assert any("tRNS" in line for line in read(tmp_path / "a.png")[1]) is told

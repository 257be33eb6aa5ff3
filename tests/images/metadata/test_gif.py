"""What a GIF holds besides its frame, in each format that is written."""

import numpy as np
import pytest
from PIL import Image

from edsr.images.metadata import inventory
from edsr.images.reader import ImageReader
from tests.images.metadata.files import ICC, IIM, OUTPUTS, PIXELS, RESOURCES, chunks, convert, found_in, segments, xmp
from tests.support.image_files import encoded, pillow


def blocks(data):
    return b"".join(bytes((len(data[at : at + 255]),)) + data[at : at + 255] for at in range(0, len(data), 255)) + b"\0"


def gif_with(*extensions, after=b"", ratio=0):
    data = encoded("gif", pillow(PIXELS).quantize(32))
    colors = 3 * 2 ** ((data[10] & 7) + 1)
    return (
        b"GIF89a"
        + data[6:12]
        + bytes((ratio,))
        + data[13 : 13 + colors]
        + b"".join(extensions)
        + data[13 + colors :]
        + after
    )


XMP = b"!\xff\x0bXMP DataXMP" + xmp() + b"\1" + bytes(range(255, -1, -1)) + b"\0"
COMMENT = b"Made by hand, " * 30
NAMED = {
    "app.gif": (gif_with(b"!\xff\x0bABCDEFGH1.0" + blocks(b"anything")), "GIF application ABCDEFGH1.0"),
    "text.gif": (gif_with(b"!\x01" + blocks(bytes(12) + b"words")), "text to be drawn over the image"),
    "tail.gif": (gif_with(after=b"more bytes than padding would be"), "bytes after the image's end"),
    "cut.gif": (gif_with(b"!\xff\x0bXMP DataXMP\0"), "left out, damaged: XMP"),
}


@pytest.mark.parametrize("target", OUTPUTS)
def test_kept(tmp_path, target):
    data = gif_with(b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0", XMP, b"!\xff\x0bICCRGBG1012" + blocks(ICC))
    (tmp_path / "a.gif").write_bytes(data)
    assert convert(tmp_path / "a.gif", tmp_path / f"b{target}") == ()
    found = found_in(tmp_path / f"b{target}")
    assert found["xmp"] == xmp() and found["icc"] == ICC
    with Image.open(tmp_path / "a.gif") as image:
        right = np.asarray(image.convert("RGB"))
    if target in (".png", ".tif"):
        assert np.array_equal(found["pixels"][::2, ::2], right)


@pytest.mark.parametrize("target", OUTPUTS)
def test_comment(tmp_path, target):
    (tmp_path / "a.gif").write_bytes(gif_with(b"!\xfe" + blocks(COMMENT)))
    said = convert(tmp_path / "a.gif", tmp_path / f"b{target}")
    if target == ".png":
        assert ("tEXt", b"Comment\0" + COMMENT) in chunks(tmp_path / "b.png") and said == ()
    elif target == ".jpg":
        assert (0xFE, COMMENT) in segments(tmp_path / "b.jpg") and said == ()
    else:
        assert said == ("the GIF comment is left out",)


def test_a_comment_longer_than_a_segment(tmp_path):
    text = b"0123456789" * 10_000
    (tmp_path / "a.gif").write_bytes(gif_with(b"!\xfe" + blocks(text)))
    assert convert(tmp_path / "a.gif", tmp_path / "b.jpg") == ()
    assert b"".join(data for marker, data in segments(tmp_path / "b.jpg") if marker == 0xFE) == text


def test_iptc(tmp_path):
    (tmp_path / "a.gif").write_bytes(gif_with(b"!\xff\x0bMGK8BIM0000" + blocks(RESOURCES)))
    assert convert(tmp_path / "a.gif", tmp_path / "b.jpg") == ()
    assert IIM in (tmp_path / "b.jpg").read_bytes()


@pytest.mark.parametrize("target", OUTPUTS)
@pytest.mark.parametrize("name", NAMED)
def test_named(tmp_path, name, target):
    data, text = NAMED[name]
    (tmp_path / name).write_bytes(data)
    assert [line for line in convert(tmp_path / name, tmp_path / f"b{target}") if text in line]


def test_shape_of_pixels(tmp_path):
    (tmp_path / "a.gif").write_bytes(gif_with(ratio=113))  # pixels are twice as wide as high
    convert(tmp_path / "a.gif", tmp_path / "b.png")
    assert found_in(tmp_path / "b.png")["info"]["aspect"] == (64, 128)


def test_any_end_is_read_or_refused(tmp_path):
    whole = gif_with(XMP, b"!\xfe" + blocks(COMMENT))
    with ImageReader(_write(tmp_path, whole)) as reader:
        assert {entry.kind for entry in reader.metadata} == {"xmp", "comment"}
    for end in range(13, len(whole), 97):
        inventory.take(_write(tmp_path, whole[:end]), "GIF", b"", 0, {})


def _write(folder, data):
    (folder / "a.gif").write_bytes(data)
    return folder / "a.gif"

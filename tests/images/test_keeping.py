"""`--format keep`: the format of the content, and the same kind of compression."""

import numpy as np
import pytest
from PIL import Image

from edsr.images.compression import detect_compression
from edsr.images.keeping import kept_extension
from edsr.images.reader import ImageReader, read_image
from tests.support.image_files import encoded, make_image, pillow, write

PIXELS = make_image(40, 48)


@pytest.mark.parametrize(
    ("name", "form", "expected"),
    [
        ("a.jfif", "jpeg", ".jfif"),
        ("a.JPE", "jpeg", ".JPE"),
        ("a", "jpeg", ".jpg"),
        ("a.png", "jpeg", ".jpg"),
        ("a.b", "webp", ".webp"),
        ("a.jpg", "png", ".png"),
        ("a.gif", "gif", ".png"),
        ("a.heic", "avif", ".avif"),
        ("a.TIFF", "tiff", ".TIFF"),
        ("a.png", None, ".png"),
        ("a.heic", None, ".avif"),
        ("a", None, ".png"),
    ],
)
def test_the_content_names_the_format(tmp_path, name, form, expected):
    if form:
        (tmp_path / name).write_bytes(encoded(form, pillow(PIXELS)))
    assert kept_extension(tmp_path / name) == expected


@pytest.mark.parametrize("extension", [".webp", ".avif"])
@pytest.mark.parametrize("lossless", [False, True])
def test_lossless_stays_lossless(tmp_path, extension, lossless):
    source = tmp_path / f"a{extension}"
    if extension == ".webp" or not lossless:
        source.write_bytes(encoded(extension[1:], pillow(PIXELS), **({"lossless": True} if lossless else {})))
    else:
        import pyvips

        pyvips.Image.new_from_array(PIXELS).copy(interpretation="srgb").heifsave(
            str(source), lossless=True, compression="av1"
        )
    noise = np.random.default_rng(0).integers(0, 256, PIXELS.shape, np.uint8)
    for keep in (False, True):
        path = tmp_path / f"{keep}{extension}"
        with ImageReader(source) as reader:
            written = write(path, noise, like=reader, keep=keep)
        assert not written.warnings
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), noise) == (keep and lossless)
        assert (detect_compression(path) is None) == (keep and lossless)


@pytest.mark.parametrize(
    ("name", "code"), [("raw", 1), ("tiff_adobe_deflate", 8), ("packbits", 32773), ("tiff_lzw", 5), ("jpeg", 7)]
)
def test_compressions_of_tiff(tmp_path, name, code):
    (tmp_path / "a.tif").write_bytes(encoded("tiff", pillow(PIXELS), compression=name))
    with ImageReader(tmp_path / "a.tif") as reader:
        assert not write(tmp_path / "b.tif", PIXELS, like=reader, keep=True).warnings
    with Image.open(tmp_path / "b.tif") as image:
        assert image.tag_v2[259] == code
    difference = np.abs(read_image(tmp_path / "b.tif").astype(int) - PIXELS).max()
    assert difference == 0 if code != 7 else 0 < difference < 12


def test_what_cannot_be_kept_is_said(tmp_path):
    (tmp_path / "a.tif").write_bytes(encoded("tiff", Image.fromarray(PIXELS[..., 0] > 128), compression="group4"))
    (tmp_path / "a.gif").write_bytes(encoded("gif", pillow(PIXELS)))
    for source, target, says in ("a.tif", "b.tif", "CCITT Group 4, is not kept: 8-bit"), ("a.gif", "b.png", "GIF"):
        with ImageReader(tmp_path / source) as reader:
            pixels = PIXELS[..., : reader.channels]
            warnings = write(tmp_path / target, pixels, like=reader, keep=True).warnings
        assert sum(says in line for line in warnings) == 1

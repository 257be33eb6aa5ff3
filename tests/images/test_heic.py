"""HEIC files as phones write them: decoded by pillow-heif where libvips has no decoder. Pixels are the original's."""

import sys

import numpy as np
import pytest
from PIL import Image

from edsr.images import ImageReader, heic, read_image
from tests.support.image_files import ICC, make_image, refused

pillow_heif = pytest.importorskip("pillow_heif")
LOSSLESS = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
GRAY, RGB = make_image(70, 90, 1)[:, :, 0], make_image(70, 90)


def save(path, pixels, **options):
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(path, **(LOSSLESS | options))


@pytest.fixture(params=[True, False], ids=["by the package", "by whatever there is"])
def decoder(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(heic, "_libvips_decodes", False)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (RGB, RGB),
        (np.dstack([RGB, GRAY]), np.dstack([RGB, GRAY])),
        (GRAY, np.dstack([GRAY] * 3)),
        (make_image(33, 1), make_image(33, 1)),
    ],
    ids=["RGB", "alpha", "gray", "narrow"],
)
def test_pixels(tmp_path, given, expected):
    save(tmp_path / "a.heic", given)
    result = read_image(tmp_path / "a.heic", full=True)
    assert result.dtype == np.uint8 and np.array_equal(result, expected)


@pytest.mark.parametrize("bits", [10, 12])
def test_more_bits(tmp_path, monkeypatch, bits):
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    levels = make_image(40, 50).astype(np.uint16) * (2**bits // 256)
    image = pillow_heif.from_bytes("RGB;16", (50, 40), (levels << (16 - bits)).tobytes())
    image.save(tmp_path / "a.heic", **LOSSLESS)
    result = read_image(tmp_path / "a.heic", sixteen=True)
    assert result.dtype == np.uint16
    assert np.array_equal(result, np.rint(levels * (65535 / (2**bits - 1))))


@pytest.mark.usefixtures("decoder")
def test_metadata_and_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Acme", 6
    save(tmp_path / "a.heic", RGB, exif=exif.tobytes(), icc_profile=ICC)
    with ImageReader(tmp_path / "a.heic") as reader:
        pixels = np.concatenate(list(reader.rows(16)))
        entries = {entry.kind: entry.data for entry in reader.metadata}
    assert np.array_equal(pixels, np.rot90(RGB, -1))
    assert b"Acme" in entries["exif"] and entries["icc"] == ICC


def test_damage_and_another_size(tmp_path, monkeypatch):
    monkeypatch.setattr(heic, "_libvips_decodes", False)
    save(tmp_path / "a.heic", RGB)
    data = (tmp_path / "a.heic").read_bytes()
    (tmp_path / "cut.heic").write_bytes(data[: len(data) // 2])
    refused("damaged or cut off", read_image, tmp_path / "cut.heic")
    monkeypatch.setattr(pillow_heif, "open_heif", lambda *_, **__: RGB[1:])
    refused("decoded as 90 x 69 pixels", read_image, tmp_path / "a.heic")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(heic, "_libvips_decodes", False)
    save(tmp_path / "a.heic", RGB)
    with ImageReader(tmp_path / "a.heic") as reader:
        assert (reader.width, reader.height, reader.format) == (90, 70, "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    refused("compressed with HEVC, which cannot be decoded here; install the extra heic", read_image, reader.path)

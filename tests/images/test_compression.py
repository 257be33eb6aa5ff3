"""How much files were compressed: every encoder's quality found again, what does not tell, what is damaged."""

import io
import struct

import numpy as np
import pytest
import pyvips
from PIL import Image, features

from edsr.images.compression import ASSUMED_QUALITY, LossyCompression, detect_compression, jpeg_quality
from tests.conftest import make_image
from tests.support.image_files import encoded, pillow

PIXELS = make_image(64, 80)
QUALITIES = range(5, 101)


def by_pillow(quality, image=None, **options):
    return encoded("JPEG", image or pillow(PIXELS), **options, **({} if quality is None else {"quality": quality}))


def by_libvips(quality, **options):
    return pyvips.Image.new_from_array(PIXELS).jpegsave_buffer(Q=quality, **options)


def messages(tmp_path, data, name="a.bin"):
    (tmp_path / name).write_bytes(data)
    return detect_compression(tmp_path / name)


def of_jpeg(data):
    return jpeg_quality(io.BytesIO(data))


def with_tables(data, change):
    """A JPEG with its tables [64 steps] changed, written with two bytes a step."""
    at, out = 2, data[:2]
    while data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if data[at + 1] == 0xDB:
            tables = [body[i : i + 65] for i in range(0, len(body), 65)]
            body = b"".join(bytes([16 | t[0]]) + change(np.array(list(t[1:]))).astype(">u2").tobytes() for t in tables)
        out += data[at : at + 2] + struct.pack(">H", len(body) + 2) + body
        at += 2 + length
    return out + data[at:]


# --- JPEG


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_quality_of_pillow(subsampling):
    for quality in QUALITIES:
        assert abs(of_jpeg(by_pillow(quality, subsampling=subsampling)) - quality) <= 3


@pytest.mark.parametrize("mode", ["on", "off"])
def test_quality_of_libvips(mode):
    for quality in QUALITIES:
        assert abs(of_jpeg(by_libvips(quality, subsample_mode=mode)) - quality) <= 3


@pytest.mark.parametrize("quality", [5, 30, 72, 90, 98])
@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_other_kinds_of_jpeg(quality, mode):
    image = pillow(PIXELS).convert(mode)
    for options in {"progressive": True}, {"optimize": True}, {"exif": b"Exif\0\0" + bytes(50_000)}:
        assert abs(of_jpeg(by_pillow(quality, image, **options)) - quality) <= 3
    if mode == "RGB":
        assert abs(of_jpeg(by_pillow(quality, image, keep_rgb=True)) - quality) <= 3
        assert abs(of_jpeg(by_libvips(quality, interlace=True, trellis_quant=True)) - quality) <= 3


@pytest.mark.parametrize("quality", [1, 5, 40, 90])
def test_tables_of_16_bits(quality):
    data = by_pillow(quality)
    assert of_jpeg(with_tables(data, lambda table: table)) in range(quality - 3, quality + 4)
    coarse = with_tables(by_pillow(50), lambda table: table * 10)  # quality 5 without libjpeg's cut at 255
    assert Image.open(io.BytesIO(coarse)).quantization[0][63] == 990
    assert of_jpeg(coarse) == 5


@pytest.mark.parametrize(
    ("preset", "quality"),
    [("web_low", 37), ("web_medium", 72), ("web_high", 88), ("web_very_high", 95), ("maximum", 95)],
)
def test_photoshops_tables(preset, quality):
    """Against the quality of equal PSNR, measured on a photograph; the lowest has an odd table."""
    assert abs(of_jpeg(by_pillow(None, qtables=preset)) - quality) <= (15 if preset == "web_low" else 3)


def test_coarser_tables_are_of_lower_quality():
    for table in range(9):
        found = [of_jpeg(by_libvips(quality, quant_table=table)) for quality in (20, 40, 60, 80, 95)]
        assert found == sorted(set(found))


def test_mpo(tmp_path):
    image = pillow(PIXELS)
    data = encoded("MPO", image, quality=64, save_all=True, append_images=[image.rotate(90)])
    assert messages(tmp_path, data) == LossyCompression("JPEG", 64, True)
    assert str(messages(tmp_path, data)) == "JPEG quality 64"


@pytest.mark.parametrize("damage", ["no tables", "zero", "cut", "soi"])
def test_a_jpeg_without_usable_tables_is_taken_for_middling(tmp_path, damage):
    data = by_pillow(90)
    start = data.index(b"\xff\xdb")
    frame = data.index(b"\xff\xc0")
    bad = {
        "no tables": data[:start] + data[frame:],
        "zero": with_tables(data, lambda table: table * 0),
        "cut": data[: start + 30],
        "soi": b"\xff\xd8\xff",
    }[damage]
    found = messages(tmp_path, bad)
    assert found == LossyCompression("JPEG", ASSUMED_QUALITY, False) and str(found) == "JPEG, quality taken for 75"


def test_only_the_header_is_read(tmp_path):
    data = by_pillow(81, pillow(make_image(600, 800)))
    end = data.index(b"\xff\xda")
    end += 2 + int.from_bytes(data[end + 2 : end + 4], "big")
    assert messages(tmp_path, data[:end]) == LossyCompression("JPEG", 81, True)


def test_a_huge_image_is_no_bomb(tmp_path, recwarn):
    data = bytearray(by_pillow(81))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    assert messages(tmp_path, bytes(data)) == LossyCompression("JPEG", 81, True) and not recwarn.list


# --- the others


@pytest.mark.parametrize("quality", [10, 40, 75, 90])
@pytest.mark.parametrize("options", [{}, {"tile": True, "bigtiff": True}, {"rgbjpeg": True}])
def test_jpeg_in_tiff(tmp_path, quality, options):
    data = pyvips.Image.new_from_array(PIXELS).tiffsave_buffer(compression="jpeg", Q=quality, **options)
    assert messages(tmp_path, data) == LossyCompression("JPEG in TIFF", quality, True)


@pytest.mark.parametrize("compression", ["none", "deflate", "lzw", "packbits"])
def test_other_tiffs_are_lossless(tmp_path, compression):
    image = pyvips.Image.new_from_array(PIXELS)
    for bigtiff in False, True:
        assert messages(tmp_path, image.tiffsave_buffer(compression=compression, bigtiff=bigtiff)) is None


def test_webp_in_tiff_does_not_tell(tmp_path):
    data = pyvips.Image.new_from_array(PIXELS).tiffsave_buffer(compression="webp", Q=30)
    assert messages(tmp_path, data) == LossyCompression("WebP in TIFF", ASSUMED_QUALITY, False)


@pytest.mark.parametrize("method", [0, 4, 6])
@pytest.mark.parametrize("size", [(16, 16), (200, 160)])
def test_quality_of_webp(tmp_path, method, size):
    image = pillow(make_image(*size))
    for quality in range(0, 101, 5):
        found = messages(tmp_path, encoded("WebP", image, quality=quality, method=method))
        assert found.known and found.format == "WebP" and abs(found.quality - quality) <= 4


def test_webp_by_libvips_of_several_segments_and_settings(tmp_path):
    image = pyvips.Image.new_from_array(make_image(200, 160))
    for quality in range(5, 101, 5):
        for options in {}, {"preset": "photo"}, {"preset": "text"}, {"smart_subsample": True}, {"min_size": True}:
            found = messages(tmp_path, image.webpsave_buffer(Q=quality, **options))
            assert abs(found.quality - quality) <= 10, options


def test_extended_webp(tmp_path):
    clear = pillow(make_image(40, 50, 4))
    found = messages(tmp_path, encoded("WebP", clear, quality=60, exif=b"Exif\0\0abc"))
    assert found.known and abs(found.quality - 60) <= 4
    moving = encoded("WebP", clear, quality=60, save_all=True, append_images=[clear.rotate(180)])
    assert b"ANMF" in moving and abs(messages(tmp_path, moving).quality - 60) <= 4
    for image in clear, pillow(PIXELS):
        assert messages(tmp_path, encoded("WebP", image, lossless=True)) is None
        assert messages(tmp_path, encoded("WebP", image, lossless=True, exif=b"Exif\0\0abc")) is None


def test_damaged_webp(tmp_path):
    data = encoded("WebP", pillow(PIXELS), quality=50)
    assert messages(tmp_path, data[:30]) == LossyCompression("WebP", ASSUMED_QUALITY, False)
    assert messages(tmp_path, data[:14]) is None
    for i in range(20, 60):  # never an error, whatever the bits
        bad = bytearray(data)
        bad[i] ^= 0xFF
        assert messages(tmp_path, bytes(bad)) is None or 1 <= messages(tmp_path, bytes(bad)).quality <= 100


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif_and_heic_are_taken_for_middling(tmp_path):
    assert messages(tmp_path, encoded("AVIF", pillow(PIXELS), quality=20)) == LossyCompression(
        "AVIF", ASSUMED_QUALITY, False
    )
    assert str(messages(tmp_path, b"\0\0\0\x18ftypheic" + bytes(40))) == "HEIC, quality taken for 75"


def test_avif_by_libvips(tmp_path):
    image = pyvips.Image.new_from_array(PIXELS)
    assert messages(tmp_path, image.heifsave_buffer(compression="av1", lossless=True)) is None
    for mode in "on", "off":
        data = image.heifsave_buffer(compression="av1", Q=60, subsample_mode=mode)
        assert messages(tmp_path, data) == LossyCompression("AVIF", ASSUMED_QUALITY, False)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "PPM"])
def test_lossless_and_foreign_formats(tmp_path, kind):
    assert messages(tmp_path, encoded(kind, pillow(PIXELS))) is None


def test_no_file_and_no_image(tmp_path):
    assert detect_compression(tmp_path / "none.jpg") is None and detect_compression(tmp_path) is None
    for data in b"", b"\xff", b"II*\0", b"MM\0*" + bytes(20), b"II+\0" + bytes(30), b"RIFF", b"text" * 10:
        assert messages(tmp_path, data) is None

"""Bands of a TIFF that are neither color nor alpha, with tifffile as the writer of the files; and 16-bit floats."""

import zlib

import numpy as np
import pytest
import tifffile

from edsr.images.reader import ImageReader, read_image
from tests.support.image_files import make_image, refused
from tests.support.tiff import tiff

NONE, ASSOCIATED, ALPHA = 0, 1, 2  # of ExtraSamples


def banded(path, colors, extra, kinds, dtype="uint8", **options):
    """A TIFF of these many colors and extra bands of noise; alpha is full. Gives the colors."""
    pixels = make_image(20, 24, colors, dtype=dtype)
    full = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    more = (np.random.default_rng(0).random((20, 24, extra)) * full).astype(dtype)
    for i, kind in enumerate(kinds):
        if kind != NONE:
            more[:, :, i] = full
    photometric = {1: "minisblack", 3: "rgb", 4: "separated"}[colors]
    options = {"planarconfig": "contig"} | options
    tifffile.imwrite(
        path, np.concatenate([pixels, more], 2), photometric=photometric, extrasamples=kinds or None, **options
    )
    return pixels


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    ("colors", "extra", "kinds", "alpha", "left_out"),
    [
        (3, 1, (NONE,), False, "band 4 is"),
        (1, 1, (NONE,), False, "band 2 is"),
        (3, 3, (NONE, NONE, NONE), False, "bands 4, 5, 6 are"),
        (3, 2, (ALPHA, NONE), True, "band 5 is"),
        (3, 2, (NONE, ALPHA), True, "band 4 is"),
        (3, 2, (NONE, ASSOCIATED), True, "band 4 is"),
        (3, 2, (ALPHA, ASSOCIATED), True, "band 4 is"),
        (1, 2, (NONE, ALPHA), True, "band 2 is"),
        (3, 1, (ALPHA,), True, None),
    ],
)
def test_colors_do_not_depend_on_other_bands(tmp_path, colors, extra, kinds, alpha, left_out, dtype):
    pixels = banded(tmp_path / "a.tif", colors, extra, kinds, dtype)
    with ImageReader(tmp_path / "a.tif", full=True) as reader:
        assert [line.split(" left out")[0] for line in reader.warnings] == ([left_out] if left_out else [])
        assert reader.alpha == alpha
        read = np.concatenate(list(reader.rows(7)))
    assert np.array_equal(read[:, :, :colors], pixels) and read.shape[2] == colors + alpha
    assert not alpha or (read[:, :, -1] == read[:, :, -1].max()).all()


def test_without_a_word_on_extra_bands(tmp_path):
    """tifffile always writes ExtraSamples, so the tag becomes one that nobody reads."""
    pixels = banded(tmp_path / "a.tif", 3, 1, (NONE,))
    data = (tmp_path / "a.tif").read_bytes()
    assert data.count(b"\x52\x01\x03\x00\x01\x00\x00\x00") == 1
    (tmp_path / "a.tif").write_bytes(data.replace(b"\x52\x01\x03\x00\x01", b"\x57\x01\x03\x00\x01"))
    assert np.array_equal(read_image(tmp_path / "a.tif", full=True), pixels)


def test_many_extra_bands(tmp_path):
    """So many that ExtraSamples does not fit into the tag itself; big-endian, and BigTIFF."""
    for options in ({}, {"byteorder": ">"}, {"bigtiff": True}):
        pixels = banded(tmp_path / "a.tif", 3, 9, (NONE,) * 8 + (ALPHA,), **options)
        read = read_image(tmp_path / "a.tif", full=True)
        assert np.array_equal(read, np.dstack([pixels, np.full_like(pixels[:, :, :1], 255)]))


def test_jpeg_is_not_laid_over_white(upscale, home):
    """Nor do the colors of a result depend on the band in any other format."""
    pixels = banded(home / "a.tif", 3, 1, (NONE,))
    tifffile.imwrite(home / "b.tif", pixels, photometric="rgb")
    for suffix in "png", "jpg":
        code, _, said = upscale("a.tif", "b.tif", "--format", suffix)
        assert code == 0 and "a.tif: band 4 is left out" in said
        assert np.array_equal(read_image(home / f"a_x2.{suffix}"), read_image(home / f"b_x2.{suffix}"))


def test_cmyk_with_a_spot_color(tmp_path):
    banded(tmp_path / "a.tif", 4, 1, (NONE,))
    banded(tmp_path / "b.tif", 4, 0, ())
    assert np.array_equal(read_image(tmp_path / "a.tif", full=True), read_image(tmp_path / "b.tif", full=True))


@pytest.mark.parametrize("extra", [2, 3])
def test_gray_that_may_be_colors(tmp_path, extra):
    """As GDAL writes RGB of 16 bits: the file calls the first band gray and the others nothing."""
    banded(tmp_path / "a.tif", 1, extra, (NONE,) * extra, "uint16")
    refused(f"{1 + extra} bands", ImageReader, tmp_path / "a.tif", full=True)


def test_other_inks(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="separated", extratags=[(332, 3, 1, 2, True)])
    refused("inks other than CMYK", ImageReader, tmp_path / "a.tif", full=True)


def test_scoring_takes_no_extra_band(tmp_path):
    banded(tmp_path / "a.tif", 3, 1, (NONE,))
    refused("neither color nor alpha", read_image, tmp_path / "a.tif")


# ---- 16-bit floating point


@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"tile": (16, 16)}, {"compression": "deflate"}])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_half_floats(tmp_path, channels, options):
    pixels = make_image(20, 24, channels, dtype="float32").astype(np.float16)
    photometric, kinds = ("minisblack", "rgb")[channels > 2], (ALPHA,) if channels in (2, 4) else None
    options = {"photometric": photometric, "extrasamples": kinds, "planarconfig": "contig"} | options
    tifffile.imwrite(tmp_path / "a.tif", pixels if channels > 1 else pixels[:, :, 0], **options)
    read = read_image(tmp_path / "a.tif", full=True)
    assert read.dtype == np.float32 and np.array_equal(read, pixels)


def test_half_floats_times_alpha(tmp_path):
    alpha = np.full((20, 24, 1), 0.5, np.float16)
    for colors, photometric in (
        (make_image(20, 24, 3, dtype="float32").astype(np.float16), "rgb"),
        (alpha, "minisblack"),
    ):
        pixels = np.dstack([colors * alpha, alpha])
        tifffile.imwrite(
            tmp_path / "a.tif", pixels, photometric=photometric, extrasamples=(ASSOCIATED,), planarconfig="contig"
        )
        if photometric == "rgb":
            assert np.allclose(read_image(tmp_path / "a.tif", full=True), np.dstack([colors, alpha]), atol=1e-3)
        else:
            refused("premultiplied alpha", read_image, tmp_path / "a.tif", full=True)


def deflated(pixels: np.ndarray, predictor: int) -> bytes:
    """A TIFF of 16-bit floats with one of the two predictors of TIFF (6.0, and Adobe's technical note 3)."""
    rows = pixels.view(np.uint16).reshape(len(pixels), -1)
    step, one = pixels.shape[2], (1,) * pixels.shape[2]
    if predictor == 2:
        coded = np.concatenate([rows[:, :step], rows[:, step:] - rows[:, :-step]], 1)
    else:
        planes = np.concatenate([rows >> 8, rows & 255], 1).astype(np.uint8)
        coded = np.concatenate([planes[:, :step], planes[:, step:] - planes[:, :-step]], 1)
    data = np.frombuffer(zlib.compress(coded.tobytes()), np.uint8)[None]
    more: dict = {256: (4, (pixels.shape[1],)), 257: (4, (len(pixels),)), 258: (3, tuple(16 * n for n in one))}
    more |= {259: (3, (8,)), 262: (3, (2 if step > 2 else 1,)), 277: (3, (step,)), 278: (4, (len(pixels),))}
    return tiff(data, more | {317: (3, (predictor,)), 339: (3, tuple(3 * n for n in one))})


def every_half(channels: int) -> np.ndarray:
    """All 16-bit floats, 64 x 256 pixels."""
    return np.arange(65_536, dtype=np.uint16).view(np.float16).reshape(64, 256, 4)[..., :channels].copy()


@pytest.mark.parametrize("form", ["strips", "tiles", "big-endian", "BigTIFF", "predictor"])
@pytest.mark.parametrize("channels", [1, 3])
def test_half_floats_of_every_value(tmp_path, channels, form):
    """NaN is among them, and libvips makes infinity of it."""
    pixels = every_half(channels)
    options: dict = {"tiles": {"tile": (48, 80)}, "big-endian": {"byteorder": ">"}, "BigTIFF": {"bigtiff": True}}
    if form == "predictor":
        (tmp_path / "a.tif").write_bytes(deflated(pixels, 2))
    else:
        photometric = "rgb" if channels == 3 else "minisblack"
        tifffile.imwrite(tmp_path / "a.tif", pixels.squeeze(), photometric=photometric, **options.get(form, {}))
    with ImageReader(tmp_path / "a.tif", full=True) as reader:
        read = np.concatenate(list(reader.rows(20, with_holes=True)))
    assert np.array_equal(read.view(np.uint32), pixels.astype(np.float32).view(np.uint32)) and not reader.warnings


def test_half_floats_whose_nan_is_lost(tmp_path):
    """A predictor for floats cannot be undone on whole numbers: a line says what becomes of NaN."""
    pixels = every_half(3)
    (tmp_path / "a.tif").write_bytes(deflated(pixels, 3))
    with ImageReader(tmp_path / "a.tif", full=True) as reader:
        read = np.concatenate(list(reader.rows(20, with_holes=True)))
    known = np.isfinite(pixels)
    assert np.array_equal(read[known], pixels[known]) and np.isinf(read[~known]).all()
    assert [line for line in reader.warnings if "NaN" in line] == list(reader.warnings)
    (tmp_path / "b.tif").write_bytes(deflated(np.where(known, pixels, np.float16(0)), 3))
    with ImageReader(tmp_path / "b.tif", full=True) as reader:
        list(reader.rows(20, with_holes=True))
    assert not reader.warnings

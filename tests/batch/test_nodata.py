"""Float TIFFs with holes, and whole numbers with GDAL_NODATA, from file to file."""

import struct
from pathlib import Path

import numpy as np
import pytest
import pyvips

from edsr.weights import save_model
from tests.conftest import repeating_network
from tests.support.image_files import with_pillow
from tests.support.tiff import tiff

LOWEST = float(np.finfo(np.float32).min)
NODATA = 42113


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(repeating_network(), "m.safetensors")
    return tmp_path


def decode(path: str) -> np.ndarray:
    """Pillow reads no floating-point RGB, and no 16-bit RGB as it is."""
    pixels = pyvips.Image.tiffload(path, revalidate=True).numpy()
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def read_tag(path: str) -> bytes:
    """The value of GDAL_NODATA in a little-endian TIFF."""
    data = Path(path).read_bytes()
    (at,) = struct.unpack_from("<I", data, 4)
    for i in range(*struct.unpack_from("<H", data, at)):
        tag, kind, count, place = struct.unpack_from("<HHI4s", data, at + 2 + 12 * i)
        if tag == NODATA and kind == 2:
            start = int.from_bytes(place, "little")
            return data[start : start + count] if count > 4 else place[:count]
    return b""


def ramp(channels: int = 0, dtype=np.float32) -> np.ndarray:
    """A smooth image [50, 40] or [50, 40, channels] that has neither 0 nor full samples."""
    y, x = np.mgrid[:50, :40]
    values = 0.2 + 0.6 * (x + y) / 90
    values = values if not channels else np.stack([values, values[::-1], values[:, ::-1]], -1)[..., :channels]
    return values.astype(np.float32) if dtype == np.float32 else (values * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("value", [LOWEST, 1e30, 1e20, np.nan, np.inf, -9999.0])
@pytest.mark.parametrize("channels", [0, 3])
def test_floats_keep_their_holes(home, upscale, value, channels):
    image = ramp(channels)
    image[20:24, 10:14] = image[40, 39] = value
    (home / "a.tif").write_bytes(tiff(image, {NODATA: (2, b"-9999\0")}))
    code, _, err = upscale("a.tif", "-o", "b.tif")
    assert code == 0 and "without data" not in err
    assert read_tag("b.tif") == b"-9999\0"
    result = decode("b.tif")
    want = image.repeat(2, 0).repeat(2, 1)
    known = ~(np.abs(want) >= 9999) & np.isfinite(want)
    np.testing.assert_array_equal(result[~known], want[~known])
    np.testing.assert_allclose(result[known], want[known], rtol=0, atol=2e-7)


@pytest.mark.parametrize("tile", [(), ("--tile", "32")])
def test_the_network_sees_no_hole(home, upscale, tile):
    """With a true network: beside a hole of -3.4e38 the result is nearly what it is without one."""
    image = ramp()
    (home / "whole.tif").write_bytes(tiff(image))
    image[20:24, 10:14] = LOWEST
    (home / "holes.tif").write_bytes(tiff(image))
    for name in ("whole", "holes"):
        assert upscale(f"{name}.tif", "-o", f"{name}_x2.tif", *tile, model="edsr-baseline")[0] == 0
    whole, holes = decode("whole_x2.tif"), decode("holes_x2.tif")
    known = np.isfinite(holes) & (holes > -1)
    assert (~known).sum() == 4 * 16 and np.abs(holes - whole)[known].max() < 0.02


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "avif"])
def test_formats_of_whole_numbers_say_that_holes_are_black(home, upscale, ending):
    image = ramp()
    image[20:24, 10:14] = 1e30
    (home / "a.tif").write_bytes(tiff(image))
    code, _, err = upscale("a.tif", "-o", f"b.{ending}")
    assert code == 0 and "16 pixels without data (nodata, NaN or infinite) are written as black" in err
    result = with_pillow(f"b.{ending}").astype(float)
    result = result[..., 0] if result.ndim == 3 else result
    full = 65535 if result.max() > 255 else 255
    assert (result[42:46, 22:26] < 0.03 * full).all()
    assert np.abs(result[:32] / full - image.repeat(2, 0).repeat(2, 1)[:32]).max() < 0.03


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 0), (np.uint8, 255), (np.uint16, 65535), (np.uint16, 0)])
@pytest.mark.parametrize("channels", [0, 3])
def test_whole_numbers_keep_nodata(home, upscale, dtype, value, channels):
    """Also with a true network, which would draw an edge of false data around it."""
    image = ramp(channels, dtype)
    (home / "whole.tif").write_bytes(tiff(image))
    image[20:24, 10:14] = value
    (home / "a.tif").write_bytes(tiff(image, {NODATA: (2, str(value).encode() + b"\0")}))
    results = {}
    for name, model in ("whole", "edsr-baseline"), ("a", "edsr-baseline"), ("a", "m.safetensors"):
        assert upscale(f"{name}.tif", "-o", "b.tif", "--overwrite", model=model)[0] == 0
        results[name, model] = decode("b.tif")
    np.testing.assert_array_equal(results["a", "m.safetensors"], image.repeat(2, 0).repeat(2, 1))
    a, whole = (results[name, "edsr-baseline"].astype(float) for name in ("a", "whole"))
    known = np.ones(a.shape, bool)
    known[40:48, 20:28] = False
    assert (a[~known] == value).all() and np.abs(a - whole)[known].max() < 0.02 * np.iinfo(dtype).max


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_not_averaged_with_others(home, upscale, dtype):
    image = ramp(0, dtype)
    image[5, 5] = 0
    (home / "a.tif").write_bytes(tiff(image, {NODATA: (2, b"0\0")}))
    code, _, err = upscale("a.tif", "-o", "b.tif", "--width", "60")
    assert code == 1 and "cannot be averaged with others; ask for a whole --scale" in err
    assert not (home / "b.tif").exists()


def test_compare_refuses_holes_in_a_line(home, run):
    image = ramp()
    image[20:24, 10:14] = LOWEST
    (home / "a.tif").write_bytes(tiff(image))
    code, _, err = run("compare", "a.tif", "--model", "m.safetensors")
    assert code == 1 and "holds samples without data" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("photometric", "said", "tag"), [((1,), False, b"7\0"), ((0,), False, b"248\0"), ((3,), True, b"")]
)
def test_the_value_is_that_of_the_result(home, upscale, photometric, said, tag):
    """White is zero no more, and a palette's entry is no color."""
    more: dict = {NODATA: (2, b"7\0"), 262: (3, photometric), 320: (3, tuple(range(0, 65536, 256)) * 3)}
    (home / "a.tif").write_bytes(tiff(ramp(0, np.uint8), more))
    code, _, err = upscale("a.tif", "-o", "b.tif")
    assert code == 0 and read_tag("b.tif") == tag and ("the nodata value (GDAL) is left out" in err) == said
    assert upscale("a.tif", "-o", "b.png")[2].count("the nodata value (GDAL) is left out") == 1

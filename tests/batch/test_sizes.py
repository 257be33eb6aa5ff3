"""Any output size: which, from which network, and how it is reduced."""

import numpy as np
import pytest
import pyvips
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edsr.batch.jobs import OutputSize, scale_for
from edsr.images.formats import storage_for
from edsr.images.reader import ImageReader, read_image
from edsr.images.samples import TargetSize, resample
from edsr.images.writer import ImageWriter
from tests.support.image_files import WHITE, make_image, with_pillow


@pytest.mark.parametrize(
    ("size", "becomes", "tag"),
    [
        (OutputSize(outscale=2.5), (1000, 750), "x2.5"),
        (OutputSize(outscale=2), (800, 600), "x2"),
        (OutputSize(outscale=0.001), (1, 1), "x0.001"),
        (OutputSize(width=1000), (1000, 750), "w1000"),
        (OutputSize(height=601), (801, 601), "h601"),
        (OutputSize(width=1000, height=10), (1000, 10), "1000x10"),
    ],
)
def test_sizes(size, becomes, tag):
    assert size and size.resolve(400, 300) == becomes and size.tag(2) == tag


def test_no_size():
    assert not OutputSize() and OutputSize().tag(4) == "x4"
    with pytest.raises(ValueError):
        OutputSize().resolve(4, 3)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 2000), st.integers(1, 2000))
def test_the_smallest_scale_that_is_enough(width, height, across, down):
    scale = scale_for((across, down), width, height, (4, 2, 3))
    enough = [s for s in (2, 3, 4) if s * width >= across and s * height >= down]
    assert scale == (enough[0] if enough else None)


def write(path, pixels, width, height, dtype, linear=False, step=7):
    rows, columns, channels = pixels.shape
    reduced = TargetSize(width, height, np.dtype(dtype), linear)
    with ImageWriter(path, columns, rows, channels, dtype=np.float32, reduced=reduced) as writer:
        for y in range(0, rows, step):
            writer.write(pixels[y : y + step])


def unit(pixels):
    """Samples as float32 in 0..1."""
    return (pixels / np.float64(WHITE[pixels.dtype.name])).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("width", "height"), [(97, 133), (160, 199), (40, 50)])
def test_reduced_as_pillow_does(tmp_path, channels, width, height):
    """Pillow's Lanczos in floating point, channel by channel."""
    pixels = make_image(200, 160, channels)
    write(tmp_path / "a.png", unit(pixels), width, height, np.uint8)
    got = with_pillow(tmp_path / "a.png").astype(int)
    planes = [Image.fromarray(pixels[..., c].astype(np.float32)) for c in range(channels)]
    want = np.stack([np.asarray(plane.resize((width, height), Image.Resampling.LANCZOS)) for plane in planes], 2)
    # libvips tabulates the kernel at 64 places between two pixels, Pillow reckons it for each. Outside the image
    # libvips repeats its edge, Pillow leaves it out.
    assert got.shape == want.shape and np.abs(got - want.clip(0, 255)).max() < 1.5


@pytest.mark.parametrize("extension", [".png", ".tif", ".jpg", ".webp", ".avif"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_kind_of_image(tmp_path, extension, dtype, channels):
    pixels = unit(make_image(50, 40, channels, dtype=dtype))
    if channels in (2, 4):
        pixels[..., -1] = 1
        pixels[:5, :5, -1] = 0
    write(tmp_path / f"a{extension}", pixels, 31, 37, dtype)
    result = read_image(tmp_path / f"a{extension}", full=True)
    rgb = {".jpg": (1, 3)[channels >= 3], ".webp": 3 + (channels in (2, 4)), ".avif": 3 + (channels in (2, 4))}
    assert result.shape == (37, 31, rgb.get(extension, channels))
    assert result.dtype == storage_for(extension, channels, dtype).dtype
    want = pyvips.Image.new_from_array(pixels[..., :1]).reduce(40 / 31, 50 / 37, kernel="lanczos3").numpy()
    assert np.abs(unit(result)[..., 0] - want.reshape(37, 31)).mean() < 0.02


def test_rounded_once(tmp_path):
    """Reduced from floating point: what 16 bits come out as is the exact mean, to half a level."""
    ramp = np.linspace(0.2, 0.8, 64, dtype=np.float32).reshape(1, 64, 1).repeat(64, 0)
    write(tmp_path / "a.png", ramp, 32, 32, np.uint16)
    got = read_image(tmp_path / "a.png", full=True)[16, 6:26, 0].astype(np.float64)
    want = (ramp[0, 12:52:2, 0].astype(np.float64) + ramp[0, 13:53:2, 0]) / 2 * 65535
    assert np.abs(got - want).max() < 0.6


def test_transparency_has_no_fringes(tmp_path):
    """White under alpha 0 does not come out beside a black disc."""
    y, x = np.mgrid[:80, :80]
    inside = (y - 40) ** 2 + (x - 40) ** 2 < 30**2
    pixels = np.where(inside[..., None], [0, 0, 0, 1], [1, 1, 1, 0]).astype(np.float32)
    write(tmp_path / "a.png", pixels, 53, 53, np.uint8)
    result = read_image(tmp_path / "a.png", full=True).astype(int)
    assert (result[..., :3] * (result[..., 3:] > 0)).max() <= 1
    assert {0, 255} < set(result[..., 3].ravel())


def test_linear_light(tmp_path):
    """A fine chequerboard gives off half the light: 0.5 in light is 0.735 in sRGB's values."""
    board = (np.indices((64, 64)).sum(0) % 2).astype(np.float32)[..., None].repeat(3, 2)
    for linear, value in (False, 0.5), (True, 0.7354):
        path = tmp_path / f"{linear}.png"
        write(path, board, 32, 32, np.uint8, linear)
        assert np.abs(read_image(path)[8:-8, 8:-8] - value * 255).max() <= 1
    flat = np.full((64, 64, 1), 0.3, np.float32)
    write(tmp_path / "flat.png", flat, 20, 20, np.uint16, True)
    assert np.abs(read_image(tmp_path / "flat.png", full=True).astype(int) - 0.3 * 65535).max() <= 1


def test_overshoot_below_black_survives_linear_light():
    edge = np.zeros((40, 40, 1), np.float32)
    edge[:, 20:] = 1
    image = pyvips.Image.new_from_array(edge)
    result = resample(image, TargetSize(25, 25, np.dtype(np.float32), linear=True)).numpy()
    assert np.isfinite(result).all() and result.min() < 0 < 1 < result.max()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 40), (30, 1), (30, 40), (29, 40)])
def test_down_to_a_pixel(tmp_path, width, height):
    write(tmp_path / "a.png", np.full((40, 30, 3), 0.5, np.float32), width, height, np.uint8)
    assert (read_image(tmp_path / "a.png") == 128).all() and read_image(tmp_path / "a.png").shape == (height, width, 3)


def test_larger_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot reduce"):
        ImageWriter(tmp_path / "a.png", 10, 10, 3, dtype=np.float32, reduced=TargetSize(11, 5, np.dtype(np.uint8)))


def test_exif_tells_the_reduced_size(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif.get_ifd(0x8769)[0xA002], exif.get_ifd(0x8769)[0xA003] = "A maker", 40, 30
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    for name in "b.tif", "b.jpg":
        reduced = TargetSize(50, 37, np.dtype(np.uint8))
        with (
            ImageReader(tmp_path / "a.jpg") as reader,
            ImageWriter(tmp_path / name, 80, 60, 3, like=reader, dtype=np.float32, reduced=reduced) as writer,
        ):
            writer.write(np.zeros((60, 80, 3), np.float32))
        with Image.open(tmp_path / name) as image:
            exif = image.getexif()
            assert exif[0x010F] == "A maker"
            assert (exif.get_ifd(0x8769)[0xA002], exif.get_ifd(0x8769)[0xA003]) == image.size == (50, 37)

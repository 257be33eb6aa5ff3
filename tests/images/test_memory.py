"""Memory is reckoned before work: under a limit on addresses each way ends well, or is refused in a line."""

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image

from edsr.images.samples import TargetSize, resample, resampling_memory
from edsr.images.writer import ImageWriter
from tests.images.test_claims import extent, tiff
from tests.support.image_files import encoded, linux, png, run

SCRIPT = """
import resource, sys
import numpy as np, psutil
from edsr.errors import ImageError
from edsr.images import ImageReader, ImageWriter, TargetSize, read_image

def read(path):
    with ImageReader(path, full=True) as reader:
        for rows in reader.rows(16):
            pass

def write(path, width=6000, height=6000, reduced=None, given=None):
    rows = np.zeros((16, width, 3), np.float32 if reduced else np.uint8)
    target = reduced and TargetSize(*reduced, np.dtype(np.uint8))
    with ImageWriter(path, width, height, 3, dtype=rows.dtype, reduced=target) as writer:
        for _ in range(height // 16):
            writer.write(rows)

folder, megabytes = sys.argv[1], int(sys.argv[2])
limit = psutil.Process().memory_info().vms + megabytes * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for line in sys.argv[3:]:
    try:
        eval(line)
        print("done")
    except ImageError as error:
        print(error)
"""


def ways(folder, megabytes, *lines):
    """What comes of lines of Python where so many megabytes of addresses are left."""
    return run(SCRIPT, folder, megabytes, *lines)


@linux
def test_what_does_not_fit_is_refused_before_work(tmp_path):
    black = Image.new("RGB", (6000, 6000))
    black.save(tmp_path / "progressive.jpg", progressive=True)
    black.save(tmp_path / "whole.png", compress_level=1)
    (tmp_path / "large.avif").write_bytes(extent(5000, 5000))
    (tmp_path / "strip.tif").write_bytes(tiff(10_000, 9_000) + bytes(10_000))
    tile = {"tile": (4096, 4096), "compression": "deflate"}
    tifffile.imwrite(tmp_path / "tile.tif", np.zeros((300, 7000, 3), np.uint8), **tile)
    webp = encoded("webp", lossless=True)  # at 21 width and height, less one, in 14 bits each
    (tmp_path / "a.webp").write_bytes(webp[:21] + (5999 | 4999 << 14).to_bytes(4, "little") + webp[25:])
    lines = [
        "read(f'{folder}/progressive.jpg')",
        "read_image(f'{folder}/whole.png')",
        "read(f'{folder}/large.avif')",
        "read(f'{folder}/strip.tif')",
        "read(f'{folder}/tile.tif')",
        "read(f'{folder}/a.webp')",
        "write(f'{folder}/b.webp')",
        "write(f'{folder}/b.avif')",
        "write(f'{folder}/b.png', 20_000, 6000, (64, 20))",
    ]
    before = sorted(path.name for path in tmp_path.iterdir())
    for line, said in zip(lines, ways(tmp_path, 80, *lines), strict=True):
        assert "MB of memory, where" in said and str(tmp_path) in said, line
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@linux
def test_what_is_bounded_fits(tmp_path):
    """Rows of large images, interlaced ones, and reductions by a large factor: the rows a kernel spans are few."""
    Image.new("RGB", (6000, 6000)).save(tmp_path / "a.png", compress_level=1)
    Image.new("RGB", (6000, 6000)).save(tmp_path / "a.jpg")
    (tmp_path / "interlaced.png").write_bytes(png(np.zeros((2400, 2400, 3), np.uint8), interlaced=True))
    lines = [
        "read(f'{folder}/a.png')",
        "read(f'{folder}/a.jpg')",
        "read(f'{folder}/interlaced.png')",
        "write(f'{folder}/b.png', 1600, 16_000, (16, 160))",
    ]
    # Each thread takes 64 MB of addresses for what it may allocate, and 8 for its stack.
    assert ways(tmp_path, 1500, *lines) == ["done"] * len(lines)


# ---- reductions by large factors


@pytest.mark.parametrize(("width", "height"), [(64, 64), (100, 37), (125, 125), (125, 126), (5, 1000)])
@pytest.mark.parametrize("kind", ["smooth", "noise", "edges"])
def test_as_near_to_lanczos_as_without_the_mean(width, height, kind):
    """Compared with Pillow, whose kernel is exact, the mean over blocks before it costs a level in the mean at most."""
    y, x = np.mgrid[:1000, :1000]
    pixels = {
        "smooth": 0.5 + 0.4 * np.sin(y / 50) * np.cos(x / 60),
        "noise": np.random.default_rng(0).uniform(0, 1, (1000, 1000)),
        "edges": ((x + 0.7 * y) % 333 < 140).astype(float),
    }[kind].astype(np.float32)
    image = pyvips.Image.new_from_array(pixels)
    want = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
    plain = image.reduce(1000 / width, 1000 / height, kernel="lanczos3").numpy().reshape(height, width)
    got = resample(image, TargetSize(width, height, np.dtype(np.uint8))).numpy().reshape(height, width)
    if max(1000 / width, 1000 / height) < 8:
        assert np.array_equal(got, plain)
    assert np.abs(got - want).mean() < np.abs(plain - want).mean() + 1 / 255
    assert np.abs(got - want).max() < np.abs(plain - want).max() + 4 / 255


def test_any_factor(tmp_path):
    """60,000 to 1, which libvips' kernel alone does not take: the mean of each part of a ramp."""
    ramp = np.linspace(0, 1, 600_000, dtype=np.float32).reshape(1, -1, 1)
    target = TargetSize(10, 1, np.dtype(np.uint16))
    with ImageWriter(tmp_path / "a.png", 600_000, 1, 1, dtype=np.float32, reduced=target) as writer:
        writer.write(ramp)
    got = np.asarray(Image.open(tmp_path / "a.png")).astype(float).ravel() / 65535
    assert np.abs(got[2:-2] - (np.arange(10) + 0.5)[2:-2] / 10).max() < 1e-3


def test_the_memory_of_a_reduction_grows_with_columns_only():
    assert resampling_memory(1000, 10**9, 3) == resampling_memory(1000, 10**6, 3) == resampling_memory(3000, 10**6, 1)
    assert resampling_memory(1000, 10, 3) == 1000 * 10 * 3 * 4

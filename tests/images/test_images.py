"""Files in, files out, as callers use them: round trips, bounded memory, names. Kinds of images are in test_reader and
test_writer, damage in test_fuzz."""

import os
from pathlib import Path

import numpy as np
import pytest
import pyvips

from edsr.batch.jobs import output_path
from edsr.images.formats import FORMATS
from edsr.images.reader import ImageReader, read_image
from tests.support.image_files import (
    EXTENSIONS,
    LOSSLESS,
    WHITE,
    linux,
    make_image,
    names,
    pillow,
    png,
    refused,
    run,
    with_pillow,
    write,
)


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (300, 1), (60, 41)])
def test_round_trip(tmp_path, extension, channels, height, width):
    path, pixels = tmp_path / f"image{extension.upper()}", make_image(height, width, channels)
    write(path, pixels)
    assert names(tmp_path) == [path.name]
    stored = 3 if extension in (".webp", ".avif") else channels  # which have no gray
    seen, ours = with_pillow(path), read_image(path)
    assert seen.shape == (height, width, stored)
    assert ours.dtype == np.uint8 and ours.shape == seen.shape
    if FORMATS[extension].name in ("PNG", "TIFF"):
        assert np.array_equal(seen, pixels) and np.array_equal(ours, pixels)
    else:
        assert np.abs(seen.astype(int) - pixels).mean() < 2
        assert np.abs(ours.astype(int) - pixels).mean() < 2


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("count", [1, 7, 64, 1000])
def test_rows_are_the_image(tmp_path, extension, count):
    path, pixels = tmp_path / f"a{extension}", make_image(130, 33)
    pillow(pixels).save(path)
    with ImageReader(path) as reader:
        assert (reader.path, reader.width, reader.height, reader.channels) == (path, 33, 130, 3)
        assert reader.format == FORMATS[extension].name
        first, again = list(reader.rows(count)), list(reader.rows(count))
    assert [len(rows) for rows in first] == [min(count, 130 - y) for y in range(0, 130, count)]
    assert np.array_equal(np.concatenate(first), read_image(path))
    assert np.array_equal(np.concatenate(again), read_image(path))
    if extension in LOSSLESS:
        assert np.array_equal(read_image(path), pixels)


def test_rows_needs_a_count(tmp_path):
    write(tmp_path / "a.png", make_image())
    with pytest.raises(ValueError, match="1 or more"):
        next(ImageReader(tmp_path / "a.png").rows(0))


def test_many_rows_at_once(tmp_path):
    # libvips, asked for so many at once, takes minutes.
    write(tmp_path / "a.png", make_image(200_000, 2, 1), step=200_000)
    assert np.array_equal(read_image(tmp_path / "a.png"), make_image(200_000, 2, 1))


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("dtype", WHITE)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_second_round_changes_nothing(tmp_path, extension, dtype, channels):
    first, second = tmp_path / f"a{extension}", tmp_path / f"b{extension}"
    write(first, make_image(channels=channels, dtype=dtype), quality=100)
    with ImageReader(first, full=True) as reader:
        pixels = np.concatenate(list(reader.rows(9)))
        writer = write(second, pixels, like=reader, quality=100)
    assert all("AVIF has at most 12 bits" in line for line in reader.warnings + writer.warnings)
    again = read_image(second, full=True)
    assert again.dtype == pixels.dtype and again.shape == pixels.shape
    if extension in LOSSLESS:
        assert np.array_equal(again, pixels)
    else:
        assert np.abs(again.astype(float) - pixels).mean() < WHITE[pixels.dtype.name] / 100


THREADS = {"VIPS_CONCURRENCY": "2"}
"""Of libvips, which takes one a core, and some MB for each: what is bounded here is what an image's height costs."""
MEMORY = """
import sys
import numpy as np
from edsr.images import ImageReader, ImageWriter

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

width = 500
ramp = np.linspace(0, 0.9, width * 4, dtype=np.float32).reshape(1, width, 4)
for kind, name, channels in (("uint8", "a.png", 3), ("uint16", "a.png", 4), ("uint8", "a.jpg", 3),
                             ("uint8", "a.tif", 1), ("float32", "a.tif", 4), ("float32", "b.jpg", 4)):
    full = ramp if kind == "float32" else ramp * np.iinfo(kind).max
    rows = np.repeat(full[..., :channels], 100, axis=0).astype(kind)
    for height in (1000, 30_000):
        path = f"{sys.argv[1]}/{height}{kind}{name}"
        with ImageWriter(path, width, height, channels, dtype=kind) as writer:
            for _ in range(height // 100):
                writer.write(rows)
        with ImageReader(path, full=True) as reader:
            assert sum(len(part) for part in reader.rows(100)) == height
        print(kind, name, height, peak())
"""


@pytest.mark.slow
@linux
def test_bounded_memory(tmp_path):
    # Up to 240 MB of pixels against 8 MB, in a process of its own.
    peaks = [int(line.split()[-1]) for line in run(MEMORY, tmp_path, **THREADS)]
    assert max(peaks) - peaks[0] < 40_000, peaks


DETOURS = """
import sys
import numpy as np
from edsr.images import ImageReader

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

for path in sys.argv[1:]:
    with ImageReader(path, folder=path.rpartition("/")[0]) as reader:
        assert sum(part.sum(dtype=np.int64) for part in reader.rows(20)) > 0
    print(peak())
"""


@pytest.mark.slow
@linux
def test_bounded_memory_of_turned_and_interlaced(tmp_path):
    row, paths = np.arange(2000 * 3, dtype=np.uint32).reshape(1, 2000, 3).astype(np.uint8), []
    for height in (1000, 30_000):
        paths.append(tmp_path / f"{height}.png")
        paths[-1].write_bytes(png(np.broadcast_to(row, (height, 2000, 3)), interlaced=True))
        for orientation in (3, 6):
            image = pyvips.Image.new_from_array(row).replicate(1, height).copy(interpretation="srgb")
            image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
            paths.append(tmp_path / f"{height}{orientation}.tif")
            image.tiffsave(str(paths[-1]))
    peaks = [int(line) for line in run(DETOURS, *paths, **THREADS)]
    assert max(peaks) - max(peaks[:3]) < 40_000, peaks  # of 180 MB of pixels
    assert names(tmp_path) == sorted(path.name for path in paths)


# ---- names


def test_unusual_names(tmp_path):
    folder = tmp_path / "Bilder, 写真 [1]"
    folder.mkdir()
    for name in ("фото ü.png", "a[page=2].tif", "b.png[access=random].jpg", "-c.webp", "%d.png", "d[Q=1].avif"):
        write(folder / name, make_image())
        assert read_image(folder / name).shape == (60, 41, 3)


@linux
def test_names_that_are_not_unicode(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png"))
    write(path, make_image())
    assert np.array_equal(read_image(path), make_image())
    path.write_bytes(path.read_bytes()[:300])
    refused("damaged", read_image, path)


def test_output_path(tmp_path):
    source = tmp_path / "a.photo.jpg"
    source.write_bytes(b"")
    assert output_path(source, "x2") == tmp_path / "a.photo_x2.png"
    assert output_path("a.jpg", "x4") == Path("a_x4.png")
    assert output_path("a.jpg", "x2.5") == Path("a_x2.5.png")
    assert output_path(source, "x3", tmp_path) == tmp_path / "a.photo_x3.png"
    assert output_path(source, "x2", f"{tmp_path}/new/") == tmp_path / "new" / "a.photo_x2.png"
    assert output_path(source, "x2", "b.webp") == Path("b.webp")
    refused("is the input itself", output_path, source, "x2", source)
    refused("is the input itself", output_path, source, "x2", tmp_path / ".." / tmp_path.name / source.name)
    refused("is the input itself", output_path, tmp_path / "none.png", "x2", tmp_path / "none.png")
    os.link(source, tmp_path / "same.png")
    refused("is the input itself", output_path, source, "x2", tmp_path / "same.png")


def test_output_path_of_a_format(tmp_path):
    for form in ("png", "jpg", "webp", "tiff", "avif"):
        assert output_path("a.photo.png", "x2", None, form) == Path(f"a.photo_x2.{form}")
        assert output_path("a.png", "x2", tmp_path, form) == tmp_path / f"a_x2.{form}"
    kept = {"a.png": ".png", "a.JPEG": ".JPEG", "a.tif": ".tif", "a.heic": ".avif", "a.HEIF": ".avif", "a": ".png"}
    for name, suffix in kept.items():
        assert output_path(name, "x2", None, "keep") == Path(f"a_x2{suffix}")
    assert output_path("a.png", "x2", "b.JPEG", "jpg") == Path("b.JPEG")
    assert output_path("a.tif", "x2", "b.tiff", "keep") == Path("b.tiff")
    refused("b.jpg: its ending is not that of form='webp'", output_path, "a.png", "x2", "b.jpg", "webp")
    refused("b.jpg: its ending is not that of form='keep'", output_path, "a.png", "x2", "b.jpg", "keep")
    refused("b: its ending", output_path, "a.png", "x2", "b", "png")

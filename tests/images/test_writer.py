"""What is written into every kind of image file, with Pillow, tifffile and a PNG decoder by hand as witnesses."""

import errno
import os
import threading
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from edsr import system
from edsr.errors import ImageError
from edsr.images import formats, writer
from edsr.images.formats import FORMATS, storage_for
from edsr.images.reader import ImageReader, read_image
from edsr.images.samples import over_white, to_depth
from edsr.images.target import FileTarget
from edsr.images.writer import BIGTIFF_ABOVE, ImageWriter
from tests.support.image_files import (
    EXTENSIONS,
    ICC,
    WHITE,
    linux,
    make_image,
    names,
    pillow,
    refused,
    run,
    unpack_png,
    with_pillow,
    write,
)

XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><note>kept</note></x:xmpmeta>"


# ---- what fits


FITTING = {  # extension, dtype -> dtype stored and what is said of it
    (".png", "uint8"): ("uint8", ""),
    (".png", "uint16"): ("uint16", ""),
    (".png", "float32"): ("uint16", "PNG has at most 16 bits a sample, floating-point samples are rounded"),
    (".jpg", "uint8"): ("uint8", ""),
    (".jpg", "uint16"): ("uint8", "JPEG has at most 8 bits a sample, 16-bit samples are rounded"),
    (".jpg", "float32"): ("uint8", "JPEG has at most 8 bits a sample, floating-point"),
    (".webp", "uint8"): ("uint8", ""),
    (".webp", "uint16"): ("uint8", "WebP has at most 8 bits a sample, 16-bit"),
    (".tif", "uint8"): ("uint8", ""),
    (".tif", "uint16"): ("uint16", ""),
    (".tif", "float32"): ("float32", ""),
    (".avif", "uint8"): ("uint8", ""),
    (".avif", "uint16"): ("uint16", "AVIF has at most 12 bits a sample, 16-bit"),
    (".avif", "float32"): ("uint16", "AVIF has at most 12 bits a sample, floating-point"),
}


@pytest.mark.parametrize("extension, dtype", FITTING)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_fitting(tmp_path, extension, dtype, channels):
    stored, text = FITTING[extension, dtype]
    flat = extension == ".jpg" and channels in (2, 4)
    fit = storage_for(extension.upper(), channels, dtype)
    assert (fit.channels, fit.dtype) == (channels - flat, np.dtype(stored))
    assert len(fit.warnings) == bool(text) + flat
    assert text in " ".join(fit.warnings) and ("laid over white" in " ".join(fit.warnings)) == flat
    assert ImageWriter(tmp_path / f"a{extension}", 9, 9, channels, dtype=dtype).warnings == fit.warnings


def test_fitting_an_unknown_extension():
    refused("unknown extension '.bmp', use one of .png", storage_for, ".bmp", 3, np.uint8)


# ---- pixels


def float_strips(page):
    """Undoes TIFF's predictor 3 (Adobe Photoshop TIFF technical note 3), which tifffile does not."""
    height, width, channels = (*page.shape, 1)[:3]
    file, rows = page.parent.filehandle, []
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        lines = np.frombuffer(zlib.decompress(file.read(count)), np.uint8).reshape(-1, width * 4, channels)
        planes = np.cumsum(lines, axis=1, dtype=np.uint8).reshape(len(lines), 4, width * channels)
        rows.append(np.ascontiguousarray(planes.transpose(0, 2, 1)).view(">f4").reshape(-1, width, channels))
    pixels = np.concatenate(rows).astype(np.float32)
    assert len(pixels) == height
    return pixels


def independently(path, pixels):
    """The file's pixels, [height, width, channels], by another reader than libvips, at full depth."""
    if path.suffix == ".png":
        return unpack_png(path)
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            (page,) = file.pages
            assert [int(extra) for extra in page.extrasamples] == ([2] if pixels.shape[2] in (2, 4) else [])
            assert page.photometric == (tifffile.PHOTOMETRIC.RGB if pixels.shape[2] >= 3 else 1)
            stored = float_strips(page) if page.dtype == np.float32 else page.asarray()
            return stored.reshape(pixels.shape)
    return with_pillow(path)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", WHITE)
def test_every_kind(tmp_path, extension, channels, dtype):
    path, pixels = tmp_path / f"a{extension}", make_image(channels=channels, dtype=dtype)
    write(path, pixels, quality=100)
    fit = storage_for(extension, channels, dtype)
    seen, ours = independently(path, pixels), read_image(path, full=True)
    gray_as_rgb = extension in (".webp", ".avif") and channels <= 2
    assert seen.shape == ours.shape == (60, 41, fit.channels + 2 * gray_as_rgb)
    assert ours.dtype == fit.dtype
    expected = to_depth(over_white(pixels) if fit.channels < channels else pixels, fit.dtype)
    if extension in (".png", ".tif"):
        assert seen.dtype == ours.dtype == fit.dtype
        assert np.array_equal(ours, expected) and np.array_equal(seen, expected)
        return
    if gray_as_rgb:
        expected = expected[..., [0, 0, 0, 1][: fit.channels + 2]]
    levels = expected / WHITE[expected.dtype.name] * 255
    assert np.abs(ours / WHITE[ours.dtype.name] * 255 - levels).mean() < 1.5
    assert np.abs(seen - levels).mean() < 1.5


@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (300, 1), (2, 2)])
@pytest.mark.parametrize("dtype", WHITE)
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_small_and_thin(tmp_path, extension, dtype, height, width):
    path, pixels = tmp_path / f"a{extension}", make_image(height, width, 4, dtype=dtype)
    write(path, pixels)
    assert read_image(path, full=True).shape == (height, width, 3 if extension == ".jpg" else 4)


def test_sixteen_bits_never_pass_through_eight(tmp_path):
    pixels = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    for name in ("a.png", "b.tif"):
        write(tmp_path / name, pixels)
        assert np.array_equal(read_image(tmp_path / name, sixteen=True), pixels)
    write(tmp_path / "c.avif", pixels, quality=100)
    assert len(np.unique(read_image(tmp_path / "c.avif", full=True))) > 3000  # of 4096


@pytest.mark.parametrize("extension", [".jpg", ".webp", ".avif"])
def test_quality(tmp_path, extension):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sizes = []
    for quality in (20, None, 100):
        path = tmp_path / f"{quality}{extension}"
        write(path, pixels, quality=quality)
        sizes.append(path.stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2]


def test_large_tiff_is_bigtiff(tmp_path):
    size = 60 * 41 * 3
    for above, big in ((size - 1, True), (size, False), (BIGTIFF_ABOVE, False)):
        for dtype, each in (("uint8", 1), ("uint16", 2)):
            write(tmp_path / "a.tif", make_image(dtype=dtype), bigtiff_above=above * each, overwrite=True)
            with tifffile.TiffFile(tmp_path / "a.tif") as file:
                assert file.is_bigtiff == big
    assert 0.9 * 2**32 < BIGTIFF_ABOVE < 2**32 - 2**28  # room for what compression adds, and for metadata


def test_rows_in_any_memory_order(tmp_path):
    for dtype in WHITE:
        pixels = make_image(30, 20, dtype=dtype)
        write(tmp_path / "a.tif", np.asfortranarray(pixels)[::-1], overwrite=True)
        write(tmp_path / "b.tif", pixels[:, ::-2], overwrite=True)
        assert np.array_equal(read_image(tmp_path / "a.tif", full=True), pixels[::-1])
        assert np.array_equal(read_image(tmp_path / "b.tif", full=True), pixels[:, ::-2])


# ---- metadata


def save_with_metadata(path):
    exif = Image.Exif()
    exif[0x010F], exif[0x8298] = "A maker", "Copyright Müller"
    exif.get_ifd(0x8769)[0x9003] = "2020:02:03 04:05:06"
    options = {"icc_profile": ICC, "dpi": (300, 300), "exif": exif}
    if path.suffix == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    elif path.suffix == ".tif":
        own = {0x9003: "2020:02:03 04:05:06"}
        options["tiffinfo"] = {700: XMP, 0x010F: "A maker", 0x8298: "Copyright Müller", 0x8769: own}
        del options["exif"]
    else:
        options["xmp"] = XMP
    pillow(make_image()).save(path, **options)


@pytest.mark.parametrize("source", EXTENSIONS)
@pytest.mark.parametrize("target", EXTENSIONS)
def test_metadata_is_kept(tmp_path, source, target):
    first, second = tmp_path / f"a{source}", tmp_path / f"b{target}"
    save_with_metadata(first)
    with ImageReader(first) as reader:
        writer = write(second, make_image(120, 82), like=reader)
    assert reader.warnings == writer.warnings == ()
    with Image.open(second) as image:
        image.load()  # a PNG's texts may stand behind the pixels
        assert image.info["icc_profile"] == ICC
        xmp = image.getexif()[700] if target == ".tif" else image.info["xmp"]
        assert (xmp.encode() if isinstance(xmp, str) else xmp) == XMP
        exif = image.getexif()
        if not {source, target} & {".webp", ".avif"}:  # these have no resolution of their own
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        assert exif[0x010F] == "A maker" and exif[0x8298].startswith("Copyright M")
        assert exif.get_ifd(0x8769)[0x9003] == "2020:02:03 04:05:06"
        assert (exif.get_ifd(0x8769)[0xA002], exif.get_ifd(0x8769)[0xA003]) == (82, 120)
        if source in (".png", ".jpg", ".tif") and target in (".webp", ".avif"):
            assert exif[0x011A] == pytest.approx(300, abs=0.01)  # in EXIF, then


@pytest.mark.parametrize("dtype", WHITE)
def test_metadata_of_other_kinds(tmp_path, dtype):
    save_with_metadata(tmp_path / "a.png")
    with ImageReader(tmp_path / "a.png") as reader:
        write(tmp_path / "b.tif", make_image(channels=4, dtype=dtype), like=reader)
    with ImageReader(tmp_path / "b.tif", full=True) as reader:
        kept = {entry.kind: entry.data for entry in reader.metadata}
        assert kept["icc"] == ICC and kept["xmp"] == XMP
        assert reader.resolution == pytest.approx((300 / 25.4, 300 / 25.4), rel=1e-3)
        assert (reader.dtype, reader.channels) == (dtype, 4)


def test_description_of_a_tiff_is_kept(tmp_path):
    pillow(make_image()).save(tmp_path / "a.tif", tiffinfo={270: "A field"})
    with ImageReader(tmp_path / "a.tif") as reader:
        assert reader.warnings == ()
        write(tmp_path / "b.tif", make_image(), like=reader)
    with Image.open(tmp_path / "b.tif") as image:
        assert image.tag_v2[270] == "A field"


def gray_profile():
    """One whose curve is not sRGB's: gamma 1.8."""
    curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + (460).to_bytes(2, "big") + bytes(2)
    white = b"XYZ " + bytes(4) + b"".join(round(v * 65536).to_bytes(4, "big") for v in (0.9642, 1, 0.8249))
    text = b"desc" + bytes(4) + (5).to_bytes(4, "big") + b"gray\0" + bytes(79)
    text += bytes(-len(text) % 4)
    offset, table, data = 128 + 4 + 3 * 12, b"", b""
    for name, part in ((b"wtpt", white), (b"kTRC", curve), (b"desc", text)):
        table += name + (offset + len(data)).to_bytes(4, "big") + len(part).to_bytes(4, "big")
        data += part
    size = offset + len(data)
    head = size.to_bytes(4, "big") + bytes(4) + b"\2\x20\0\0mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28)
    return (head + white[8:]).ljust(128, b"\0") + (3).to_bytes(4, "big") + table + data


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("target", EXTENSIONS)
def test_gray_profiles(tmp_path, target, channels):
    pixels = make_image(channels=channels)
    image = pillow(pixels[..., :1])
    if channels == 2:
        image.putalpha(pillow(pixels[..., 1:]))
    image.save(tmp_path / "a.png", icc_profile=gray_profile())
    with ImageReader(tmp_path / "a.png", full=True) as reader:
        writer = write(tmp_path / f"b{target}", pixels, like=reader, quality=100)
    assert not any("profile" in line for line in writer.warnings)
    with Image.open(tmp_path / f"b{target}") as image:
        profile, first = image.info["icc_profile"], np.asarray(image.convert("RGB"))[..., 0]
    if target not in (".webp", ".avif"):
        assert profile == gray_profile()
        return
    assert profile[16:20] == b"RGB "  # stored as RGB, so converted
    linear = (pixels[..., 0] / 255) ** (460 / 256)
    expected = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear) * 255
    assert np.abs(first - expected).mean() < 1.5


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("profile, channels", [(ICC, 1), (gray_profile(), 3)])
def test_profiles_of_another_space_are_dropped(tmp_path, extension, profile, channels):
    pillow(make_image()).save(tmp_path / "a.tif", icc_profile=profile)
    with ImageReader(tmp_path / "a.tif") as reader:
        writer = write(tmp_path / f"b{extension}", make_image(channels=channels), like=reader)
        assert reader.metadata  # nothing is taken from the Reader
    assert any("profile is left out" in line for line in writer.warnings)
    with Image.open(tmp_path / f"b{extension}") as image:
        assert "icc_profile" not in image.info


def test_unknown_resolution_is_72_dpi(tmp_path):
    pillow(make_image()).save(tmp_path / "a.png")
    with ImageReader(tmp_path / "a.png") as reader:
        write(tmp_path / "b.png", make_image(), like=reader)
    write(tmp_path / "c.png", make_image())
    for name in ("b.png", "c.png"):
        with Image.open(tmp_path / name) as image:
            assert image.info["dpi"] == pytest.approx((72, 72), abs=0.02)


# ---- what cannot be written


def test_refused_by_the_writer(tmp_path):
    (tmp_path / "old.png").write_bytes(b"precious")
    (tmp_path / "folder.png").mkdir()
    before = names(tmp_path)
    size = (10, 10, 3)
    message = refused("unknown extension '.bmp'", ImageWriter, tmp_path / "a.bmp", *size)
    assert all(extension in message for extension in FORMATS)
    refused("has no ending that names a format, use one of .png", ImageWriter, tmp_path / "a", *size)
    refused(f"there is no folder {tmp_path / 'none'}", ImageWriter, tmp_path / "none" / "a.png", *size)
    refused("is a folder", ImageWriter, tmp_path / "folder.png", *size, overwrite=True)
    refused("exists; add overwrite=True to replace it", ImageWriter, tmp_path / "old.png", *size)
    refused("cannot be written", ImageWriter, tmp_path / f"{'n' * 300}.png", *size)
    refused("use .png or .tif", ImageWriter, tmp_path / "a.jpg", 65_501, 1, 3)
    refused("use .png or .tif", ImageWriter, tmp_path / "a.jpeg", 1, 65_501, 3)
    refused("16383", ImageWriter, tmp_path / "a.webp", 16_384, 1, 3)
    refused("16384", ImageWriter, tmp_path / "a.avif", 16_385, 1, 3)
    refused("100000000", ImageWriter, tmp_path / "a.png", 1, 100_000_001, 3)
    for wrong in [(0, 10, 3), (10, 0, 3), (10, 10, 5), (10, 10, 3, None, False, None, np.float64)]:
        with pytest.raises(ValueError, match="cannot write"):
            ImageWriter(tmp_path / "a.png", *wrong)
    with pytest.raises(ValueError, match="quality"):
        ImageWriter(tmp_path / "a.jpg", *size, quality=101)
    assert names(tmp_path) == before
    assert (tmp_path / "old.png").read_bytes() == b"precious"


@pytest.mark.parametrize("name, side", [("a.jpg", 65_500), ("a.webp", 16_383), ("a.avif", 16_384)])
def test_longest_sides(tmp_path, name, side):
    write(tmp_path / name, np.zeros((2, side, 1), np.uint8))
    write(tmp_path / f"tall{name}", np.zeros((side, 2, 1), np.uint8), step=5000)
    assert read_image(tmp_path / name).shape[:2] == (2, side)
    assert read_image(tmp_path / f"tall{name}").shape[:2] == (side, 2)


@pytest.mark.parametrize("name, each", [("a.png", 0), ("a.jpg", 0), ("a.tif", 0), ("a.webp", 18), ("a.avif", 38)])
def test_buffered(tmp_path, name, each, monkeypatch):
    assert ImageWriter(tmp_path / name, 10, 20, 3).buffered_bytes == 200 * each
    assert ImageWriter(tmp_path / name, 10, 20, 4).buffered_bytes == (400 * each if name != "a.jpg" else 0)
    monkeypatch.setattr(formats, "available_memory", lambda: 3000)
    if each:
        refused("0 MB are free", ImageWriter, tmp_path / name, 10, 20, 3)
    else:
        ImageWriter(tmp_path / name, 10, 20, 3)


@linux
def test_folder_without_permission(tmp_path):
    def begin(path):
        with ImageWriter(path, 4, 4, 3):
            pytest.fail("was let in")

    refused("write into", begin, "/proc/a.png")  # where not even root may create a file
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    refused(f"no permission to write into the folder {tmp_path}", ImageWriter, tmp_path / "a.png", 4, 4, 3)


def test_wrong_rows(tmp_path):
    rows = make_image(4, 5)
    with pytest.raises(ValueError, match="context"):
        ImageWriter(tmp_path / "a.png", 5, 4, 3).write(rows)
    for wrong in [rows[:, 1:], rows[..., :1], rows[0], rows.astype(np.float32), np.concatenate([rows, rows])]:
        with pytest.raises(ValueError), ImageWriter(tmp_path / "a.png", 5, 4, 3) as writer:
            writer.write(wrong)
    assert names(tmp_path) == []


# ---- complete or not at all


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [b"precious", None])
def test_exception_half_way_changes_nothing(tmp_path, extension, error, old):
    path, pixels = tmp_path / f"a{extension}", make_image(300, 500)
    if old:
        path.write_bytes(old)
    before = names(tmp_path)
    with pytest.raises(error), ImageWriter(path, 500, 300, 3, overwrite=True) as writer:
        assert len(names(tmp_path)) == len(before) + 1
        writer.write(pixels[:200])
        raise error
    assert names(tmp_path) == before
    assert not old or path.read_bytes() == old


@pytest.mark.parametrize("dtype", WHITE)
def test_missing_rows(tmp_path, dtype):
    def short():
        with ImageWriter(tmp_path / "a.tif", 41, 60, 3, dtype=dtype) as writer:
            writer.write(make_image(dtype=dtype)[:59])

    refused("1 of 60 rows are missing", short)
    assert names(tmp_path) == []


def test_overwrite(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    write(path, make_image(), overwrite=True)
    assert np.array_equal(read_image(path), make_image()) and names(tmp_path) == ["a.png"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch, links):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "a.png"

    def slow():
        with ImageWriter(path, 41, 60, 3) as writer:
            writer.write(make_image())
            path.write_bytes(b"precious")

    refused("exists; add overwrite=True", slow)
    assert path.read_bytes() == b"precious" and names(tmp_path) == ["a.png"]
    write(tmp_path / "b.png", make_image())
    assert np.array_equal(read_image(tmp_path / "b.png"), make_image()) and names(tmp_path) == ["a.png", "b.png"]


def test_failing_rename_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(system, "_rename_in_one_step", lambda *_: False)
    refused("cannot be written (Input/output error)", write, tmp_path / "a.png", make_image())
    assert names(tmp_path) == []


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("call", ["write", "seek"])
@pytest.mark.parametrize("kind", [".tif", ".png", ".jpg", ".webp", ".avif"])
def test_one_failing_call_is_enough(tmp_path, monkeypatch, kind, call, at):
    """libvips writing TIFF by itself goes on after it, and leaves a damaged file."""

    class Failing:
        def __init__(self, file):
            self.file, self.left = file, at

        def __getattr__(self, name):
            return getattr(self.file, name) if name != call else self.attempt

        def attempt(self, *arguments):
            self.left -= 1
            if self.left == -1:
                failed.append(call)
                raise OSError(errno.EIO, "Input/output error")
            return getattr(self.file, call)(*arguments)

    failed = []
    monkeypatch.setattr(writer, "FileTarget", lambda file, splice: FileTarget(Failing(file), splice))
    path, pixels = tmp_path / f"a{kind}", make_image()
    try:
        write(path, pixels)
    except ImageError as error:
        assert failed and "cannot be written (Input/output error)" in str(error) and names(tmp_path) == []
    else:
        assert not failed and read_image(path).shape == pixels.shape


def test_a_library_without_the_format(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, ".avif", formats.Format("AVIF", "nosave", {}, 8))
    refused("a.avif: cannot be written", write, tmp_path / "a.avif", make_image())
    assert names(tmp_path) == []


def test_a_signal_while_the_writer_begins_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), ImageWriter(tmp_path / "out.png", 4, 4, 3):
        pass
    assert not list(tmp_path.iterdir())


FULL_DISK = """
import os, resource, sys
import numpy as np
from edsr.errors import ImageError
from edsr.images import ImageWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
rows = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
for late in (False, True):  # the damage shows while rows are written, or only at the end
    for name in ("a.png", "a.jpg", "a.webp", "a.tif", "a.avif"):
        height = 150 if late or name == "a.avif" else 4000
        try:
            with ImageWriter(os.path.join(sys.argv[1], name), 500, height, 3, quality=100) as writer:
                for y in range(0, height, 400):
                    writer.write(rows[:min(400, height - y)])
        except ImageError as error:
            print(error)
print(os.listdir(sys.argv[1]))
"""


@linux
def test_full_disk(tmp_path):
    *messages, left = run(FULL_DISK, tmp_path)
    assert len(messages) == 10
    assert all("cannot be written (File too large)" in message for message in messages)
    assert left == "[]"


@pytest.mark.parametrize("rows", [None, [[[1, 2, 3]]], "rows"])
def test_rows_that_are_no_array(tmp_path, rows):
    with pytest.raises(TypeError, match="rows are arrays"), ImageWriter(tmp_path / "a.png", 1, 1, 3) as writer:
        writer.write(rows)
    assert names(tmp_path) == []

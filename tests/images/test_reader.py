"""What comes out of every kind of image file, with Pillow, tifffile and files written by hand as witnesses."""

import errno
import io
import os
import struct

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image, ImageCms, ImageOps

from edsr.images import formats, reorder
from edsr.images.probe import LOADERS
from edsr.images.reader import ImageReader, ReadLimits, read_image
from tests.support.image_files import (
    EXTENSIONS,
    LOSSLESS,
    WHITE,
    chunk,
    encoded,
    linux,
    make_image,
    pack,
    pillow,
    png,
    refused,
    write,
)

CMYK = pyvips.Operation.call("profile_load", "cmyk")
SRGB = pyvips.Operation.call("profile_load", "srgb")


def noise(height=21, width=30, channels=1, top=255, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, top + 1, (height, width, channels)).astype(dtype)


def whole(path, count=7, **options):
    """The image in pieces, after a look at the attributes."""
    with ImageReader(path, full=True, **options) as reader:
        pixels = np.concatenate(list(reader.rows(count)))
        assert pixels.shape == (reader.height, reader.width, reader.channels)
        assert pixels.dtype == reader.dtype and reader.alpha == (reader.channels in (2, 4))
    options.pop("folder", None)
    assert np.array_equal(read_image(path, full=True, **options), pixels)
    return pixels


def exactly(path, expected, **options):
    pixels = whole(path, **options)
    assert pixels.dtype == expected.dtype and np.array_equal(pixels, expected)


# ---- PNG


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png(tmp_path, bits, channels, interlaced):
    if bits < 8 and channels > 1:
        pytest.skip("PNG has no such kind")
    samples = noise(channels=channels, top=2**bits - 1, dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png(samples, bits, interlaced=interlaced))
    expected = samples if bits == 16 else (samples * (255 // (2**bits - 1))).astype(np.uint8)
    exactly(tmp_path / "a.png", expected)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes(tmp_path, bits, transparent, interlaced):
    samples, palette = noise(top=2**bits - 1), noise(2**bits, 3).reshape(-1)[: 3 * 2**bits].reshape(-1, 3)
    opacity = np.full(2**bits, 255, np.uint8)
    opacity[:2] = 0, 77
    data = png(samples, bits, palette, bytes(opacity[:2]) if transparent else None, interlaced)
    (tmp_path / "a.png").write_bytes(data)
    table = np.column_stack([palette, opacity]) if transparent else palette
    exactly(tmp_path / "a.png", table[samples[..., 0]])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [1, 4, 8, 16])
def test_one_transparent_color(tmp_path, bits, channels):
    if bits < 8 and channels > 1:
        pytest.skip("PNG has no such kind")
    samples = noise(channels=channels, top=2**bits - 1, dtype=np.uint16)
    color = samples[5, 5]
    (tmp_path / "a.png").write_bytes(png(samples, bits, transparent=color.astype(">u2").tobytes()))
    opaque = (samples != color).any(axis=2, keepdims=True) * (2**bits - 1)
    full = 1 if bits == 16 else 255 // (2**bits - 1)
    exactly(tmp_path / "a.png", (np.dstack([samples, opaque]) * full).astype(np.uint16 if bits == 16 else np.uint8))


def test_colors_of_hdr_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(noise(channels=3), extra=chunk(b"cICP", bytes([9, 16, 0, 1]))))
    refused("color primaries 9 and transfer 16", ImageReader, tmp_path / "a.png", full=True)
    (tmp_path / "a.png").write_bytes(png(noise(channels=3), extra=chunk(b"cICP", bytes([1, 13, 0, 1]))))
    assert read_image(tmp_path / "a.png").shape == (21, 30, 3)


# ---- TIFF

LAYOUTS = {
    "plain": {},
    "big-endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "tiles": {"tile": (16, 16)},
    "planes": {"planarconfig": "separate"},
    "one strip": {"compression": "zlib", "rowsperstrip": 60},
    "strips": {"compression": "zlib", "predictor": 2, "rowsperstrip": 7},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", WHITE)
def test_tiff(tmp_path, dtype, channels, layout):
    if layout == "planes" and channels == 2:
        pytest.skip("is refused")
    pixels = make_image(channels=channels, dtype=dtype)
    options = {"planarconfig": "contig"} | LAYOUTS[layout]
    if dtype == "float32":
        colors = pixels[:, :, : channels - (channels in (2, 4))]
        colors[:] = colors * 3 - np.float32(0.9)  # kept as they are, below 0 and above 1 as well
        colors.clip(-0.5, None, out=colors)
        options.pop("predictor", None)
    planes = options["planarconfig"] == "separate"
    stored = np.ascontiguousarray(np.moveaxis(pixels, 2, 0)) if planes else pixels
    options |= {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    if channels == 1:
        stored, _ = pixels[..., 0], options.pop("planarconfig")
    photometric = "rgb" if channels >= 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, **options)
    exactly(tmp_path / "a.tif", pixels)


@pytest.mark.parametrize("dtype", WHITE)
def test_premultiplied_alpha_is_divided(tmp_path, dtype):
    white, pixels = WHITE[dtype], make_image(channels=4, dtype=dtype)
    stored = pixels.copy()
    stored[..., :3] = pixels[..., :3] * (pixels[..., 3:] / white)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    got = whole(tmp_path / "a.tif")
    assert np.array_equal(got[..., 3], pixels[..., 3])
    # Stored as whole numbers, one less is 1 / alpha less; libvips cuts the quotient off besides.
    allowed = 2e-6 if dtype == "float32" else 1.01 * white / pixels[..., 3:] + 1
    assert (np.abs(got[..., :3].astype(float) - pixels[..., :3]) <= allowed).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_white_is_zero(tmp_path, dtype):
    pixels = make_image(channels=1, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", WHITE[dtype] - pixels[..., 0], photometric="miniswhite")
    exactly(tmp_path / "a.tif", pixels)


def tiff_by_hand(samples, bits, palette=None):
    """A gray or palette TIFF of `bits` a sample. samples: [height, width, 1]; palette: [2**bits, 3] of uint8."""
    height, width, _ = samples.shape
    data = b"".join(pack(row, bits) for row in samples)
    colors = b"" if palette is None else (palette.T.astype("<u2") * 257).tobytes()
    start = 8 + 2 + 12 * 10 + 4
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: 1 if palette is None else 3,
        273: start,
        277: 1,
        278: height,
    }
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (tags | {279: len(data)}).items()]
    last = (320, 3, 3 * 2**bits, start + len(data)) if colors else (296, 4, 1, 1)
    head = b"II*\0" + struct.pack("<IH", 8, 10)
    return head + b"".join([*entries, struct.pack("<HHII", *last)]) + bytes(4) + data + colors


@pytest.mark.parametrize("colored", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tiff_of_few_bits(tmp_path, bits, colored):
    samples, palette = noise(top=2**bits - 1), noise(2**bits, 3)[..., 0]
    (tmp_path / "a.tif").write_bytes(tiff_by_hand(samples, bits, palette if colored else None))
    exactly(tmp_path / "a.tif", palette[samples[..., 0]] if colored else samples * (255 // (2**bits - 1)))


def test_half_floats(tmp_path):
    pixels = make_image(dtype="float32").astype(np.float16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    exactly(tmp_path / "a.tif", pixels.astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_numbers(tmp_path, value):
    pixels = make_image(dtype="float32")
    pixels[33, 3, 1] = value
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    refused("samples without data", read_image, tmp_path / "a.tif", full=True)


# ---- what Pillow writes


@pytest.mark.parametrize(
    "mode, name, options",
    [
        ("1", "a.png", {}),
        ("1", "a.tif", {"compression": "group4"}),
        ("P", "a.png", {"bits": 8}),
        ("P", "a.png", {"bits": 4}),
        ("P", "a.tif", {}),
        ("L", "a.tif", {}),
        ("RGB", "a.tif", {"compression": "packbits"}),
        ("RGB", "a.tif", {"compression": "tiff_lzw"}),
        ("RGB", "a.tif", {"compression": "jpeg"}),
        ("YCbCr", "a.tif", {"compression": "jpeg"}),
        ("YCbCr", "a.jpg", {}),
        ("RGB", "a.webp", {"lossless": True}),
        ("RGBA", "a.webp", {"lossless": True, "exact": True}),
        ("LA", "a.png", {}),
        ("L", "a.jpg", {}),
    ],
)
def test_simple_kinds_become_8_bit(tmp_path, mode, name, options):
    path, target = tmp_path / name, {"1": "L", "L": "L", "RGBA": "RGBA", "LA": "LA"}.get(mode, "RGB")
    image = pillow(make_image())
    if "A" in mode:
        image.putalpha(pillow(make_image(channels=1, seed=1)))
    image = image.quantize(16) if options.get("bits") == 4 else image.convert(mode)
    image.save(path, **options)
    with Image.open(path) as stored:
        expected = np.asarray(stored.convert(target)).reshape(60, 41, -1)
    ours = whole(path)
    assert ours.shape == expected.shape and ours.dtype == np.uint8
    # Subsampled colors may be interpolated differently; everything else is exact.
    error = np.abs(ours.astype(int) - expected)
    assert error.mean() < 3 if mode == "YCbCr" else error.max() == 0


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_avif(tmp_path, mode):
    image = pillow(make_image(channels=3 if mode != "L" else 1))
    if mode == "RGBA":
        image.putalpha(pillow(make_image(channels=1, seed=1)))
    image.save(tmp_path / "a.avif", quality=90, **({} if mode == "L" else {"subsampling": "4:4:4"}))
    with Image.open(tmp_path / "a.avif") as stored:
        expected = np.asarray(stored.convert(mode)).reshape(60, 41, -1)
    ours = whole(tmp_path / "a.avif")
    assert ours.shape == expected.shape  # gray stays gray
    assert np.abs(ours.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("bits", [10, 12])
def test_avif_of_more_bits(tmp_path, bits):
    pixels = make_image(dtype="uint16")
    pixels[:20], pixels[20:40] = 0, 65535
    image = pyvips.Image.new_from_array(pixels).copy(interpretation="rgb16")
    image.heifsave(str(tmp_path / "a.avif"), compression="av1", bitdepth=bits, lossless=True)
    ours = whole(tmp_path / "a.avif")
    assert ours.dtype == np.uint16
    assert (ours[0] == 0).all() and (ours[20] == 65535).all()  # white is white: libvips gives 65472 or 65520
    assert np.abs(ours.astype(int) - pixels).max() <= 65535 / (2**bits - 1)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": "4:2:0"}])
def test_kinds_of_jpeg(tmp_path, options):
    pillow(make_image(200, 90)).save(tmp_path / "a.jpg", **options)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - make_image(200, 90)).mean() < 4


# ---- CMYK


def cmyk(path, profile):
    pillow(make_image()).convert("CMYK").save(
        path, icc_profile=profile, **({"quality": 100} if path.suffix == ".jpg" else {})
    )


@pytest.mark.parametrize("extension", [".jpg", ".tif"])
@pytest.mark.parametrize("profile", [CMYK, None, SRGB])
def test_cmyk_goes_through_its_profile(tmp_path, extension, profile):
    path = tmp_path / f"a{extension}"
    cmyk(path, profile)
    profiles = [ImageCms.ImageCmsProfile(io.BytesIO(data)) for data in (CMYK, SRGB)]
    with Image.open(path) as image:
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        converted = ImageCms.profileToProfile(image, *profiles, renderingIntent=intent, outputMode="RGB", flags=flags)
    assert np.abs(whole(path).astype(int) - np.asarray(converted)).max() <= 1
    with ImageReader(path, full=True) as reader:
        which = "its own profile" if profile is CMYK else "a standard profile"
        assert len(reader.warnings) == 1 and which in reader.warnings[0]
        write(tmp_path / "b.png", read_image(path, full=True), like=reader)
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["icc_profile"] == SRGB


def test_cmyk_of_16_bits_and_with_alpha(tmp_path):
    pixels = make_image(channels=4)
    tifffile.imwrite(tmp_path / "8.tif", pixels, photometric="separated", iccprofile=CMYK)
    tifffile.imwrite(tmp_path / "16.tif", pixels.astype(np.uint16) * 257, photometric="separated", iccprofile=CMYK)
    five, options = np.dstack([pixels, pixels[..., 0]]), {"photometric": "separated", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "alpha.tif", five, iccprofile=CMYK, **options)
    eight, sixteen, alpha = (whole(tmp_path / f"{name}.tif") for name in ("8", "16", "alpha"))
    assert sixteen.dtype == np.uint16 and np.abs(sixteen / 257 - eight).max() < 0.51
    assert len(np.unique(sixteen)) > 256  # not by way of 8 bits
    assert np.array_equal(alpha[..., :3], eight) and np.array_equal(alpha[..., 3], pixels[..., 0])


# ---- upright


def turned_file(path, orientation, pixels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if path.suffix == ".avif" else {}
    pillow(pixels).save(path, exif=exif, **options)
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, extension, orientation):
    source, target = tmp_path / f"a{extension}", tmp_path / f"b{extension}"
    expected = turned_file(source, orientation, make_image(50, 30))
    pixels = whole(source)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= (0 if extension in LOSSLESS else 6)
    with ImageReader(source) as reader:
        write(target, pixels, like=reader)
    with Image.open(target) as image:
        assert image.getexif().get(0x0112, 1) == 1
        assert image.size == (pixels.shape[1], pixels.shape[0])
    assert read_image(target).shape == pixels.shape


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_by_way_of_a_file(tmp_path, orientation, count):
    limits = ReadLimits(spooled=100, block=30 * 3 * 11)  # blocks of eleven rows
    expected = turned_file(tmp_path / "a.png", orientation, make_image(50, 30))
    (tmp_path / "empty").mkdir()
    assert np.array_equal(whole(tmp_path / "a.png", count, folder=tmp_path / "empty", limits=limits), expected)
    assert not list((tmp_path / "empty").iterdir())


def test_resolution_is_turned_too(tmp_path):
    image = pyvips.Image.new_from_array(make_image(9, 9)).copy(interpretation="srgb", xres=10, yres=20)
    image.set_type(pyvips.GValue.gint_type, "orientation", 6)
    image.tiffsave(str(tmp_path / "a.tif"))
    assert ImageReader(tmp_path / "a.tif").resolution == pytest.approx((20, 10))


def test_turned_images_cut_off(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded("jpeg", pillow(make_image(400, 300)), exif=exif)
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    refused("damaged or cut off", read_image, tmp_path / "a.jpg")


# ---- interlaced PNG by way of seven files

BY_FILE = ReadLimits(spooled=0)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (9, 1), (4, 4), (5, 5), (8, 8), (60, 41), (17, 300)])
@pytest.mark.parametrize("count", [1, 5, 8, 100])
def test_interlaced_sizes(tmp_path, height, width, count):
    (tmp_path / "a.png").write_bytes(png(noise(height, width, 3), interlaced=True))
    with ImageReader(tmp_path / "a.png", folder=tmp_path, limits=BY_FILE) as reader:
        assert reader.buffered_bytes == 0
        assert np.array_equal(np.concatenate(list(reader.rows(count))), noise(height, width, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("bits, channels", [(1, 1), (2, 1), (4, 1), (16, 1), (16, 2), (16, 4), (8, 4)])
def test_interlaced_kinds(tmp_path, bits, channels):
    (tmp_path / "a.png").write_bytes(
        png(noise(channels=channels, top=2**bits - 1, dtype=np.uint16), bits, None, None, True)
    )
    in_memory = whole(tmp_path / "a.png")
    assert np.array_equal(whole(tmp_path / "a.png", limits=BY_FILE), in_memory)


def test_interlaced_palette_and_filters(tmp_path):
    samples, palette = noise(top=15), noise(16, 3)[..., 0]
    (tmp_path / "a.png").write_bytes(png(samples, 4, palette, bytes([9, 8]), True))
    opacity = np.array([9, 8] + [255] * 14, np.uint8)
    exactly(tmp_path / "a.png", np.column_stack([palette, opacity])[samples[..., 0]], limits=BY_FILE)
    image = pyvips.Image.new_from_array(make_image()).copy(interpretation="srgb")
    image.pngsave(str(tmp_path / "b.png"), interlace=True, filter="all")
    exactly(tmp_path / "b.png", make_image(), limits=BY_FILE)


@pytest.mark.parametrize("where", [0.3, 0.6, 0.99])
@pytest.mark.parametrize("cut", [True, False])
def test_interlaced_damage(tmp_path, where, cut):
    data = bytearray(png(noise(300, 200, 3), interlaced=True))
    at = int(where * len(data))
    if cut:
        del data[at:]
    else:
        data[at] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    refused("damaged or cut off", read_image, tmp_path / "a.png", limits=BY_FILE)


# ---- room


def test_no_room_for_a_temporary_file(tmp_path, monkeypatch):
    usage = type(reorder.shutil.disk_usage(tmp_path))
    monkeypatch.setattr(reorder.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    turned_file(tmp_path / "a.png", 6, make_image())
    assert read_image(tmp_path / "a.png").shape == (41, 60, 3)  # in memory
    assert "0 MB are free" in refused(
        "not stored row by row", ImageReader, tmp_path / "a.png", folder=tmp_path, limits=BY_FILE
    )
    (tmp_path / "b.png").write_bytes(png(noise(), interlaced=True))
    refused("not stored row by row", ImageReader, tmp_path / "b.png", limits=BY_FILE)


def test_disk_full_while_turning(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    turned_file(tmp_path / "a.png", 6, make_image())
    (tmp_path / "b.png").write_bytes(png(noise(), interlaced=True))
    monkeypatch.setattr(reorder, "TemporaryFile", full)
    for name in ("a.png", "b.png"):
        refused(
            "temporary file cannot be written (No space left on device)", read_image, tmp_path / name, limits=BY_FILE
        )


def test_no_such_folder_for_temporary_files(tmp_path):
    turned_file(tmp_path / "a.png", 6, make_image())
    refused("cannot serve for temporary files", ImageReader, tmp_path / "a.png", folder=tmp_path / "none")


BUFFERED = {
    "plain.png": (lambda: png(noise()), 0),
    "interlaced.png": (lambda: png(noise(channels=3), interlaced=True), 3),
    "plain.jpg": (lambda: encoded("jpeg"), 0),
    "progressive.jpg": (lambda: encoded("jpeg", progressive=True), 6),
    "a.webp": (lambda: encoded("webp"), 10),
    "a.avif": (lambda: encoded("avif"), 20),
    "a.tif": (lambda: encoded("tiff"), 0),
}


@pytest.mark.parametrize("name", BUFFERED)
def test_buffered(tmp_path, name):
    make, each = BUFFERED[name]
    (tmp_path / name).write_bytes(make())
    with ImageReader(tmp_path / name) as reader:
        assert reader.buffered_bytes == each * reader.width * reader.height


def test_buffered_by_large_strips(tmp_path):
    limits = ReadLimits(strips=1000)
    for layout, rows in {"plain": 0, "one strip": 60, "tiles": 16, "planes": 60}.items():
        options, pixels = LAYOUTS[layout], make_image()
        stored = np.ascontiguousarray(np.moveaxis(pixels, 2, 0)) if layout == "planes" else pixels
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", **options)
        assert ImageReader(tmp_path / "a.tif", limits=limits).buffered_bytes == rows * 41 * 3, layout


@linux
def test_no_memory(tmp_path, monkeypatch):
    (tmp_path / "a.webp").write_bytes(encoded("webp"))
    monkeypatch.setattr(formats, "available_memory", lambda: 1000)
    refused("0 MB are free; PNG and TIFF", ImageReader, tmp_path / "a.webp")


# ---- what is not read

TWO = [Image.new("RGB", (9, 9)), Image.new("RGB", (9, 9), (90, 0, 0)), Image.new("RGB", (9, 9), (0, 90, 0))]


def many(kind):
    return encoded(kind, TWO[0], save_all=True, append_images=TWO[1:])


def tiff(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def still_avif(primaries, transfer):
    data = encoded("avif")
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


NOT_READ = {  # by `full` either
    "lab.tif": (lambda: tiff(noise(channels=3), photometric="cielab"), "CIELab"),
    "lab16.tif": (lambda: tiff(noise(channels=3, dtype=np.uint16), photometric="cielab"), "CIELab"),
    "ycbcr.tif": (lambda: encoded("tiff", pillow(make_image()).convert("YCbCr")), "YCbCr"),
    "signed.tif": (lambda: tiff(noise(channels=3, dtype=np.int16), photometric="rgb"), "signed 16-bit"),
    "long.tif": (lambda: tiff(noise(channels=3, dtype=np.uint32), photometric="rgb"), "32-bit whole-number samples"),
    "double.tif": (
        lambda: tiff(noise(channels=3, dtype=np.float64), photometric="rgb"),
        "or floats to 32 bits in TIFF",
    ),
    "gray.tif": (
        lambda: tiff(make_image(channels=2, dtype="float32"), photometric="minisblack", extrasamples=["assocalpha"]),
        "premultiplied",
    ),
    "white.tif": (
        lambda: tiff(make_image(channels=1, dtype="float32")[..., 0], photometric="miniswhite"),
        "white as zero",
    ),
    "planes.tif": (
        lambda: tiff(noise(2, 21, 30), photometric="minisblack", planarconfig="separate", extrasamples=["unassalpha"]),
        "gray with alpha in separate planes",
    ),
    "twelve.tif": (lambda: tiff_by_hand(noise(top=15), 12), "cannot be decoded here"),
    "tiles.tif": (
        lambda: tiff(noise(3, 40, 40), photometric="rgb", planarconfig="separate", tile=(16, 16)),
        "cannot be decoded here",
    ),
    "animated.png": (lambda: many("png"), "3 animation frames"),
    "animated.webp": (lambda: many("webp"), "3 animation frames"),
    "animated.avif": (lambda: many("avif"), "3 animation frames"),
    "pages.tif": (lambda: many("tiff"), "3 pages"),
    "hdr.avif": (lambda: still_avif(9, 16), "color primaries 9 and transfer 16"),
    "bmp.png": (lambda: encoded("bmp"), "is a BMP image, which is not read here; convert it to PNG or TIFF"),
    "ppm.png": (lambda: encoded("ppm"), "is a Netpbm image, which is not read here"),
    "icon.png": (lambda: encoded("ico"), "is an icon, which is not read here"),
    "dds.png": (lambda: encoded("dds"), "is a DDS texture, which is not read here"),
    "jp2.png": (lambda: encoded("jpeg2000"), "is a JPEG 2000 image, which is not read here"),
    "pdf.png": (lambda: encoded("pdf"), "is a PDF document, which is not read here"),
    "raw.jpg": (lambda: b"\0\0\0\x18ftypcrx \0\0\0\1", "is a camera raw file, which is not read here"),
    "page.jpg": (lambda: b"<!DOCTYPE html><html>", "is a web page, not an image; give an image"),
    "text.jpg": (lambda: b"Hello, this is no image.", "is not a PNG, JPEG, WebP, TIFF, AVIF, HEIC or GIF image"),
    "other.heic": (lambda: b"\0\0\0\x18ftypqt  \0\0\0\0", "is a video, not an image"),
    "codec.heic": (lambda: encoded("avif").replace(b"ftypavif", b"ftypheic").replace(b"av01", b"hvc1"), "damaged"),
    "raw.dng": (lambda: encoded("tiff"), "camera raw"),
    "empty.png": (lambda: b"", "is empty"),
    "short.png": (lambda: b"\x89PNG\r\n\x1a\n", "damaged"),
    "zero.png": (lambda: encoded("png")[:16] + bytes(8) + encoded("png")[24:], "damaged"),
}
NOT_PLAIN = {  # but by `full`
    "five.tif": (
        lambda: tiff(noise(channels=5), photometric="rgb", extrasamples=["unassalpha", "unspecified"]),
        "neither color nor alpha",
    ),
    "rgba.png": (lambda: encoded("png", pillow(make_image()).convert("RGBA")), "alpha"),
    "la.png": (lambda: encoded("png", pillow(make_image()).convert("LA")), "alpha"),
    "palette.png": (lambda: encoded("png", pillow(make_image()).convert("P"), transparency=3), "alpha"),
    "rgba.tif": (lambda: encoded("tiff", pillow(make_image()).convert("RGBA")), "alpha"),
    "rgba.webp": (lambda: encoded("webp", Image.new("RGBA", (9, 9), (1, 2, 3, 4)), lossless=True), "alpha"),
    "rgba.avif": (lambda: encoded("avif", Image.new("RGBA", (9, 9), (1, 2, 3, 4))), "alpha"),
    "gray16.png": (lambda: png(noise(dtype=np.uint16), 16), "16-bit"),
    "rgb16.png": (lambda: png(noise(channels=3, dtype=np.uint16), 16), "16-bit"),
    "rgb16.tif": (lambda: tiff(noise(channels=3, dtype=np.uint16), photometric="rgb"), "16-bit"),
    "float.tif": (lambda: encoded("tiff", Image.new("F", (9, 9))), "floating-point"),
    "cmyk.jpg": (lambda: encoded("jpeg", Image.new("CMYK", (9, 9))), "CMYK"),
    "cmyk.tif": (lambda: encoded("tiff", Image.new("CMYK", (9, 9))), "CMYK"),
}


@pytest.mark.parametrize("name", NOT_READ | NOT_PLAIN)
def test_refused(tmp_path, name, capfd):
    make, text = (NOT_READ | NOT_PLAIN)[name]
    path = tmp_path / name
    path.write_bytes(make())
    assert str(path) in refused(text, read_image, path)
    if name in NOT_READ:
        refused(text, read_image, path, full=True)
    else:
        assert read_image(path, full=True).size
    assert capfd.readouterr() == ("", "")


def test_what_sixteen_lets_in(tmp_path):
    path = tmp_path / "a.png"
    for channels in (1, 3):
        pixels = noise(channels=channels, top=65535, dtype=np.uint16)
        path.write_bytes(png(pixels, 16))
        assert np.array_equal(read_image(path, sixteen=True), pixels)
    path.write_bytes(png(noise(channels=3)))
    assert read_image(path, sixteen=True).dtype == np.uint8
    path.write_bytes(png(noise(channels=2, dtype=np.uint16), 16))
    refused("alpha", read_image, path, sixteen=True)
    (tmp_path / "a.tif").write_bytes(encoded("tiff", Image.new("F", (9, 9))))
    refused("floating-point", read_image, tmp_path / "a.tif", sixteen=True)


def test_changed_file_is_noticed(tmp_path):
    path = tmp_path / "a.png"
    for other in (png(noise(22)), png(noise(dtype=np.uint16), 16), png(noise(channels=2))):
        path.write_bytes(png(noise()))
        with ImageReader(path, full=True) as reader:
            reader.close()
            path.write_bytes(other)
            refused("has changed", list, reader.rows(8))


def test_missing_and_folder(tmp_path):
    refused("no such file", ImageReader, tmp_path / "a.png")
    refused("is a folder", ImageReader, tmp_path)
    refused("cannot be read", ImageReader, "a\0b.png")


@linux
def test_not_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    refused("is not a regular file", ImageReader, tmp_path / "a.png")


@linux
def test_unreadable(tmp_path):
    path = tmp_path / "a.png"
    write(path, make_image())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    refused("Permission denied", ImageReader, path)


def test_open_errors_are_told(tmp_path, monkeypatch):
    write(tmp_path / "a.png", make_image())

    def fail(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", fail)
    refused("cannot be read (Permission denied)", ImageReader, tmp_path / "a.png")


def test_a_library_without_the_format(tmp_path, monkeypatch):
    (tmp_path / "a.avif").write_bytes(encoded("avif"))
    monkeypatch.setitem(LOADERS, "AVIF", "avifload")
    refused("a.avif", ImageReader, tmp_path / "a.avif")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "avif"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_cut_off(tmp_path, kind, part, capfd):
    path = tmp_path / ("a.tif" if kind == "tiff" else f"a.{kind}")
    data = encoded(kind, pillow(make_image(400, 300)))
    path.write_bytes(data[: int(len(data) * part)])
    refused("damaged or cut off", read_image, path)
    assert capfd.readouterr() == ("", "")


def test_damage_half_way_comes_after_good_rows(tmp_path):
    path, pixels = tmp_path / "a.png", make_image(400, 300)
    data = encoded("png", pillow(pixels))
    path.write_bytes(data[: len(data) // 2])
    got = []
    with ImageReader(path) as reader:
        refused("damaged or cut off", got.extend, reader.rows(10))
    assert 0 < len(got) < 40
    assert np.array_equal(np.concatenate(got), pixels[: 10 * len(got)])

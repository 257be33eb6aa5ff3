"""Damage is told: refused, or given by salvage with a line; what is merely odd is read. Pillow and tifffile witness."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from edsr.errors import ImageError
from edsr.images.reader import ImageReader
from tests.support.image_files import chunk, encoded, make_image, pillow, png, refused, with_pillow

PIXELS = make_image(160, 192)
SMALL = make_image(20, 24)


def read(path, **options):
    with ImageReader(path, full=True, **options) as reader:
        pixels = np.concatenate(list(reader.rows(16)))
        return pixels, reader.warnings


def tiff(pixels=PIXELS, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric="rgb", **options)
    return buffer.getvalue()


def zeroed(data, share, count):
    at = int(len(data) * share)
    return data[:at] + bytes(count) + data[at + count :]


def change(data, tag, function):
    """The TIFF (little-endian) with the numbers of a tag changed by the function, in place."""
    data = bytearray(data)
    at = struct.unpack_from("<I", data, 4)[0]
    for i in range(struct.unpack_from("<H", data, at)[0]):
        place = at + 2 + 12 * i
        number, kind, count = struct.unpack_from("<HHI", data, place)
        if number == tag:
            code = f"<{count}{'HI'[kind - 3]}"
            start = place + 8 if struct.calcsize(code) <= 4 else struct.unpack_from("<I", data, place + 8)[0]
            struct.pack_into(code, data, start, *function(list(struct.unpack_from(code, data, start))))
    return bytes(data)


def overwritten_part(data, tag):
    """The TIFF with the fifth of its strips or tiles partly overwritten. tag: of their offsets."""
    places = []
    change(data, tag, lambda numbers: places.extend(numbers) or numbers)
    start = places[4] + 20
    return data[:start] + random.Random(0).randbytes(300) + data[start + 300 :]


def zeroed_part(data, tag):
    places = []
    change(data, tag, lambda numbers: places.extend(numbers) or numbers)
    return data[: places[4]] + bytes(places[5] - places[4]) + data[places[5] :]


def deflated_wrongly(options):
    """A TIFF that inflates well, but to other pixels: of its data as they were written only the checksum is left."""
    data = tiff(compression="zlib", compressionargs={"level": 0}, **options)
    at = len(data) // 2
    return data[:at] + bytes(40) + data[at + 40 :]


def restart_lost():
    data = encoded("jpeg", pillow(PIXELS), quality=90, restart_marker_blocks=4)
    start = data.find(b"\xff\xd3")
    return data[:start] + data[data.find(b"\xff\xd6", start) :]


def taller():
    data = encoded("jpeg", pillow(PIXELS), quality=90)
    at = data.find(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">H", 320) + data[at + 2 :]


def bad_crc(kind):
    """A PNG whose chunk has a wrong checksum."""
    data = bytearray(png(PIXELS[..., :1] // 100, 8, SMALL.reshape(-1, 3)[:3], bytes([9])))
    at = data.find(kind) - 4
    data[at + 8 + int.from_bytes(data[at : at + 4], "big")] ^= 1
    return bytes(data)


DAMAGED = {
    "baseline.jpg": lambda: zeroed(encoded("jpeg", pillow(PIXELS), quality=90), 0.5, 600),
    "progressive.jpg": lambda: zeroed(encoded("jpeg", pillow(PIXELS), quality=90, progressive=True), 0.5, 600),
    "cut.jpg": lambda: encoded("jpeg", pillow(PIXELS))[:-500],
    "restart lost.jpg": restart_lost,
    "taller.jpg": taller,
    "jpeg in.tif": lambda: zeroed(encoded("tiff", pillow(PIXELS), compression="jpeg"), 0.5, 500),
    "packbits.tif": lambda: zeroed(encoded("tiff", pillow(np.repeat(PIXELS, 4, 1)), compression="packbits"), 0.5, 300),
    "group 4.tif": lambda: zeroed(
        encoded("tiff", Image.fromarray(PIXELS[..., 0] > 128), compression="group4"), 1 / 3, 20
    ),
    "lzw.tif": lambda: zeroed(encoded("tiff", pillow(PIXELS), compression="tiff_lzw"), 0.5, 3000),
    "tile zeroed.tif": lambda: zeroed_part(tiff(tile=(64, 64), compression="zlib"), 324),
    "tile overwritten.tif": lambda: overwritten_part(tiff(tile=(64, 64), compression="zlib"), 324),
    "deflated strip.tif": lambda: deflated_wrongly({"rowsperstrip": 16}),
    "deflated tile.tif": lambda: deflated_wrongly({"tile": (64, 64)}),
    "strip zeroed.tif": lambda: zeroed_part(tiff(rowsperstrip=16, compression="zlib"), 273),
    "strip overwritten.tif": lambda: overwritten_part(tiff(rowsperstrip=16, compression="zlib"), 273),
    "pixels.png": lambda: bad_crc(b"IDAT"),
    "palette.png": lambda: bad_crc(b"PLTE"),
    "cut.png": lambda: png(PIXELS)[:-500],
    "interlaced.png": lambda: zeroed(png(PIXELS, interlaced=True), 0.5, 300),
    "cut.webp": lambda: encoded("webp", pillow(PIXELS))[:-100],
    "cut.avif": lambda: encoded("avif", pillow(PIXELS))[:-100],
    "cut.gif": lambda: encoded("gif", pillow(PIXELS))[:-500],
}
NOTHING_LEFT = ("interlaced.png", "cut.webp", "cut.avif")


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused_or_salvaged(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(DAMAGED[name]())
    assert "what is left of it by ImageReader(salvage=True)" in refused("damaged or cut off", read, path)
    if name in NOTHING_LEFT:
        refused("nothing is left of it", read, path, salvage=True)
        return
    pixels, warnings = read(path, salvage=True)
    assert warnings[-1].startswith("damaged: what is left of it is given")
    assert len(warnings) == 1 or name == "cut.gif"  # whose metadata is cut off, too
    if name == "cut.png":
        assert np.array_equal(pixels[:20], PIXELS[:20])


# ---- odd, but intact


def segment(marker, data):
    return bytes([255, marker]) + struct.pack(">H", 2 + len(data)) + data


def jpeg(find=None, add=b"", replace=b""):
    data = encoded("jpeg", pillow(SMALL), quality=90)
    at = data.find(find) if find else 2
    return data[:at] + add + (replace + data[at + len(replace) :] if replace else data[at:])


def with_tags(*tags):
    return tiff(SMALL, extratags=tags)


def unsorted():
    data = bytearray(tiff(SMALL))
    at = struct.unpack_from("<I", data, 4)[0] + 2
    data[at : at + 24] = data[at + 12 : at + 24] + data[at : at + 12]
    return bytes(data)


def looping(data=None):
    data = bytearray(data or tiff(SMALL))
    at = struct.unpack_from("<I", data, 4)[0]
    struct.pack_into("<I", data, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], at)
    return bytes(data)


def wrong_type(tag):
    """A TIFF whose text of this tag is said to be bytes without an end."""
    data = bytearray(with_tags((tag, 2, 9, b"a text, 9", True)))
    at = data.find(struct.pack("<HH", tag, 2))
    data[at + 2 : at + 4] = b"\7\0"
    return bytes(data)


ODD = {
    "bytes between segments.jpg": lambda: jpeg(b"\xff\xdb", b"\0\1\2"),
    "fill bytes.jpg": lambda: jpeg(b"\xff\xdb", b"\xff\xff\xff"),
    "padding before the end.jpg": lambda: encoded("jpeg", pillow(SMALL))[:-2] + bytes(3) + b"\xff\xd9",
    "trailing.jpg": lambda: encoded("jpeg", pillow(SMALL)) + b"trailing" * 20,
    "jfif 2.jpg": lambda: jpeg(b"JFIF\0", replace=b"JFIF\0\2"),
    "scan parameters.jpg": lambda: jpeg(b"\0\x3f\0", replace=b"\0\0\0"),
    "exif.jpg": lambda: jpeg(add=segment(0xE1, b"Exif\0\0no EXIF")),
    "profile.jpg": lambda: jpeg(add=segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(60))),
    "adobe.jpg": lambda: jpeg(add=segment(0xEE, b"Adobe\0\x64\0\0\0\0\x01")),
    "unknown.jpg": lambda: jpeg(add=segment(0xEB, b"x" * 100)),
    "profile.png": lambda: png(SMALL, extra=chunk(b"iCCP", b"x\0\0" + zlib.compress(b"abc"))),
    "profile zlib.png": lambda: png(SMALL, extra=chunk(b"iCCP", b"x\0\0no zlib")),
    "intent.png": lambda: png(SMALL, extra=chunk(b"sRGB", b"\x09")),
    "gamma 0.png": lambda: png(SMALL, extra=chunk(b"gAMA", bytes(4))),
    "time.png": lambda: png(SMALL, extra=chunk(b"tIME", bytes(7))),
    "text.png": lambda: png(SMALL, extra=chunk(b"zTXt", b"a\0\0no zlib")),
    "unknown.png": lambda: png(SMALL, extra=chunk(b"abCd", b"x")),
    "no end.png": lambda: png(SMALL)[:-12],
    "trailing.png": lambda: png(SMALL) + b"trailing" * 20,
    "unknown tags.tif": lambda: with_tags((65000, 3, 1, 5, True), (50123, 2, 4, b"abc", True)),
    "text without end.tif": lambda: with_tags((33432, 2, 9, b"a text, 9", True)),
    "wrong type.tif": lambda: wrong_type(306),
    "unit.tif": lambda: change(tiff(SMALL), 296, lambda _: [9]),
    "byte counts.tif": lambda: change(tiff(SMALL), 279, lambda _: [0]),
    "long byte counts.tif": lambda: change(tiff(SMALL), 279, lambda _: [10**6]),
    "unsorted.tif": unsorted,
    "looping.tif": looping,
    "trailing.tif": lambda: tiff(SMALL, compression="zlib") + b"trailing" * 20,
    "trailing.webp": lambda: encoded("webp", pillow(SMALL), lossless=True) + b"trailing" * 20,
    "profile.webp": lambda: encoded("webp", pillow(SMALL), lossless=True, icc_profile=b"none" * 20),
}
TOLD = ("bytes between segments.jpg", "byte counts.tif", "long byte counts.tif")


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_read(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(ODD[name]())
    pixels, warnings = read(path)
    expected = np.asarray(Image.open(io.BytesIO(jpeg()))) if "scan" in name else with_pillow(path)
    assert np.array_equal(pixels, expected) if path.suffix != ".tif" else np.array_equal(pixels, SMALL)
    assert [line.partition(",")[0] for line in warnings] == ["the file is odd"] * (name in TOLD)


@pytest.mark.parametrize("options", [{"tile": (64, 64)}, {"rowsperstrip": 16}], ids=["tiles", "strips"])
@pytest.mark.parametrize("compression", ["zlib", None])
@pytest.mark.parametrize("odd", [False, True])
def test_sparse_parts_are_black(tmp_path, options, compression, odd):
    absent, tags = (0, 3, 4, 7), (324, 325) if "tile" in options else (273, 279)
    expected, data = PIXELS.copy(), tiff(compression=compression, **options)
    for tag in tags:
        data = change(data, tag, lambda numbers: [0 if i in absent else n for i, n in enumerate(numbers)])
    for i in absent:
        y, x = divmod(i, 3) if "tile" in options else (i, 0)
        side = 64 if "tile" in options else 16
        expected[side * y : side * (y + 1), 64 * x : 64 * (x + 1) if "tile" in options else None] = 0
    if odd:
        data = looping(data)
    (tmp_path / "a.tif").write_bytes(data)
    assert np.array_equal(read(tmp_path / "a.tif")[0], expected)
    if compression and "tile" in options:  # and damage elsewhere is noticed all the same
        places = []
        change(data, tags[0], lambda numbers: places.extend(numbers) or numbers)
        (tmp_path / "a.tif").write_bytes(data[: places[5]] + bytes(60) + data[places[5] + 60 :])
        refused("damaged", read, tmp_path / "a.tif")


# ---- codecs, pages


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (6, "old-style JPEG"),
        (50000, "Zstandard"),
        (34712, "JPEG 2000"),
        (50002, "JPEG XL"),
        (34887, "LERC"),
        (12345, "a codec unknown here, number 12345"),
    ],
)
@pytest.mark.parametrize("options", [{"tile": (64, 64)}, {"rowsperstrip": 160}], ids=["tiles", "strips"])
def test_a_missing_codec_is_named(tmp_path, monkeypatch, code, name, options):
    (tmp_path / "a.tif").write_bytes(change(tiff(**options), 259, lambda _: [code]))
    monkeypatch.setattr("edsr.images.codecs.has_tiff_codec", lambda compression: compression in (1, 7))
    refused(f"compressed with {name}, which cannot be decoded here; convert it to PNG", ImageReader, tmp_path / "a.tif")


def test_builds_are_asked_for_their_codecs():
    from edsr.images.codecs import has_tiff_codec

    assert all(map(has_tiff_codec, (1, 4, 5, 7, 8, 32773))) and not has_tiff_codec(12345)


@pytest.mark.parametrize(
    ("kinds", "says"), [((1, 1), ""), ((4,), "mask"), ((5,), ""), ((0,), "2 pages"), ((1, 2), "2 pages")]
)
def test_reduced_copies_and_masks_are_left_out(tmp_path, kinds, says):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(SMALL, photometric="rgb")
        for _ in kinds:
            writer.write(SMALL[::2, ::2], photometric="rgb", subfiletype=1)
    first, *others = (tmp_path / "a.tif").read_bytes().split(entry := struct.pack("<HHII", 254, 4, 1, 1))
    changed = [entry[:8] + struct.pack("<I", kind) + other for kind, other in zip(kinds, others, strict=True)]
    (tmp_path / "a.tif").write_bytes(b"".join([first, *changed]))
    if "pages" in says:
        refused(says, read, tmp_path / "a.tif")
        return
    pixels, warnings = read(tmp_path / "a.tif")
    assert np.array_equal(pixels, SMALL) and [says in line for line in warnings] == [True] * bool(says)


@pytest.mark.parametrize(("frames", "first", "good"), [(1, True, True), (2, True, False), (1, False, False)])
def test_an_animation_of_one_frame_is_an_image(tmp_path, frames, first, good):
    control = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 24, 20, 0, 0, 1, 10, 0, 0)) if first else b""
    (tmp_path / "a.png").write_bytes(png(SMALL, extra=chunk(b"acTL", struct.pack(">II", frames, 0)) + control))
    if good:
        assert np.array_equal(read(tmp_path / "a.png")[0], SMALL)
    else:
        refused("2 animation frames", read, tmp_path / "a.png")


@pytest.mark.parametrize("count", [1, 2])
def test_gif(tmp_path, count):
    images = [pillow(make_image(20, 24, seed=i)) for i in range(count)]
    (tmp_path / "a.gif").write_bytes(encoded("gif", images[0], save_all=True, append_images=images[1:]))
    if count > 1:
        refused("2 animation frames", read, tmp_path / "a.gif")
        return
    with Image.open(tmp_path / "a.gif") as image:
        assert np.array_equal(read(tmp_path / "a.gif")[0], np.asarray(image.convert("RGB")))


# ---- one file after the other


@pytest.mark.parametrize("name", [b"a_\xe9.png", b"a_\xe9.avif", b"a_\xe9.tif"])
def test_a_bad_file_of_any_name_leaves_the_next_alone(tmp_path, name, capfd):
    bad = tmp_path / name.decode(errors="surrogateescape")
    form = {"png": "png", "avif": "avif", "tif": "tiff"}[bad.suffix[1:]]
    bad.write_bytes(encoded(form, pillow(PIXELS))[:200])
    good = tmp_path / "b.png"
    good.write_bytes(png(SMALL))
    for _ in range(3):
        with pytest.raises(ImageError):
            read(bad)
        assert np.array_equal(read(good)[0], SMALL)
    assert capfd.readouterr() == ("", "")


# ---- a hundred ways each


def kinds():
    """Kind -> a valid file. The kind begins with its extension."""
    rng = np.random.default_rng(0)
    pixels = (make_image(60, 72).astype(int) + rng.integers(-8, 9, (60, 72, 3))).clip(0, 255).astype(np.uint8)
    image = pillow(pixels)
    return {
        "png": png(pixels),
        "png interlaced": png(pixels, interlaced=True),
        "jpg": encoded("jpeg", image),
        "jpg progressive": encoded("jpeg", image, progressive=True),
        "jpg restarts": encoded("jpeg", image, restart_marker_blocks=4),
        "webp": encoded("webp", image),
        "webp lossless": encoded("webp", image, lossless=True),
        "avif": encoded("avif", image, subsampling="4:4:4"),
        "gif": encoded("gif", image),
        "tif": tiff(pixels, rowsperstrip=16),
        "tif deflate": tiff(pixels, rowsperstrip=16, compression="zlib"),
        "tif tiles": tiff(pixels, tile=(16, 16), compression="zlib"),
        "tif lzw": encoded("tiff", image, compression="tiff_lzw"),
        "tif packbits": encoded("tiff", image, compression="packbits"),
        "tif jpeg": encoded("tiff", image, compression="jpeg"),
        "tif group 4": encoded("tiff", Image.fromarray(pixels[..., 0] > 128), compression="group4"),
    }


CHECKED = ("png", "png interlaced")
"""Formats with checksums of all their data: no damage can pass."""


def harm(data, kind, number):
    chance, data = random.Random(f"{kind} {number}"), bytearray(data)
    count = min(chance.choice((4, 16, 64, 256)), len(data) // 2)
    at = chance.randrange(len(data) - count)
    if number % 4 == 0:
        for _ in range(chance.choice((1, 3, 10))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif number % 4 == 3:
        del data[chance.randrange(1, len(data)) :]
    else:
        data[at : at + count] = bytes(count) if number % 4 == 1 else chance.randbytes(count)
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds())
def test_a_hundred_ways_of_damage(tmp_path, kind):
    """Equal to the intact image, or refused, or told. Formats without checksums hold other valid samples after many a
    change, which no decoder can notice: what comes out then is what Pillow makes of the same file, not filler."""
    path, intact = tmp_path / f"a.{kind.split()[0]}", kinds()[kind]
    path.write_bytes(intact)
    right, warnings = read(path)
    assert not warnings
    unnoticed = 0
    for number in range(100):
        path.write_bytes(harm(intact, kind, number))
        try:
            pixels, warnings = read(path)
        except ImageError:
            continue
        if warnings or np.array_equal(pixels, right):
            continue
        unnoticed += 1
        assert kind not in CHECKED and number % 4 != 3, number  # what is cut is always noticed
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB" if pixels.shape[2] == 3 else "L"))
        assert np.abs(pixels.reshape(expected.shape) - expected.astype(int)).max() <= 8, number
    assert unnoticed < 80

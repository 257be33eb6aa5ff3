"""TIFFs compressed with LZMA, as libtiff writes them, whose decoder most builds of libvips lack."""

import lzma
import struct

import numpy as np
import pytest

from edsr.images import ImageReader, read_image
from tests.support.image_files import make_image, refused

DELTA = [{"id": lzma.FILTER_DELTA, "dist": 1}, {"id": lzma.FILTER_LZMA2, "preset": 6}]  # libtiff's filters


def tiff(pixels, side=0, rows=0, separate=False, predictor=1, order="<", filters=None, big=False):
    """A TIFF of [H, W, C]; of tiles if they have a side, else of strips of some rows."""
    height, width, channels = pixels.shape
    kind = pixels.dtype.newbyteorder(order)
    planes = [pixels[:, :, i : i + 1] for i in range(channels)] if separate else [pixels]
    parts = []
    for plane in planes:
        if side:
            padded = np.pad(plane, ((0, -height % side), (0, -width % side), (0, 0)))
            corners = [(y, x) for y in range(0, height, side) for x in range(0, width, side)]
            parts += [padded[y : y + side, x : x + side] for y, x in corners]
        else:
            parts += [plane[y : y + rows] for y in range(0, height, rows)]
    if predictor == 2:
        parts = [np.diff(part, axis=1, prepend=part[:, :1] * 0) for part in parts]
    data = [lzma.compress(part.astype(kind).tobytes(), lzma.FORMAT_XZ, filters=filters) for part in parts]
    head = order.replace("<", "II").replace(">", "MM").encode()
    head += struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 0) if big else (42, 0)))
    place, body = [], b""
    for part in data:
        place.append(len(head) + len(body))
        body += part
    table = len(head) + len(body)
    wide = "Q" if big else "I"
    body += struct.pack(f"{order}{len(place)}{wide}{len(place)}{wide}", *place, *map(len, data))
    lengths = table + len(place) * struct.calcsize(wide)
    bits = len(head) + len(body)
    body += struct.pack(f"{order}{channels}H", *[8 * pixels.itemsize] * channels)
    first = len(head) + len(body)
    one = len(place) == 1
    places = {True: (place[0], len(data[0])), False: (table, lengths)}[one]
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, channels, bits), 259: (3, 1, 34925)}
    tags |= {262: (3, 1, 2 if channels == 3 else 1), 277: (3, 1, channels), 284: (3, 1, 1 + separate)}
    tags |= {317: (3, 1, predictor)} | ({339: (3, 1, 3)} if pixels.dtype.kind == "f" else {})
    if channels == 1:
        tags[258] = (3, 1, 8 * pixels.itemsize)
    tags |= {322: (4, 1, side), 323: (4, 1, side)} if side else {278: (4, 1, rows)}
    for tag, value in zip((324, 325) if side else (273, 279), places, strict=True):
        tags[tag] = (16 if big else 4, len(place), value)
    ifd = struct.pack(order + ("Q" if big else "H"), len(tags))
    for tag, (type_, count, value) in sorted(tags.items()):
        inline = struct.pack(order + "H", value) if type_ == 3 and count == 1 else struct.pack(order + wide, value)
        if big and type_ == 3 and count > 1:  # up to four fit into the entry
            inline = struct.pack(f"{order}{channels}H", *[8 * pixels.itemsize] * channels)
        size = 8 if big else 4
        ifd += struct.pack(order + ("HHQ" if big else "HHI"), tag, type_, count) + inline.ljust(size, b"\0")
    head = head[: 8 if big else 4] + struct.pack(order + wide, first)
    return head + body + ifd + bytes(8)


RGB, DEEP = make_image(53, 41), make_image(53, 41).astype(np.uint16) * 257 + 3
FILES = {
    "one strip": (RGB, {"rows": 53}),
    "strips": (RGB, {"rows": 7}),
    "tiles": (RGB, {"side": 16}),
    "libtiff's filters": (RGB, {"rows": 7, "filters": DELTA}),
    "predictor": (RGB, {"rows": 20, "predictor": 2}),
    "16 bits": (DEEP, {"rows": 9, "predictor": 2}),
    "16 bits, big-endian": (DEEP, {"side": 32, "order": ">"}),
    "gray": (RGB[:, :, :1], {"rows": 9}),
    "planes": (RGB, {"rows": 9, "separate": True}),
    "BigTIFF": (RGB, {"rows": 9, "big": True}),
    "floats": ((RGB[:, :, :1] / 255).astype(np.float32), {"rows": 9}),
    "blocks above 64 kB": (make_image(300, 301), {"rows": 299}),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels(tmp_path, name):
    pixels, options = FILES[name]
    (tmp_path / "a.tif").write_bytes(tiff(pixels, **options))
    result = read_image(tmp_path / "a.tif", full=True)
    assert result.dtype == pixels.dtype and np.array_equal(result, pixels)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b"YZ", b"YY", 1),
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
        lambda data: data[:100] + bytes(60) + data[160:],
        lambda data: data[: len(data) - 300],
    ],
    ids=["end", "bit", "zeros", "cut"],
)
def test_damage_is_noticed(tmp_path, capfd, damage):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    whole = tiff(pixels, rows=20)
    first = whole.rindex(struct.pack("<HHI", 256, 4, 1)) - 2
    data = damage(whole[:first])[:first].ljust(first, b"\0") + whole[first:]  # its directory stays
    (tmp_path / "a.tif").write_bytes(data)
    refused("damaged or cut off", read_image, tmp_path / "a.tif")
    assert capfd.readouterr() == ("", "")


def test_what_is_left_is_salvaged(tmp_path):
    data = tiff(RGB, rows=10)
    second = data.index(b"\xfd7zXZ", data.index(b"\xfd7zXZ") + 1)
    (tmp_path / "a.tif").write_bytes(data[:second] + bytes(50) + data[second + 50 :])
    with ImageReader(tmp_path / "a.tif", salvage=True) as reader:
        rows = np.concatenate(list(reader.rows(8)))
    assert np.array_equal(rows[:10], RGB[:10]) and np.array_equal(rows[20:], RGB[20:])
    assert any(line.startswith("damaged") for line in reader.warnings)


def test_tables_that_do_not_fit(tmp_path):
    data = tiff(RGB, rows=10)
    at = data.rindex(struct.pack("<HHI", 278, 4, 1)) + 8
    (tmp_path / "a.tif").write_bytes(data[:at] + struct.pack("<I", 5) + data[at + 4 :])
    refused("compressed with LZMA, which cannot be decoded here", read_image, tmp_path / "a.tif")

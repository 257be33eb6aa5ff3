"""Strips and tiles of BigTIFF, whose tables may be of 8-byte numbers, are looked at like those of TIFF."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile

from edsr.images.reader import ImageReader
from edsr.images.tiff_parts import find_sparse
from tests.support.image_files import make_image, refused

PIXELS = make_image(160, 192)


def read(path):
    with ImageReader(path, full=True) as reader:
        return np.concatenate(list(reader.rows(16))), reader.warnings


def tiff(**options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, PIXELS, photometric="rgb", bigtiff=True, **options)
    return buffer.getvalue()


def places(data, tag, byte_order):
    """Where a BigTIFF's table of offsets or lengths begins, its numbers, and their code."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        found = file.pages[0].tags[tag]
        return found.valueoffset, found.value, byte_order + {3: "H", 4: "I", 16: "Q"}[int(found.dtype)]


OPTIONS = [{"tile": (64, 64)}, {"rowsperstrip": 16}, {"tile": (16, 16), "byteorder": ">"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_damaged_checksums(tmp_path, options):
    """Of data that is stored, not packed, only the checksum tells that it is another."""
    data = tiff(compression="zlib", compressionargs={"level": 0}, **options)
    (tmp_path / "a.tif").write_bytes(data)
    assert np.array_equal(read(tmp_path / "a.tif")[0], PIXELS)
    at = len(data) // 2
    (tmp_path / "a.tif").write_bytes(data[:at] + bytes(40) + data[at + 40 :])
    refused("damaged", read, tmp_path / "a.tif")


@pytest.mark.parametrize("options", OPTIONS)
def test_sparse_parts(tmp_path, options):
    data, order = bytearray(tiff(compression="zlib", **options)), options.get("byteorder", "<")
    for tag in (324, 325) if "tile" in options else (273, 279):
        at, _, code = places(data, tag, order)
        for i in (0, 3):
            struct.pack_into(code, data, at + i * struct.calcsize(code), 0)
    (tmp_path / "a.tif").write_bytes(data)
    assert find_sparse(tmp_path / "a.tif") == {0, 3}
    pixels, side = read(tmp_path / "a.tif")[0], 64 if options.get("tile") == (64, 64) else 16
    assert not pixels[:side, : 64 if side == 64 else 16].any() and np.array_equal(pixels[-16:], PIXELS[-16:])


def test_deflate_that_runs_on_behind_the_pixels(tmp_path):
    """Damage in a strip's last bytes: the pixels are there, but not what they were, and no checksum is reached."""
    data = tiff(compression="zlib", rowsperstrip=160)
    at, (offset,), code = places(data, 273, "<")
    _, (length,), _ = places(data, 279, "<")
    strip = data[offset : offset + length]
    pixels = bytearray(zlib.decompress(strip))
    pixels[-50:] = bytes(50)
    stream = zlib.compressobj(9)
    other = stream.compress(bytes(pixels)) + stream.flush(zlib.Z_SYNC_FLUSH) + b"\xff" * 40  # no such block
    where = len(data)
    data = bytearray(data + other)
    struct.pack_into(code, data, at, where)
    at, _, code = places(data, 279, "<")
    struct.pack_into(code, data, at, len(other))
    (tmp_path / "a.tif").write_bytes(data)
    refused("damaged", read, tmp_path / "a.tif")


@pytest.mark.parametrize("harm", [b"\xff", b"\0"])
def test_damaged_jpeg_tiles(tmp_path, harm):
    import pyvips

    image = pyvips.Image.new_from_array(make_image(160, 192))
    data = image.write_to_buffer(".tif", compression="jpeg", tile=True, tile_width=64, tile_height=64, Q=95)
    (tmp_path / "a.tif").write_bytes(data)
    assert not read(tmp_path / "a.tif")[1]
    at = data.find(b"\xff\xda", len(data) // 3) + 200
    (tmp_path / "a.tif").write_bytes(data[:at] + harm * 300 + data[at + 300 :])
    refused("damaged", read, tmp_path / "a.tif")

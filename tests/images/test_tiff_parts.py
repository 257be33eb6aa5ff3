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


def tiff(big=True, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, PIXELS, photometric="rgb", bigtiff=big, **options)
    return buffer.getvalue()


def places(data, tag, byte_order):
    """Where a BigTIFF's table of offsets or lengths begins, its numbers, and their code."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        found = file.pages[0].tags[tag]
        return found.valueoffset, found.value, byte_order + {3: "H", 4: "I", 16: "Q"}[int(found.dtype)]


OPTIONS = [{"tile": (64, 64)}, {"rowsperstrip": 16}, {"tile": (16, 16), "byteorder": ">"}]


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


@pytest.mark.parametrize("end", ["checksum", "block", "whole"])
@pytest.mark.parametrize("big", [False, True])
def test_deflate_that_runs_on_behind_the_pixels(tmp_path, big, end):
    """libtiff stops when it has the pixels, and sees no damage behind them. An intact strip may be longer, too."""
    data = tiff(big, compression="zlib", rowsperstrip=160)
    stream = zlib.compressobj(9)
    strip = stream.compress(PIXELS.tobytes() + bytes(5000))
    strip += stream.flush(zlib.Z_SYNC_FLUSH) + b"\xff" * 40 if end == "block" else stream.flush()
    strip = strip[:-4] + b"none" if end == "checksum" else strip
    table, (_, _, code) = bytearray(data + strip), places(data, 273, "<")
    struct.pack_into(code, table, places(data, 273, "<")[0], len(data))
    struct.pack_into(places(data, 279, "<")[2], table, places(data, 279, "<")[0], len(strip))
    (tmp_path / "a.tif").write_bytes(table)
    if end == "whole":
        assert np.array_equal(read(tmp_path / "a.tif")[0], PIXELS)
    else:
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

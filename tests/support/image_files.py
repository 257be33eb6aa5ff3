"""Images and files for the tests of reading and writing, made and read by other means than ours."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from edsr.errors import ImageError
from edsr.images.writer import ImageWriter

from .processes import communicate

LOSSLESS = [".png", ".tif"]
EXTENSIONS = [".png", ".jpg", ".webp", ".tif", ".avif"]
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WHITE = {"uint8": 255, "uint16": 65535, "float32": 1.0}
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
linux = pytest.mark.skipif(sys.platform != "linux", reason="uses a Linux interface")


def make_image(height=60, width=41, channels=3, seed=0, dtype="uint8"):
    """A smooth image with a little noise, so that lossy formats stay close to it."""
    rng = np.random.default_rng(seed)
    y, x, c = np.mgrid[:height, :width, :channels]
    smooth = 128 + 90 * np.sin(y / 17 + c) * np.cos(x / 13)
    values = smooth + rng.uniform(-2, 2, smooth.shape)
    if dtype == "float32":
        return (values / 255).astype(np.float32)
    return (values * (WHITE[dtype] / 255)).round().astype(dtype)


def pillow(pixels):
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def with_pillow(path):
    with Image.open(path) as image:
        pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def encoded(kind, image=None, **options):
    buffer = io.BytesIO()
    (image or pillow(make_image(80, 70))).save(buffer, kind, **options)
    return buffer.getvalue()


def write(path, pixels, step=7, **options):
    height, width, channels = pixels.shape
    with ImageWriter(path, width, height, channels, dtype=pixels.dtype, **options) as writer:
        for y in range(0, height, step):
            writer.write(pixels[y : y + step])
    return writer


def names(folder):
    return sorted(os.listdir(folder))


def refused(text, action, *args, **options):
    """The action raises an ImageError of one line that contains `text`."""
    with pytest.raises(ImageError) as caught:
        action(*args, **options)
    message = str(caught.value)
    assert text in message and "\n" not in message and message == message.strip()
    return message


def run(script, *args, **environment):
    """Lines that a script prints in a process of its own, from the repository's root."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, *map(str, args)]
    process = subprocess.Popen(
        command, cwd=root, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    output, errors = communicate(process)
    assert process.returncode == 0 and errors == "", errors
    return output.splitlines()


def odd_tiff(path, pixels):
    """A TIFF of one strip whose length is wrong: readers find it from the image's size, and say so."""
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    entry = data.index(struct.pack("<HHI", 279, 4, 1))  # StripByteCounts, one 32-bit number
    path.write_bytes(data[: entry + 8] + struct.pack("<I", 0) + data[entry + 12 :])


# ---- PNG by hand: no library is asked twice


def chunk(kind, data):
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, bits=8, palette=None, transparent=None, interlaced=False, extra=b""):
    """A PNG of samples [height, width, channels]. palette: [n, 3]; transparent: what its tRNS chunk holds."""
    height, width, channels = pixels.shape
    color = 3 if palette is not None else {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    places = PASSES if interlaced else [(0, 0, 1, 1)]
    parts = [pixels[y::dy, x::dx] for x, y, dx, dy in places]
    lines = b"".join(b"\0" + pack(row, bits) for part in parts if part.size for row in part)
    chunks = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced)) + extra
    if palette is not None:
        chunks += chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    if transparent is not None:
        chunks += chunk(b"tRNS", transparent)
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def pack(row, bits):
    if bits >= 8:
        return row.astype(f">u{bits // 8}").tobytes()
    each = (row.reshape(-1, 1) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(each.astype(np.uint8)).tobytes()


def unpack_png(path):
    """[height, width, channels] of a PNG of 8 or 16 bits, filters undone by the formulas of the standard."""
    data, at, stream = Path(path).read_bytes(), 8, b""
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        at += 12 + length
        if kind == b"IHDR":
            width, height, bits, color = struct.unpack_from(">IIBB", body)
        if kind == b"IDAT":
            stream += body
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color]
    step = channels * bits // 8
    lines = np.frombuffer(zlib.decompress(stream), np.uint8).reshape(height, -1)
    above, rows = [0] * (width * step), []
    for kind, *line in lines.tolist():
        for i, value in enumerate(line):
            left, up, corner = line[i - step] if i >= step else 0, above[i], above[i - step] if i >= step else 0
            guess = left + up - corner
            paeth = min((abs(guess - value), order, value) for order, value in enumerate((left, up, corner)))[2]
            line[i] = (value + (0, left, up, (left + up) // 2, paeth)[kind]) % 256
        rows.append(line)
        above = line
    return np.array(rows, np.uint8).view(f">u{bits // 8}").astype(f"u{bits // 8}").reshape(height, width, channels)

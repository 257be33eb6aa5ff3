"""Damaged files of every format and kind: success or an error of one line, in bounded time and memory.

Each mutant is made from its number alone. They are read and written again in processes of their own, so that a crash of
a decoder is the failure of one mutant, which the test names; to repeat it: echo KIND NUMBER | python -m
tests.images.test_fuzz
"""

import io
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image

from edsr.errors import ImageError
from edsr.images.reader import DEFAULT_LIMITS, ImageReader, ReadLimits, read_image
from edsr.images.writer import ImageWriter
from tests.conftest import ROOT
from tests.support.image_files import ICC, encoded, linux, make_image, names, pillow, png
from tests.support.mutations import mutate, rejoined
from tests.support.processes import run

SIZE = 33, 27
SECONDS, MEGABYTES, ROWS = (
    10,
    400,
    60,
)  # of a processor, that a mutant may take, and rows of it besides; 0.02 and 20 are usual
ENDLESS = 200  # seconds of a processor after which a mutant is taken to have no end
ADDRESSES = 8_000_000_000  # bytes
SPOOLED = ReadLimits(spooled=0)  # what must be reordered goes through a temporary file, however small it is
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><note>kept</note></x:xmpmeta>"


def tiff(dtype="uint8", channels=3, photometric="rgb", **options):
    buffer, pixels = io.BytesIO(), make_image(*SIZE, channels, dtype=dtype)
    if options.get("planarconfig") == "separate":
        pixels = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    tifffile.imwrite(buffer, pixels if channels > 1 else pixels[..., 0], photometric=photometric, **options)
    return buffer.getvalue()


def vips(extension, dtype, channels, **options):
    space = {"uint8": "srgb", "uint16": "rgb16", "float32": "scrgb"}[dtype]
    image = pyvips.Image.new_from_array(make_image(*SIZE, channels, dtype=dtype)).copy(interpretation=space)
    return image.write_to_buffer(extension, **options)


def with_alpha(image):
    image.putalpha(pillow(make_image(*SIZE, 1, seed=1)))
    return image


def seeds():
    """Kind -> a valid file. The kind begins with its extension."""
    rgb, gray = pillow(make_image(*SIZE)), pillow(make_image(*SIZE, 1))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A maker"
    exif.get_ifd(0x8769)[0x9003] = "2020:02:03 04:05:06"
    metadata = {"exif": exif, "icc_profile": ICC, "dpi": (300, 300)}
    palette = make_image(16, 1, 3)[:, 0]
    few = make_image(*SIZE, 1) % 16
    return {
        "png rgb": encoded("png", rgb, **metadata),
        "png gray": encoded("png", gray),
        "png 1 bit": encoded("png", gray.convert("1")),
        "png palette": png(few, 4, palette, bytes([0, 99])),
        "png 16 bits": png(make_image(*SIZE, 4, dtype="uint16"), 16),
        "png interlaced": png(make_image(*SIZE, 4), interlaced=True),
        "png interlaced palette": png(few, 4, palette, interlaced=True),
        "jpg rgb": encoded("jpeg", rgb, xmp=XMP, **metadata),
        "jpg gray": encoded("jpeg", gray, restart_marker_rows=1),
        "jpg progressive": encoded("jpeg", rgb, progressive=True),
        "jpg subsampled": encoded("jpeg", rgb, subsampling="4:2:0"),
        "jpg cmyk": encoded("jpeg", rgb.convert("CMYK")),
        "webp": encoded("webp", rgb, xmp=XMP, **{key: metadata[key] for key in ("exif", "icc_profile")}),
        "webp alpha": encoded("webp", with_alpha(rgb.copy())),
        "webp lossless": encoded("webp", with_alpha(rgb.copy()), lossless=True),
        "tif": tiff(rowsperstrip=7, iccprofile=ICC),
        "tif deflate": tiff(rowsperstrip=7, compression="zlib", predictor=2),
        "tif lzw": encoded("tiff", rgb, compression="tiff_lzw"),
        "tif packbits": encoded("tiff", rgb, compression="packbits"),
        "tif jpeg": encoded("tiff", rgb, compression="jpeg"),
        "tif fax": encoded("tiff", gray.convert("1"), compression="group4"),
        "tif palette": encoded("tiff", rgb.convert("P")),
        "tif big": tiff("uint16", 4, bigtiff=True, byteorder=">", extrasamples=["unassalpha"]),
        "tif premultiplied": tiff("uint16", 4, extrasamples=["assocalpha"]),
        "tif tiles": tiff(tile=(16, 16), compression="zlib"),
        "tif planes": tiff(planarconfig="separate", rowsperstrip=7),
        "tif float": tiff("float32", 3, rowsperstrip=7),
        "tif float gray": vips(".tif", "float32", 1, compression="deflate", predictor="float"),
        "tif cmyk": tiff(channels=4, photometric="separated"),
        "tif exif": encoded("tiff", rgb, tiffinfo={274: 5, 271: "A maker", 34665: {36867: "2020:02:03 04:05:06"}}),
        "tif turned": encoded("tiff", rgb, tiffinfo={274: 5}),
        "avif": encoded("avif", rgb, xmp=XMP, **{key: metadata[key] for key in ("exif", "icc_profile")}),
        "avif alpha": encoded("avif", with_alpha(rgb.copy())),
        "avif gray": encoded("avif", gray),
        "avif 12 bits": vips(".avif", "uint16", 3, bitdepth=12),
    }


def memory(name):
    """A line of Linux's account of this process's memory, in megabytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) // 1024


def attempt(kind, number, data, folder, good):
    """Reads a mutant and writes what it holds, then reads `good`, an intact file whose pixels are known.

    Returns "" for success or an error of one line, else what is wrong.
    """
    source = folder / f"in.{kind.split()[0]}"
    source.write_bytes(mutate(data, kind, number))
    # The slow encoders in their turn; of large images the fast one.
    extension = (".png", ".tif", ".jpg", ".png", ".tif", ".webp", ".png", ".avif")[number % 8]
    target, before = folder / f"out{extension}", names(folder)
    Path("/proc/self/clear_refs").write_text("5")
    start, held, row = time.process_time(), memory("VmRSS"), 0
    try:
        limits = SPOOLED if number // 2 % 2 else DEFAULT_LIMITS
        with ImageReader(source, full=True, folder=folder, limits=limits) as reader:
            if reader.width * reader.height > 10_000 and extension in (".webp", ".avif"):
                target = folder / "out.jpg"
            size = reader.width, reader.height, reader.channels
            row = reader.width * reader.channels * reader.dtype.itemsize / 1e6
            with ImageWriter(target, *size, like=reader, dtype=reader.dtype) as writer:
                for rows in reader.rows(max(1, min(16, 2**20 // reader.width))):
                    writer.write(rows)
    except ImageError as error:
        if "\n" in str(error) or len(str(error)) > 1000 or not str(error).startswith(str(folder)):
            return f"says {str(error)!r}"
        if names(folder) != before:
            return f"leaves {names(folder)}"
    else:
        if names(folder) != sorted([*before, target.name]):
            return f"leaves {names(folder)}"
        with ImageReader(target, full=True) as reader:
            if (reader.width, reader.height) != size[:2]:
                return f"{size} became {reader.width} x {reader.height}"
        target.unlink()
    if read_image(good[0], full=True).tobytes() != good[1]:
        return "spoils the next file"
    seconds, megabytes = time.process_time() - start, memory("VmHWM") - held
    if seconds > SECONDS + row / 20 or megabytes > MEGABYTES + ROWS * row:
        return f"took {seconds:.1f} s and {megabytes} MB"
    return ""


def main():
    """For each "KIND NUMBER" of standard input the same with a colon and, if it ends, what is wrong with it."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    valid = seeds()
    with TemporaryDirectory() as name, TemporaryFile() as printed:
        folder = Path(name) / "mutant"
        folder.mkdir()
        good = {}
        for kind, data in valid.items():
            path = folder.parent / f"good.{kind.split()[0]}"
            path.write_bytes(data)
            good[kind.split()[0]] = path, read_image(path, full=True).tobytes()
        os.dup2(printed.fileno(), 2)
        for line in sys.stdin:
            kind, number = line.strip().rsplit(" ", 1)
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + ENDLESS, resource.RLIM_INFINITY))
            print(line.strip(), end=": ", flush=True)
            try:
                wrong = attempt(kind, int(number), valid[kind], folder, good[kind.split()[0]])
            except Exception as error:
                wrong = f"raises {error!r}"
            printed.seek(0)
            print(wrong or f"{printed.read()[:300] or ''}", flush=True)
            printed.truncate(0)
            for path in folder.iterdir():
                path.unlink()


COUNTS = {"png": 165, "jpg": 190, "webp": 240, "tif": 130, "avif": 150}  # mutants of each kind; 5,000 together


@linux
def test_a_little_damage_is_an_error_of_one_line():
    check_mutants([f"{kind} {number}" for kind in seeds() for number in (0, 7, 13)])


@linux
@pytest.mark.slow
@pytest.mark.parametrize("group", COUNTS)
def test_any_damage_is_an_error_of_one_line(group):
    kinds = [kind for kind in seeds() if kind.split()[0] == group]
    check_mutants([f"{kind} {number}" for kind in kinds for number in range(COUNTS[group])])


def check_mutants(left):
    """Attempts mutants, each "KIND NUMBER", in processes of their own, one after the other while none crashes."""
    failures, command = [], [sys.executable, "-m", "tests.images.test_fuzz"]
    while left:
        done = run(command, cwd=ROOT, input="\n".join(left), text=True, stdout=subprocess.PIPE)
        end, output = f"ended the process with {done.returncode}", done.stdout
        lines = [line for line in output.splitlines() if line.partition(":")[0] in left]
        assert lines, end
        failures += [line for line in lines if not line.endswith(": ")]
        left = left[len(lines) :]
        if not output.endswith("\n"):
            failures.append(lines[-1] + end)
    assert not failures, "\n".join(failures)


def test_there_are_five_thousand():
    assert sum(COUNTS[kind.split()[0]] for kind in seeds()) >= 5000


def test_files_are_taken_apart_and_joined_without_a_change():
    """Else most of what surgery makes would fail at a decoder's first look."""
    for kind, data in seeds().items():
        if not kind.startswith("tif"):  # whose entries are changed where they stand
            assert rejoined(data, kind.split()[0]) == data, kind
        assert len({mutate(data, kind, number) for number in range(1, 40, 2)}) > 15


if __name__ == "__main__":
    main()

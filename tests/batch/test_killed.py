"""A batch of two hundred, some of them broken, killed half way and resumed."""

import io
import os
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from edsr.images.writer import ImageWriter
from edsr.system import remove_abandoned
from edsr.weights import save_model
from tests.conftest import ROOT, network
from tests.support.holding import held, holding
from tests.support.image_files import chunk, encoded, make_image, names, pillow, png
from tests.support.processes import communicate, wait_until

FILES, BROKEN = 200, 20


def broken():
    """Twenty files that are no whole image, each in another way; name -> bytes."""
    rgb = pillow(make_image(60, 50))
    whole = {kind: encoded(kind, rgb) for kind in ("png", "jpeg", "webp", "tiff", "avif")}
    progressive = encoded("jpeg", rgb, progressive=True)
    flipped = bytearray(whole["png"])
    flipped[len(flipped) // 2] ^= 0x55
    pages = io.BytesIO()
    rgb.save(pages, "tiff", save_all=True, append_images=[rgb])
    frames = io.BytesIO()
    rgb.save(frames, "webp", save_all=True, append_images=[pillow(255 - make_image(60, 50))])
    wide = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    return {
        "empty.png": b"",
        "empty.tif": b"",
        "text.jpg": b"this is no image",
        "zeros.png": bytes(5000),
        "html.webp": b"<!doctype html><title>404</title>",
        "cut.png": whole["png"][:-300],
        "cut.jpg": whole["jpeg"][: len(whole["jpeg"]) // 2],
        "cut progressive.jpg": progressive[: len(progressive) // 2],
        "cut.webp": whole["webp"][: len(whole["webp"]) // 2],
        "cut.tif": whole["tiff"][: len(whole["tiff"]) // 2],
        "cut.avif": whole["avif"][: len(whole["avif"]) // 2],
        "head.png": whole["png"][:20],
        "head.jpg": whole["jpeg"][:30],
        "head.avif": whole["avif"][:30],
        "flipped.png": bytes(flipped),
        "no pixels.png": png(make_image(9, 9))[:8]
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b""),
        "huge.png": whole["png"][:8] + chunk(b"IHDR", wide) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""),
        "pages.tif": pages.getvalue(),
        "frames.webp": frames.getvalue(),
        "raw.png": whole["tiff"],
    }


@pytest.fixture
def folder(tmp_path):
    """180 images in two folders, and the broken ones among them."""
    save_model(network(blocks=1), tmp_path / "m.safetensors")
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, data in broken().items():
        (tmp_path / "in" / name).write_bytes(data)
    for i in range(FILES - BROKEN):
        kind = ("png", "jpeg", "webp")[i % 3]
        place = tmp_path / "in" / ("deep" if i % 2 else "")
        (place / f"{i:03}.{kind}").write_bytes(
            encoded(kind, pillow(make_image(20 + i % 17, 30, (1, 3)[i % 2], seed=i)))
        )
    return tmp_path


def start(folder, output, more=(), **options):
    command = [sys.executable, ROOT / "cli.py", "upscale", "in", "-o", output, "--recursive", "--skip-existing"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(more)
    command += ["--model", "m.safetensors", "--device", "cpu"]
    return subprocess.Popen(command, cwd=folder, text=True, env=environment, stderr=subprocess.PIPE, **options)


def files(folder):
    """Relative path -> bytes of all files below."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_two_hundred_files_twenty_of_them_broken_killed_half_way(folder):
    assert len(broken()) == BROKEN
    whole = start(folder, "whole/", stdout=subprocess.DEVNULL)
    _, messages = communicate(whole)
    assert whole.returncode == 1
    want = files(folder / "whole")
    assert len(want) == FILES - BROKEN
    lines = messages.splitlines()
    at = lines.index(f"{FILES - BROKEN} of {FILES} images done, {BROKEN} failed:")
    assert len(lines) == at + 1 + BROKEN  # and nothing after the list
    for name in broken():
        assert sum(f"in/{name}: " in line for line in lines[at + 1 :]) == 1, name

    done = (FILES - BROKEN) // 2
    with held(folder / "out", "*.png", done):
        killed = start(folder, "out/", holding(folder), stdout=subprocess.DEVNULL)
        wait_until(lambda: len(list((folder / "out").rglob("*.png"))) >= done, killed)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    half = files(folder / "out")
    assert killed.returncode == -signal.SIGKILL and done <= len(half) < FILES - BROKEN
    (folder / "out" / ".edsr-0123456789ab.part").write_bytes(b"what a kill at another moment leaves")
    resumed = start(folder, "out/", stdout=subprocess.DEVNULL)
    _, messages = communicate(resumed)
    assert resumed.returncode == 1 and f"{BROKEN} failed:" in messages and " skipped, " in messages
    assert files(folder / "out") == want


def test_what_others_are_writing_is_not_abandoned(tmp_path):
    if sys.platform == "win32":
        pytest.skip("an open file cannot be deleted there")
    pixels = make_image(20, 30)
    with ImageWriter(tmp_path / "a.png", 30, 20, 3) as writer:
        writer.write(pixels[:10])
        (tmp_path / ".edsr-0123456789ab.part").write_bytes(b"x")
        (tmp_path / ".edsr-notes").write_bytes(b"x")
        remove_abandoned(tmp_path)
        assert len(names(tmp_path)) == 2
        writer.write(pixels[10:])
    assert names(tmp_path) == [".edsr-notes", "a.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels)

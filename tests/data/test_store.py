"""Decoded images in memory, and in caches on disk."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edsr.data import load_dataset, sources, store
from edsr.data.store import DiskCache, DiskCacheWriter
from edsr.system import atomic_folder
from tests.conftest import make_image

from .files import linux, read_all, refused, same, save, sixteen_bit


def test_images_larger_than_memory_are_refused(folder, monkeypatch, tmp_path):
    need = read_all(folder).nbytes
    monkeypatch.setattr(store, "available_memory", lambda: 2 * need - 1)
    assert "cache=DIR" in refused("more than half", folder)
    read_all(folder, cache=tmp_path / "cache")
    monkeypatch.setattr(store, "available_memory", lambda: 2 * need)
    read_all(folder)


def no_decoding(monkeypatch):
    def fails(*arguments, **more):
        raise AssertionError("decoded again")

    monkeypatch.setattr(sources, "ImageReader", fails)
    monkeypatch.setattr(sources, "read_opaque", fails)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "div2k"])
def test_the_cache_is_used_again(folder, div2k, tmp_path, kind, lines, monkeypatch):
    if kind == "uint16":
        save(folder / "a.png", sixteen_bit(50, 50))
    sources = [folder] if kind != "div2k" else [div2k]
    memory = load_dataset(sources, 2, 4)
    first = load_dataset(sources, 2, 4, cache=tmp_path / "cache")
    no_decoding(monkeypatch)
    again = load_dataset(sources, 2, 4, cache=tmp_path / "cache")
    assert "images found in" in lines()[-1]
    for images in first, again:
        for ours, theirs in zip(images, memory, strict=True):
            assert (ours is None and theirs is None) or same(ours, theirs)
    assert not list((tmp_path / "cache").glob(".*"))


def test_what_changes_is_read_again(folder, tmp_path, lines):
    cache = tmp_path / "cache"
    read_all(folder, cache=cache)
    save(folder / "1.png", make_image(61, 70, seed=50))
    lines()
    images = read_all(folder, cache=cache)
    changed, reading = lines()
    assert "have changed since" in changed and reading == "reading 4 images"
    assert same(images, read_all(folder))
    save(folder / "9.png", make_image(64, 64))
    assert len(read_all(folder, cache=cache)) == 5
    assert len(list(cache.iterdir())) == 1  # none is left behind
    for more in {"scale": 3}, {"patch": 6}, {"crop": 32}:
        images = read_all(folder, cache=cache, **more)
        assert lines()[-1].startswith("reading") and same(images, read_all(folder, **more))
    assert len(list(cache.iterdir())) == 4


@linux
@pytest.mark.parametrize("name", ["hr.bin", "lr.bin", "table.bin", "index.json"])
@pytest.mark.parametrize("kind", ["cut", "longer", "empty", "gone", "folder", "pipe", "deep", "flip"])
def test_a_damaged_cache_is_made_anew(folder, tmp_path, name, kind, lines):
    whole = read_all(folder, cache=tmp_path / "cache")
    path = next((tmp_path / "cache").iterdir()) / name
    raw = path.read_bytes()
    changed = {
        "cut": [raw[:-1]],
        "pipe": [None],
        "deep": [b"[" * 200_000],
        "longer": [raw + b"0"],
        "empty": [b""],
        "gone": [None],
        "folder": [None],
    }
    if kind == "flip":  # not of pixels, which have no checksum: gigabytes would be read at every start
        random = np.random.default_rng(0)
        places = range(0, 0 if name in ("hr.bin", "lr.bin") else len(raw), 11)
        changed["flip"] = [raw[:at] + bytes([raw[at] ^ int(random.integers(1, 256))]) + raw[at + 1 :] for at in places]
    for content in changed[kind]:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif content is not None:
            path.write_bytes(content)
        lines()
        assert same(read_all(folder, cache=tmp_path / "cache"), whole)
        why, reading = lines()
        assert re.search("damaged|incomplete|changed", why) and reading == "reading 4 images"
    assert same(read_all(folder, cache=tmp_path / "cache"), whole)
    assert "found" in lines()[-1]


@linux
def test_what_a_killed_run_has_left_is_removed(folder, tmp_path):
    """But not what another run is writing."""
    cache = tmp_path / "cache"
    read_all(folder, cache=cache)
    name = next(cache.iterdir()).name
    left = cache / ".edsr-0123456789ab.part"
    left.mkdir()
    (left / "hr.bin").write_bytes(b"123")
    save(folder / "5.png", make_image(40, 40))
    with atomic_folder(cache / "x2-0123456789abcdef") as written:
        (written / "hr.bin").write_bytes(b"123")
        read_all(folder, cache=cache)
        assert {path.name for path in cache.iterdir()} == {name, written.name}


def test_an_interrupted_cache_is_no_cache(folder, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", interrupted)
        read_all(folder, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


# A cache as version 0.1 wrote it, of the sources "/data/images" with a patch of 48, at x2: one image of 4 x 4 pixels.
OLD_FOLDER = "x2-20e68cafb6f6f277"
OLD_CACHE = {
    "hr.bin": bytes(range(0, 240, 5)),
    "lr.bin": bytes(range(0, 240, 20)),
    "table.bin": np.array([0, 0, 2, 2, 0], "<i8").tobytes(),
    "index.json": b'{"key": "d5993ad4dd31321d235f7074f6d09406adff8b1ac2fbe66d0509530729a2519a", "dtype": "uint8", '
    b'"pixels": 4, "table": 3078083805}',
}


@linux  # whose absolute paths are in the digests
def test_the_format_of_caches_stays(tmp_path):
    cache = DiskCache(
        tmp_path, 2, ["train", "/data/images"], (48, None), [Path("/nowhere/a.png"), Path("/nowhere/b.png")]
    )
    assert cache.folder == tmp_path / OLD_FOLDER
    cache.folder.mkdir()
    for name, content in OLD_CACHE.items():
        (cache.folder / name).write_bytes(content)
    images = cache.open()
    assert images is not None
    low, high = images.pair(0)
    np.testing.assert_array_equal(low.reshape(-1), np.arange(0, 240, 20))
    np.testing.assert_array_equal(high.reshape(-1), np.arange(0, 240, 5))
    with DiskCacheWriter(cache, 16, np.dtype(np.uint8)) as writer:
        writer.add(high[None].copy(), low[None].copy())
        writer.finish(images.index)
    assert {path.name: path.read_bytes() for path in cache.folder.iterdir()} == OLD_CACHE
    other = DiskCache(tmp_path, 3, ["validate", "/data/фото", "/b"], (1, 96), [Path("/nowhere/a.png")])
    assert other.folder.name == "x3-ffa1ae8780a96089"


FULL_DISK = """
import resource, signal, sys
from edsr.data import load_dataset
from edsr.errors import DataError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    load_dataset([sys.argv[1]], 2, 4, cache=sys.argv[2])
except DataError as error:
    print(error)
"""


@linux
def test_a_full_disk_is_told_in_one_line(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, folder, cache], capture_output=True, text=True)
    assert done.stdout == f"{cache}: cannot be written (File too large); choose another folder with cache\n", done
    assert not list(cache.iterdir())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused("0.0 GB needed, 0.0 GB free", folder, cache=cache)
    (tmp_path / "file").write_text("")
    refused("cannot be written", folder, cache=tmp_path / "file")

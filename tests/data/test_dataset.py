"""Images to train on, from files to buffers, and the patches cut from them."""

import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edsr.data import patches, sources
from edsr.data import store as kept
from edsr.data.dataset import load_dataset, train_val_split
from edsr.data.patches import PatchLoader, PatchSampler, gather_patches, patch_offsets
from edsr.data.store import DiskCache, DiskCacheWriter, PairedImages, pack
from edsr.errors import DataError
from edsr.images import ImageReader
from edsr.images.resize import matlab_downscale
from edsr.system import atomic_folder
from tests.conftest import make_image

linux = pytest.mark.skipif(sys.platform != "linux", reason="uses a Linux interface")


def save(path, pixels):
    """PNG, 8 or 16 bits, gray or RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pyvips.Image.new_from_array(pixels)
    gray, sixteen = pixels.shape[2] == 1, pixels.dtype == np.uint16
    image = image.copy(interpretation={0: "srgb", 1: "b-w", 2: "rgb16", 3: "grey16"}[gray + 2 * sixteen])
    path.write_bytes(image.write_to_buffer(path.suffix))
    return path


def sixteen(height, width, channels=3, seed=0):
    """Levels that 8 bits do not have."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint16)
    return make_image(height, width, channels, seed).astype(np.uint16) * 256 + noise


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        save(tmp_path / "images" / f"{i}.png", make_image(60 + i, 70, seed=i))
    return tmp_path / "images"


@pytest.fixture
def lines(caplog):
    """Gives the lines that were logged since it was last called."""
    caplog.set_level(logging.INFO, "edsr.data")

    def take():
        messages = [record.getMessage() for record in caplog.records if record.name.startswith("edsr.data")]
        caplog.clear()
        return messages

    return take


def read_all(*sources, scale=2, patch=4, **more) -> PairedImages:
    return load_dataset([str(source) for source in sources], scale, patch, **more)[0]


def same(a: PairedImages, b: PairedImages) -> bool:
    return torch.equal(a.hr, b.hr) and torch.equal(a.lr, b.lr) and np.array_equal(a.index, b.index)


def refused(says, *sources, **more):
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        read_all(*sources, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- folders and files


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_images_lie_end_to_end(folder, scale, lines):
    images = read_all(folder, scale=scale)
    assert len(images) == 4 and lines() == ["reading 4 images"]
    end = 0
    for i in range(4):
        original = make_image(60 + i, 70, seed=i)[: (60 + i) // scale * scale, : 70 // scale * scale]
        low, high = images.pair(i)
        np.testing.assert_array_equal(high, original)
        np.testing.assert_array_equal(low, matlab_downscale(original, scale))
        assert images.index[i].tolist() == [end * scale**2, end, *low.shape[:2], i]
        end += low.shape[0] * low.shape[1]
    assert images.lr.shape == (end, 3) and images.hr.shape == (end * scale**2, 3)
    assert images.hr.dtype == torch.uint8 and images.index.dtype == np.int64
    assert images.nbytes == 3 * end * (1 + scale**2)
    assert same(images, images.to("cpu"))


def test_folders_in_folders_and_files(folder, tmp_path):
    save(folder / "deep" / "фото ü" / "写真 [1].png", make_image(40, 40, seed=8))
    save(folder / ".hidden" / "a.png", make_image(40, 40, seed=9))
    save(folder / ".b.png", make_image(40, 40, seed=9))
    (folder / "notes.txt").write_text("no image")
    alone = save(tmp_path / "alone.tif", make_image(50, 50, seed=7))
    images = read_all(folder, alone)
    shapes = [images.pair(i)[1].shape[0] for i in range(len(images))]
    assert shapes == [60, 60, 62, 62, 40, 50]
    np.testing.assert_array_equal(images.pair(4)[1], make_image(40, 40, seed=8))
    np.testing.assert_array_equal(images.pair(5)[1], make_image(50, 50, seed=7))


@linux
def test_names_that_are_not_unicode(folder, tmp_path, lines):
    name = os.fsdecode(b"\xff\xfe.png")
    (folder / "0.png").rename(folder / name)
    for _ in range(2):
        assert len(read_all(folder, cache=tmp_path / "cache")) == 4
    assert "found" in lines()[-1]


def test_jpegs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(make_image(40, 60)).save(tmp_path / "a.jpg", exif=exif)
    assert read_all(tmp_path).pair(0)[1].shape == (60, 40, 3)


def test_gray_is_repeated(folder):
    save(folder / "4.png", make_image(40, 40, 1))
    low, high = read_all(folder).pair(4)
    np.testing.assert_array_equal(high, make_image(40, 40, 1).repeat(3, 2))
    np.testing.assert_array_equal(low, matlab_downscale(high, 2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_kept(tmp_path, channels, suffix):
    save(tmp_path / f"a{suffix}", sixteen(40, 42, channels))
    save(tmp_path / "b.png", make_image(40, 40))
    images = read_all(tmp_path)
    assert images.hr.dtype == images.lr.dtype == torch.int16
    low, high = images.pair(0)
    assert low.dtype == high.dtype == np.uint16
    np.testing.assert_array_equal(high, np.broadcast_to(sixteen(40, 42, channels), (40, 42, 3)))
    np.testing.assert_array_equal(low, matlab_downscale(high, 2))
    np.testing.assert_array_equal(images.pair(1)[1], make_image(40, 40).astype(np.uint16) * 257)
    # Half and full range are where signed storage would show.
    low, high = next_batch(images, 4, 64)
    levels = np.unique(np.concatenate([images.pair(i)[1].reshape(-1) for i in range(2)])).astype(np.float32) / 65535
    assert np.isin(high.numpy(), levels).all() and high.max() > 0.6 and high.min() >= 0 and low.max() <= 1


def test_what_cannot_serve_is_named(folder, lines):
    (folder / "bad.png").write_bytes(b"no image")
    save(folder / "small.png", make_image(9, 9))
    Image.fromarray(np.zeros((50, 50, 4), np.uint8)).save(folder / "alpha.png")
    images = read_all(folder, patch=8)
    assert len(images) == 4
    alpha, bad, small, reading = lines()
    assert reading == "reading 4 images"
    assert "alpha.png: transparency" in alpha and "bad.png: is not" in bad
    assert small.endswith("small.png: 9 x 9 is smaller than 16 x 16 pixels: left out")


def test_many_small_images_are_summed_up(folder, lines):
    for i in range(6):
        save(folder / f"small{i}.png", make_image(9, 9))
    read_all(folder, patch=8)
    small, reading = lines()
    assert "6 images are smaller than 16 x 16" in small and "small0.png" in small and reading == "reading 4 images"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("cached", [False, True])
def test_files_that_break_while_decoded_leave_no_hole(folder, tmp_path, suffix, cached, lines):
    whole = read_all(folder)
    path = folder / f"1b{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:9000])
    ImageReader(path).close()  # the header is whole
    lines()
    images = read_all(folder, cache=tmp_path / "cache" if cached else None)
    assert torch.equal(images.hr, whole.hr) and torch.equal(images.lr, whole.lr)
    np.testing.assert_array_equal(images.index[:, :4], whole.index[:, :4])
    reading, damaged = lines()
    assert reading == "reading 5 images" and "1b" in damaged and "damaged" in damaged


def test_a_file_that_changes_between_is_left_out(folder, lines, monkeypatch):
    read = sources.read_image

    def changed(path, sixteen=False):
        return read(path, sixteen)[1:] if path.name == "2.png" else read(path, sixteen)

    monkeypatch.setattr(sources, "read_image", changed)
    assert len(read_all(folder)) == 3
    assert "2.png: has changed" in lines()[-1]


def test_nothing_left_or_nothing_there(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused("no images", tmp_path / "empty")
    assert str(tmp_path / "none") in refused("no such file or folder", tmp_path / "none")
    refused("no image left; give other folders or a smaller --patch", folder, patch=400)
    refused("no image left", save(tmp_path / "small.png", make_image(3, 3)))
    with pytest.raises(DataError, match="no images given"):
        load_dataset([], 2, 8)
    broken = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(broken)
    broken.write_bytes(broken.read_bytes()[:9000])
    refused("no image left that can be read", broken)


def test_only_the_calling_thread_logs_and_in_order(folder, caplog):
    for i in range(10, 40):
        (folder / f"bad{i}.png").write_bytes(b"no image")
    read_all(folder)
    names = [re.findall(r"bad\d+", record.getMessage()) for record in caplog.records]
    assert names == [[f"bad{i}"] for i in range(10, 40)]  # at the level of warnings
    assert {record.thread for record in caplog.records} == {threading.get_ident()}


def test_images_larger_than_memory_are_refused(folder, monkeypatch, tmp_path):
    need = read_all(folder).nbytes
    monkeypatch.setattr(kept, "available_memory", lambda: 2 * need - 1)
    assert "--cache DIR" in refused("more than half", folder)
    read_all(folder, cache=tmp_path / "cache")
    monkeypatch.setattr(kept, "available_memory", lambda: 2 * need)
    read_all(folder)


# ---- crops


@pytest.mark.parametrize("scale", [2, 3])
def test_crops_are_images_of_their_own(tmp_path, scale):
    image = make_image(100, 75)
    save(tmp_path / "a.png", image)
    save(tmp_path / "b.png", make_image(24, 50, 1, seed=1))
    images = read_all(tmp_path, scale=scale, crop=24)
    assert len(images) == 4 * 3 + 2
    squares = [image[y : y + 24, x : x + 24] for y in range(0, 96, 24) for x in range(0, 72, 24)]
    for i, square in enumerate(squares):
        low, high = images.pair(i)
        np.testing.assert_array_equal(high, square)
        np.testing.assert_array_equal(low, matlab_downscale(square, scale))
    np.testing.assert_array_equal(images.pair(13)[1], make_image(24, 50, 1, seed=1)[:, 24:48].repeat(3, 2))
    assert images.index[:, 4].tolist() == [0] * 12 + [1] * 2


def test_crops_that_cannot_be(folder, lines):
    refused("multiple of 3", folder, scale=3, crop=64)
    refused("at least a patch, 48", folder, crop=32, patch=24)
    refused("multiple of 2", folder, crop=0)
    save(folder / "small.png", make_image(30, 90))
    assert len(read_all(folder, crop=32)) == 4 * 2
    assert "small.png: 90 x 30 is smaller than 32 x 32" in lines()[0]


# ---- held back


def sizes(count, height=8, width=8):
    return pack([(np.full((height, width, 3), i, np.uint8),) * 2 for i in range(count)], 1)


@pytest.mark.parametrize(("count", "held"), [(1, 0), (2, 1), (19, 1), (20, 2), (199, 19), (200, 20), (1000, 20)])
def test_one_in_ten_is_held_back(count, held):
    images = PairedImages(1, torch.zeros(count, 3), torch.zeros(count, 3), np.ones((count, 5), np.int64))
    images.index[:, :2], images.index[:, 4] = 0, np.arange(count)
    rest, validation = train_val_split(images)
    assert (0 if validation is None else len(validation)) == held and len(rest) == count - held
    gone = np.setdiff1d(np.arange(count), rest.index[:, 4])
    if held > 1:
        assert np.ptp(np.diff(gone)) <= 1 and abs(gone[0] - (count - 1 - gone[-1])) <= 1
    assert np.array_equal(rest.index, train_val_split(images)[0].index)


def test_held_back_are_the_middles():
    originals = [make_image(40, 60, seed=i) for i in range(3)]
    images = pack([(matlab_downscale(image, 2), image) for image in originals], 2)
    rest, validation = train_val_split(images, side=16)
    assert validation is not None and len(rest) == 2
    low, high = validation.pair(0)
    np.testing.assert_array_equal(low, matlab_downscale(originals[1], 2)[2:18, 7:23])
    np.testing.assert_array_equal(high, originals[1][4:36, 14:46])
    np.testing.assert_array_equal(rest.pair(1)[1], originals[2])


def test_crops_of_a_image_held_back_leave_together(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", make_image(96, 96, seed=i))
    images = read_all(tmp_path, crop=16)
    rest, validation = train_val_split(images, side=24)
    assert validation is not None
    assert set(rest.index[:, 4]) == {0, 2} and len(rest) == 2 * 36
    assert len(validation) == 9  # of 8 x 8, the area of one of 24 x 24
    np.testing.assert_array_equal(validation.pair(0)[1], images.pair(36 + 13)[1])


# ---- DIV2K


@pytest.fixture
def div2k(tmp_path):
    root = tmp_path / "DIV2K"
    for i in range(1, 4):
        save(root / "DIV2K_train_HR" / f"{i:04}.png", make_image(48, 60, seed=i))
    for i in range(801, 813):
        save(root / "DIV2K_valid_HR" / f"{i:04}.png", make_image(48, 36, seed=i))
    given = make_image(24, 30, seed=99)
    save(root / "DIV2K_train_LR_bicubic" / "X2" / "0002x2.png", given)
    save(root / "DIV2K_valid_LR_bicubic" / "X2" / "0801x2.png", make_image(24, 18, seed=99))
    return root


def test_div2k(div2k, folder):
    images, validation = load_dataset([folder, div2k], 2, 4)
    assert len(images) == 4 + 3 and validation is not None and len(validation) == 10
    np.testing.assert_array_equal(images.pair(5)[0], make_image(24, 30, seed=99))
    np.testing.assert_array_equal(images.pair(5)[1], make_image(48, 60, seed=2))
    np.testing.assert_array_equal(images.pair(6)[0], matlab_downscale(make_image(48, 60, seed=3), 2))
    np.testing.assert_array_equal(validation.pair(0)[0], make_image(24, 18, seed=99))
    np.testing.assert_array_equal(validation.pair(9)[1], make_image(48, 36, seed=810))
    # The files of another scale are not taken, nor those of whole images for crops.
    np.testing.assert_array_equal(read_all(div2k, scale=3).pair(1)[0], matlab_downscale(make_image(48, 60, seed=2), 3))
    crops = read_all(div2k, crop=24)
    np.testing.assert_array_equal(crops.pair(4)[0], matlab_downscale(make_image(48, 60, seed=2)[:24, :24], 2))


def test_div2k_with_parts_missing_or_wrong(div2k, lines):
    save(div2k / "DIV2K_train_LR_bicubic" / "X2" / "0001x2.png", make_image(24, 29))
    save(div2k / "DIV2K_train_LR_bicubic" / "X2" / "0003x2.png", sixteen(24, 30))
    for path in (div2k / "DIV2K_valid_HR").iterdir():
        path.unlink()
    (div2k / "DIV2K_valid_HR").rmdir()
    images, validation = load_dataset([div2k], 2, 4)
    assert validation is None and len(images) == 2 and images.hr.dtype == torch.int16
    assert re.search("0001x2.png: has 29 x 24 pixels.* 60 x 48, not 2 times", lines()[0])
    np.testing.assert_array_equal(images.pair(1)[0], sixteen(24, 30))


def test_div2k_deeper_is_not_taken_for_a_folder_of_images(div2k):
    assert f"give {div2k} itself" in refused("DIV2K lies deeper", div2k.parent)
    assert len(read_all(div2k / "DIV2K_train_HR")) == 3


# ---- HDF5


def hdf5(path, lr, hr):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, values in ("lr", lr), ("hr", hr):
            for i, value in enumerate(values) if isinstance(values, list) else ():
                file[f"{name}/{i}"] = value
            if not isinstance(values, list):
                file[name] = values
    return path


HR = np.stack([make_image(18, 24, 3, seed=i) for i in range(12)])
LR = np.stack([matlab_downscale(image, 3) for image in HR])


@pytest.mark.parametrize("block", [1, 2**22])
@pytest.mark.parametrize(
    "form",
    {
        "uint8": lambda x: x,
        "0..255": lambda x: x.astype(np.float32),
        "0..1": lambda x: x / 255,
        "half": lambda x: x.astype(np.float16),
        "channels first": lambda x: x.transpose(0, 3, 1, 2),
        "one channel first": lambda x: x[..., :1].transpose(0, 3, 1, 2),
        "one channel last": lambda x: x[..., :1],
        "luma": lambda x: x[..., 0].astype(np.float64),
        "groups": list,
        "groups, luma in 0..1": lambda x: list((x[..., 0] / 255).astype(np.float32)),
        "groups, channels first": lambda x: list(x.transpose(0, 3, 1, 2)),
    }.items(),
    ids=lambda form: form[0],
)
def test_hdf5(tmp_path, form, block, monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK", block)
    path = hdf5(tmp_path / "91-image_x3.h5", form[1](LR), form[1](HR))
    images = read_all(path, scale=3)
    gray = "luma" in form[0] or "one" in form[0]
    assert len(images) == 12 and images.hr.dtype == torch.uint8
    assert images.index[:, 4].tolist() == list(range(12))
    for i in range(12):
        low, high = images.pair(i)
        np.testing.assert_array_equal(high, HR[i][..., [0, 0, 0]] if gray else HR[i])
        np.testing.assert_array_equal(low, LR[i][..., [0, 0, 0]] if gray else LR[i])


def test_hdf5_values(tmp_path):
    """16 bits stay; 0..1 is told from 0..255 by all values; what bicubic leaves outside the range is clamped."""
    values = np.arange(2 * 16 * 16, dtype=np.uint16).reshape(2, 16, 16) * 100
    images = read_all(hdf5(tmp_path / "16.hdf5", values[:, ::2, ::2], values))
    assert images.pair(1)[1].dtype == np.uint16 and images.pair(1)[1].max() == 51100
    dark = np.zeros((600, 16, 16), np.float32)
    dark[-1, 0, 0] = 255
    assert read_all(hdf5(tmp_path / "dark.h5", dark[:, ::2, ::2], dark)).pair(599)[1][0, 0, 0] == 255
    over = np.full((2, 16, 16), 1.05)
    over[1] = -0.02
    images = read_all(hdf5(tmp_path / "over.h5", over[:, ::2, ::2], over))
    assert images.pair(0)[1].min() == 255 and images.pair(1)[1].max() == 0


def test_hdf5_beside_folders_cached_and_cut(folder, tmp_path, lines):
    path = hdf5(tmp_path / "a.h5", [make_image(20, 18), make_image(4, 4)], [make_image(40, 36), make_image(8, 8)])
    images = read_all(folder, path, patch=5, cache=tmp_path / "cache")
    assert len(images) == 5 and images.index[4, 2:].tolist() == [20, 18, 4]
    assert "a.h5: hr/1: 8 x 8 is smaller" in lines()[0]
    assert len(read_all(path, crop=8)) == 5 * 4 + 1
    many = hdf5(tmp_path / "b.h5", LR, HR)
    assert read_all(many, folder, scale=3).index[:, 4].tolist() == list(range(16))
    pieces = [np.repeat(np.arange(12), 2), np.repeat(np.arange(12, 16), 25)]
    np.testing.assert_array_equal(read_all(many, folder, scale=3, crop=12).index[:, 4], np.concatenate(pieces))


def test_hdf5_that_does_not_fit(tmp_path, lines):
    pytest.importorskip("h5py")
    (tmp_path / "bad.h5").write_bytes(b"no HDF5")
    refused("cannot be read as HDF5", tmp_path / "bad.h5")
    refused("is not 2 x lr [12, 6, 8, 3]", hdf5(tmp_path / "a.h5", LR, HR))
    assert "enlarged lr" in refused("is not 3 x", hdf5(tmp_path / "b.h5", HR, HR), scale=3)
    refused("is not 3 x", hdf5(tmp_path / "c.h5", LR[:5], HR), scale=3)
    refused("holds no lr", hdf5(tmp_path / "d.h5", [], HR), scale=3)
    refused("holds no lr/11", hdf5(tmp_path / "e.h5", list(LR[:11]), list(HR)), scale=3)
    refused("gray or RGB", hdf5(tmp_path / "f.h5", LR[..., :2], HR[..., :2]), scale=3)
    refused("lr is int64", hdf5(tmp_path / "g.h5", LR.astype(int), HR), scale=3)
    refused("gray or RGB", hdf5(tmp_path / "h.h5", LR[0, 0], HR), scale=3)
    wrong = HR.astype(np.float32)
    wrong[3, 4, 5] = np.nan
    refused("no image left", hdf5(tmp_path / "i.h5", LR, wrong), scale=3)
    assert "holds values that are no numbers" in lines()[-1]


def test_hdf5_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.h5").write_bytes(b"")
    refused("pip install 'edsr-triton[train]'", tmp_path / "a.h5")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4), st.integers(0, 8000))
def test_damaged_hdf5(tmp_path, changes, length):
    path = hdf5(tmp_path / "a.h5", LR, HR)
    raw = bytearray(path.read_bytes())
    for at, value in changes:
        raw[at % len(raw)] = value
    path.write_bytes(raw[: len(raw) - length] if length < 4000 else raw)
    try:
        images = read_all(path, scale=3, patch=1)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert 0 < len(images) <= 12


# ---- the cache


def no_decoding(monkeypatch):
    def fails(*arguments, **more):
        raise AssertionError("decoded again")

    monkeypatch.setattr(sources, "ImageReader", fails)
    monkeypatch.setattr(sources, "read_image", fails)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "div2k"])
def test_the_cache_is_used_again(folder, div2k, tmp_path, kind, lines, monkeypatch):
    if kind == "uint16":
        save(folder / "a.png", sixteen(50, 50))
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


@pytest.mark.parametrize("name", ["hr.bin", "lr.bin", "table.bin", "index.json"])
@pytest.mark.parametrize("kind", ["cut", "longer", "empty", "gone", "folder", "flip"])
def test_a_damaged_cache_is_made_anew(folder, tmp_path, name, kind, lines):
    whole = read_all(folder, cache=tmp_path / "cache")
    path = next((tmp_path / "cache").iterdir()) / name
    raw = path.read_bytes()
    changed = {"cut": [raw[:-1]], "longer": [raw + b"0"], "empty": [b""], "gone": [None], "folder": [None]}
    if kind == "flip":  # not of pixels, which have no checksum: gigabytes would be read at every start
        random = np.random.default_rng(0)
        places = range(0, 0 if name in ("hr.bin", "lr.bin") else len(raw), 11)
        changed["flip"] = [raw[:at] + bytes([raw[at] ^ int(random.integers(1, 256))]) + raw[at + 1 :] for at in places]
    for content in changed[kind]:
        path.unlink()
        if kind == "folder":
            path.mkdir()
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
    cache = DiskCache(tmp_path, 2, ["train", "/data/images"], (48, None), [Path("/nowhere/a.png"), Path("/nowhere/b.png")])
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
    assert done.stdout == f"{cache}: cannot be written (File too large); choose another folder with --cache\n", done
    assert not list(cache.iterdir())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused("0.0 GB needed, 0.0 GB free", folder, cache=cache)
    (tmp_path / "file").write_text("")
    refused("cannot be written", folder, cache=tmp_path / "file")


# ---- the reduction


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([2, 3, 4]),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([np.uint8, np.uint16]),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_the_reduction_is_exact(scale, height, width, dtype, seed, extreme):
    """In whole numbers, where nothing is rounded but the result: so no order of summing gives other bits."""
    half = {2: [-3, -9, 29, 111], 3: [-1, -2, 0, 9, 21, 27], 4: [-7, -45, -75, -49, 93, 399, 745, 987]}[scale]
    taps = np.array(half + (half[-2::-1] if scale == 3 else half[::-1]))
    total, most = taps.sum(), np.iinfo(dtype).max
    random = np.random.default_rng(seed)
    image = random.integers(0, most + 1, (height * scale, width * scale), dtype)
    image = image // dtype(most // 2 + 1) * dtype(most) if extreme else image

    def reduce(x):  # along the first axis
        margin = (len(taps) - scale) // 2
        x = np.pad(x.astype(np.int64), ((margin, margin), (0, 0)), "edge")
        size = (len(x) - 2 * margin) // scale
        sums = sum(tap * x[k : k + (size - 1) * scale + 1 : scale] for k, tap in enumerate(taps))
        return np.clip((2 * sums + total) // (2 * total), 0, most)

    np.testing.assert_array_equal(matlab_downscale(image, scale), reduce(reduce(image).T).T)


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_reduction_has_the_same_bits_on_a_gpu(scale):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for image in make_image(203, 311), sixteen(203, 311):
        np.testing.assert_array_equal(matlab_downscale(image, scale, "cuda"), matlab_downscale(image, scale))


# ---- which patches


def table(*shapes):
    return np.array([[0, 0, height, width, i] for i, (height, width) in enumerate(shapes)], np.int64)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(-5, 2**70),
    st.integers(0, 2**40),
    st.integers(1, 5),
)
def test_draws_depend_on_seed_and_step_alone(shapes, patch, batch, seed, first, count):
    if all(min(shape) < patch for shape in shapes):
        with pytest.raises(ValueError, match="no image"):
            PatchSampler(table(*shapes), patch, batch, seed)
        return
    sampler = PatchSampler(table(*shapes), patch, batch, seed)
    drawn = sampler.draw(first, count)
    assert drawn.shape == (count, batch, 4) and drawn.dtype == np.int64
    for i in range(count):
        np.testing.assert_array_equal(drawn[i], PatchSampler(table(*shapes), patch, batch, seed).draw(first + i, 1)[0])
    heights, widths = np.array(shapes)[drawn[..., 0]].transpose(2, 0, 1)
    assert (drawn >= 0).all() and (drawn[..., 3] < 8).all()
    assert (drawn[..., 1] + patch <= heights).all() and (drawn[..., 2] + patch <= widths).all()


def test_every_position_is_as_likely_as_any_other():
    """Images of 3 x 4, 2 x 2 and 1 x 5 positions, one too small, 8 turns: 168 cells, chi-squared."""
    sampler = PatchSampler(table((5, 6), (4, 4), (2, 9), (3, 7)), 3, 50, 1)
    drawn = sampler.draw(0, 1680).reshape(-1, 4)
    cells, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(cells) == (12 + 4 + 5) * 8 and set(cells[:, 0]) == {0, 1, 3}
    assert ((counts - 500) ** 2 / 500).sum() < 167 + 4 * np.sqrt(2 * 167)
    assert not np.array_equal(sampler.draw(0, 9), sampler.draw(1, 9))
    assert not np.array_equal(sampler.draw(0, 9), PatchSampler(table((5, 6), (4, 4), (2, 9), (3, 7)), 3, 50, 2).draw(0, 9))


def test_a_set_of_billions_of_positions():
    sampler = PatchSampler(table(*[(100_000, 100_000)] * 3), 48, 1000, 0)
    drawn = sampler.draw(0, 4).reshape(-1, 4)
    assert set(drawn[:, 0]) == {0, 1, 2} and drawn[:, 1].max() > 99_000 and len(np.unique(drawn[:, 2])) > 3800


# ---- how they are cut


TURNS = [lambda x, k=k, flip=flip: np.rot90(x[:, ::-1] if flip else x, k) for flip in (0, 1) for k in range(4)]


def test_all_turns_are_cut_alike():
    """All eight, and the LR patch lies where the HR patch lies: each LR pixel is the corner of its HR block."""
    image = np.arange(11 * 13 * 3).reshape(11, 13, 3).astype(np.uint16) * 97
    images = pack([(low, low.repeat(3, 0).repeat(3, 1)) for low in (image[:5, :4], image[:4, :5], image)], 3)
    drawn = np.array([[[2, 4, 7, turn] for turn in range(8)]])
    low, high = torch.from_numpy(patch_offsets(images, drawn, 5))[0]
    low, high = gather_patches(images.lr, *low, side=5), gather_patches(images.hr, *high, side=15)
    assert low.shape == (8, 3, 5, 5) and high.shape == (8, 3, 15, 15) and low.dtype == torch.float32
    assert low.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(high, low.repeat_interleave(3, 2).repeat_interleave(3, 3))
    ours = {(x.permute(1, 2, 0) * 65535).round().int().numpy().tobytes() for x in low}
    assert ours == {turn(image[4:9, 7:12]).astype(np.int32).tobytes() for turn in TURNS} and len(ours) == 8


def feed_of(images, patch, batch, seed=0, steps=8, device="cpu", **more):
    return PatchLoader(images, patch, batch, seed, device, steps, **more)


def next_batch(images, patch, batch, step=0):
    feed = feed_of(images, patch, batch)
    feed.load(step, 1)
    return feed.batch(torch.tensor(0))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(1, 6), st.integers(0, 2**40), st.booleans(), st.integers(0, 99))
def test_batches_are_the_patches_drawn(scale, patch, step, wide, seed):
    random = np.random.default_rng(seed)
    dtype, white = (np.uint16, 65535) if wide else (np.uint8, 255)
    pairs = []
    for height, width in random.integers(6, 20, (3, 2)):
        high = random.integers(0, white + 1, (height * scale, width * scale, 3), dtype)
        pairs.append((high[::scale, ::scale], high))
    images = pack(pairs, scale)
    feed = feed_of(images, patch, 5, seed)
    feed.load(step, 3)
    drawn = PatchSampler(images.index, patch, 5, seed).draw(step, 3)
    for i in range(3):
        low, high = feed.batch(torch.tensor([i]))
        assert high.shape == (5, 3, patch * scale, patch * scale) and high.dtype == torch.float32
        for k, (row, y, x, turn) in enumerate(drawn[i]):
            for ours, image, s in (low, pairs[row][0], 1), (high, pairs[row][1], scale):
                want = image[y * s : (y + patch) * s, x * s : (x + patch) * s].astype(np.float32) / np.float32(white)
                want = want[:: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1]
                want = want.transpose(1, 0, 2) if turn & 4 else want
                np.testing.assert_array_equal(ours[k].permute(1, 2, 0).numpy(), want)


def test_patches_fit_and_are_repeatable():
    images = pack([(matlab_downscale(p, 2), p) for p in (make_image(40, 60), make_image(80, 30, seed=1))], 2)
    low, high = next_batch(images, 8, 16, 7)
    assert low.shape == (16, 3, 8, 8) and high.shape == (16, 3, 16, 16)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in (low, high))
    assert low.min() >= 0 and high.max() <= 1
    again = next_batch(images, 8, 16, 7)
    assert torch.equal(low, again[0]) and torch.equal(high, again[1])
    assert not torch.equal(low, next_batch(images, 8, 16, 8)[0])
    # A patch of the reduction is the reduction of the patch, away from its border: so they fit, turned alike.
    for x, y in zip(low, high, strict=True):
        reduced = matlab_downscale((y.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), 2)
        difference = np.abs(reduced - x.permute(1, 2, 0).numpy() * 255)[2:-2, 2:-2]
        assert difference.max() < 1.5


def test_one_small_image_fills_any_batch():
    image = make_image(8, 8)
    low, _ = next_batch(pack([(matlab_downscale(image, 2), image)], 2), 4, 64)
    assert len({x.numpy().tobytes() for x in low}) == 8


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_shares_make_up_the_batch(world, resident, monkeypatch):
    monkeypatch.setattr(patches, "_fits_on_device", lambda size, device: resident)
    images = pack([(matlab_downscale(p, 2), p) for p in (make_image(40, 60), make_image(80, 30, seed=1))], 2)
    whole = next_batch(images, 6, 8, 5)
    shares = []
    for rank in range(world):
        feed = feed_of(images, 6, 8, share=(rank, world))
        feed.load(4, 2)
        shares.append(feed.batch(torch.tensor(1)))
    for ours, theirs in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(ours, torch.cat(theirs))
    with pytest.raises(ValueError, match="shared by 3"):
        feed_of(images, 6, 8, share=(0, 3))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("wide", [False, True])
def test_gathered_on_the_host_or_the_device(wide, device, monkeypatch):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images = [sixteen(40, 60) if wide else make_image(40, 60), sixteen(30, 44) if wide else make_image(30, 44)]
    images = pack([(matlab_downscale(image, 2), image) for image in images], 2)
    resident = feed_of(images, 7, 6, device=device)
    monkeypatch.setattr(patches, "_fits_on_device", lambda size, where: False)
    gathered = feed_of(images, 7, 6, device=device)
    for first, count in (0, 8), (8, 3), (100, 1):
        for feed in resident, gathered:
            feed.prepare(first, count)
            feed.load(first, count)
        for i in range(count):
            at = torch.tensor(i, device=device)
            for a, b in zip(resident.batch(at), gathered.batch(at), strict=True):
                assert torch.equal(a, b) and a.stride() == b.stride() and str(a.device).startswith(device)


@pytest.mark.parametrize("resident", [True, False])
def test_buffers_stay_where_they_are(resident, monkeypatch):
    """A CUDA graph reads the same addresses at every replay; what was prepared for other steps is not used."""
    monkeypatch.setattr(patches, "_fits_on_device", lambda size, device: resident)
    image = make_image(40, 60)
    images = pack([(matlab_downscale(image, 2), image)], 2)
    feed = feed_of(images, 6, 8)
    addresses = [buffer.data_ptr() for buffer in feed.buffers]
    feed.load(0, 8)
    early = [x.clone() for x in feed.batch(torch.tensor(7))]
    feed.prepare(8, 8)
    feed.load(40, 2)
    assert [buffer.data_ptr() for buffer in feed.buffers] == addresses
    for ours, theirs in zip(feed.batch(torch.tensor(1)), next_batch(images, 6, 8, 41), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(feed.batch(torch.tensor(7)), early, strict=True):
        assert torch.equal(ours, theirs)  # steps that were not loaded again
    with pytest.raises(ValueError, match="8 at most"):
        feed.load(0, 9)


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [True, False])
def test_a_cuda_graph_of_a_batch(resident, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setattr(patches, "_fits_on_device", lambda size, device: resident)
    image = make_image(40, 60)
    images = pack([(matlab_downscale(image, 2), image)], 2)
    feed, at = feed_of(images, 6, 8, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
    feed.load(0, 8)
    feed.batch(at)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        low, high = feed.batch(at)
    for first in 0, 8, 16:
        feed.load(first, 8)
        for i in range(8):
            at.fill_(i)
            graph.replay()
            for ours, theirs in zip((low, high), next_batch(images, 6, 8, first + i), strict=True):
                torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=6e-8)  # division by 255 on a GPU: one ulp

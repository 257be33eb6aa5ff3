"""Images to train on, from files to buffers: what is taken, cut, held out and left out."""

import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edsr.data import PairedImages, PatchLoader, load_dataset, sources, train_val_split
from edsr.errors import DataError
from edsr.images import ImageReader
from edsr.images.resize import matlab_downscale
from tests.conftest import make_image
from tests.support.image_files import odd_tiff

from .files import linux, read_all, refused, same, save, sixteen_bit


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
    save(tmp_path / f"a{suffix}", sixteen_bit(40, 42, channels))
    save(tmp_path / "b.png", make_image(40, 40))
    images = read_all(tmp_path)
    assert images.hr.dtype == images.lr.dtype == torch.int16
    low, high = images.pair(0)
    assert low.dtype == high.dtype == np.uint16
    np.testing.assert_array_equal(high, np.broadcast_to(sixteen_bit(40, 42, channels), (40, 42, 3)))
    np.testing.assert_array_equal(low, matlab_downscale(high, 2))
    np.testing.assert_array_equal(images.pair(1)[1], make_image(40, 40).astype(np.uint16) * 257)
    # Half and full range are where signed storage would show.
    loader = PatchLoader(images, 4, 64, 0, "cpu", 1)
    loader.load(0, 1)
    low, high = loader.batch(torch.tensor(0))
    levels = np.unique(np.concatenate([images.pair(i)[1].reshape(-1) for i in range(2)])).astype(np.float32) / 65535
    assert np.isin(high.numpy(), levels).all() and high.max() > 0.6 and high.min() >= 0 and low.max() <= 1


def test_what_cannot_serve_is_named(folder, lines):
    (folder / "bad.png").write_bytes(b"no image")
    save(folder / "small.png", make_image(9, 9))
    Image.fromarray(np.zeros((50, 50, 4), np.uint8)).save(folder / "alpha.png")
    images = read_all(folder, patch=8)
    assert len(images) == 4
    bad, small, reading, alpha = lines()
    assert reading == "reading 5 images"
    assert "alpha.png: is transparent in places" in alpha and "bad.png: is not" in bad
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
    *odd, reading, damaged = lines()
    assert all("1b" in line and "odd" in line for line in odd)
    assert reading == "reading 5 images" and "1b" in damaged and "damaged" in damaged


def test_a_file_that_changes_between_is_left_out(folder, lines, monkeypatch):
    read = sources.read_opaque

    def changed(path, sixteen=False):
        return read(path, sixteen)[1:] if path.name == "2.png" else read(path, sixteen)

    monkeypatch.setattr(sources, "read_opaque", changed)
    assert len(read_all(folder)) == 3
    assert "2.png: has changed" in lines()[-1]


def test_nothing_left_or_nothing_there(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused("no images", tmp_path / "empty")
    assert str(tmp_path / "none") in refused("no such file or folder", tmp_path / "none")
    refused("no image left; give other folders or a smaller patch", folder, patch=400)
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


# ---- held out


@pytest.mark.parametrize(("count", "held"), [(1, 0), (2, 1), (19, 1), (20, 2), (199, 19), (200, 20), (1000, 20)])
def test_one_in_ten_is_held_out(count, held):
    images = PairedImages(1, torch.zeros(count, 3), torch.zeros(count, 3), np.ones((count, 5), np.int64))
    images.index[:, :2], images.index[:, 4] = 0, np.arange(count)
    rest, validation = train_val_split(images)
    assert (0 if validation is None else len(validation)) == held and len(rest) == count - held
    gone = np.setdiff1d(np.arange(count), rest.index[:, 4])
    if held > 1:
        assert np.ptp(np.diff(gone)) <= 1 and abs(gone[0] - (count - 1 - gone[-1])) <= 1
    assert np.array_equal(rest.index, train_val_split(images)[0].index)


def test_held_out_are_the_centers():
    originals = [make_image(40, 60, seed=i) for i in range(3)]
    images = PairedImages.from_pairs([(matlab_downscale(image, 2), image) for image in originals], 2)
    rest, validation = train_val_split(images, side=16)
    assert validation is not None and len(rest) == 2
    low, high = validation.pair(0)
    np.testing.assert_array_equal(low, matlab_downscale(originals[1], 2)[2:18, 7:23])
    np.testing.assert_array_equal(high, originals[1][4:36, 14:46])
    np.testing.assert_array_equal(rest.pair(1)[1], originals[2])


def test_crops_of_an_image_held_out_leave_together(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", make_image(96, 96, seed=i))
    images = read_all(tmp_path, crop=16)
    rest, validation = train_val_split(images, side=24)
    assert validation is not None
    assert set(rest.index[:, 4]) == {0, 2} and len(rest) == 2 * 36
    assert len(validation) == 9  # of 8 x 8, the area of one of 24 x 24
    np.testing.assert_array_equal(validation.pair(0)[1], images.pair(36 + 13)[1])


# ---- downscaling


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
    for image in make_image(203, 311), sixteen_bit(203, 311):
        np.testing.assert_array_equal(matlab_downscale(image, scale, "cuda"), matlab_downscale(image, scale))


def test_what_is_not_read_as_it_stands_is_told_once(tmp_path, caplog):
    for name in "abc":
        odd_tiff(tmp_path / f"{name}.tif", make_image(40, 40))
    Image.fromarray(make_image(40, 40)).save(tmp_path / "d.png")
    with caplog.at_level("INFO"):
        load_dataset([tmp_path], 2, 8)
    (line,) = (record.getMessage() for record in caplog.records if "a.tif" in record.getMessage())
    assert line.startswith(f"{tmp_path / 'a.tif'} and 2 more: ") and "is odd" in line


@pytest.mark.parametrize("wrong", [None, "images", Path("images")])
def test_sources_are_a_list(wrong):
    with pytest.raises(TypeError, match="sources are a list of files and folders, not"):
        load_dataset(wrong, 2, 48)

"""Where images come from: DIV2K's layout and HDF5."""

import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edsr.data import load_dataset, load_validation
from edsr.data.dataset import load_files
from edsr.data.sources import LoadSpec, find_files
from edsr.errors import DataError
from edsr.images.resize import matlab_bicubic, matlab_downscale
from tests.conftest import make_image

from .files import hdf5, read_all, refused, same, save, sixteen_bit


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
    save(div2k / "DIV2K_train_LR_bicubic" / "X2" / "0003x2.png", sixteen_bit(24, 30))
    for path in (div2k / "DIV2K_valid_HR").iterdir():
        path.unlink()
    (div2k / "DIV2K_valid_HR").rmdir()
    images, validation = load_dataset([div2k], 2, 4)
    assert validation is None and len(images) == 2 and images.hr.dtype == torch.int16
    counted, left_out = lines()[:2]
    assert counted.endswith("X2 has reductions of 3 of 3 originals")
    assert re.search("0001x2.png: has 29 x 24 pixels.* 60 x 48, not 2 times", left_out)
    np.testing.assert_array_equal(images.pair(1)[0], sixteen_bit(24, 30))


@pytest.mark.parametrize("name", ["{}x2.png", "{}.png", "{}x2.tif", "{}.PNG"])
def test_div2k_with_reductions_under_other_names(div2k, lines, name):
    reductions = div2k / "DIV2K_train_LR_bicubic" / "X2"
    given = (reductions / "0002x2.png").read_bytes()
    (reductions / "0002x2.png").unlink()
    (reductions / name.format("0002")).write_bytes(given)
    images = read_all(div2k)
    np.testing.assert_array_equal(images.pair(1)[0], make_image(24, 30, seed=99))
    assert f"{reductions} has reductions of 1 of 3 originals; the other 2 are reduced by bicubic" in lines()
    (reductions / "0002x2.webp").write_bytes(given)
    refused("may both be the reduction of 0002.png; keep one of them", div2k)


def test_div2k_without_reductions(div2k, lines):
    (div2k / "DIV2K_train_LR_bicubic" / "X2" / "0002x2.png").rename(div2k / "DIV2K_train_LR_bicubic" / "0002x2.png")
    read_all(div2k)
    training, validation = lines()[:2]
    assert training.endswith("X2 has reductions of none of 3 originals: all are reduced by bicubic")
    assert validation.endswith("X2 has reductions of 1 of 10 originals; the other 9 are reduced by bicubic")


def test_reductions_that_crops_make_useless_are_told(div2k, lines):
    read_all(div2k, crop=24)
    assert lines()[0].endswith("are not used: each square that crop cuts is reduced by bicubic")


@pytest.mark.parametrize(
    ("again", "says"),
    [(["images/sub"], "1 file is"), (["images", "sub/../images"], "10 files are"), (["link"], "5 files are")],
)
def test_a_file_named_more_than_once_is_read_once(folder, tmp_path, lines, again, says):
    save(folder / "sub" / "a.png", make_image(40, 40, seed=8))
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(folder)
    images = read_all(folder, *(tmp_path / name for name in again))
    assert lines() == [f"{says} named more than once: read only once", "reading 5 images"]
    assert same(images, read_all(folder))


def test_images_of_div2k_named_again_are_not_trained_on_and_validated_on(div2k, lines):
    again = [div2k / "DIV2K_train_HR", div2k / "DIV2K_valid_HR" / "0801.png", div2k / "DIV2K_valid_HR" / "0812.png"]
    images, validation = load_dataset([div2k, *again], 2, 4)
    assert validation is not None and len(validation) == 10 and len(images) == 3 + 1
    np.testing.assert_array_equal(images.pair(1)[0], make_image(24, 30, seed=99))  # the first name brings a reduction
    np.testing.assert_array_equal(images.pair(3)[1], make_image(48, 36, seed=812))
    assert "4 files are named more than once: read only once" in lines()


def test_one_image_is_read(folder, lines):
    read_all(folder / "0.png")
    assert lines() == ["reading 1 image"]


def test_a_cache_of_doubles_is_not_taken(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("edsr.data.dataset.drop_doubles", lambda files, others=(): list(files))
        assert len(read_all(folder, folder, cache=tmp_path / "cache")) == 8
    assert len(read_all(folder, folder, cache=tmp_path / "cache")) == 4


def test_validation_by_the_folder_of_div2k(div2k, folder):
    images = load_validation(div2k, 2)
    assert len(images) == 10
    np.testing.assert_array_equal(images.pair(9)[1], make_image(48, 36, seed=810))
    assert len(load_validation(folder, 2)) == 4


@pytest.mark.parametrize("names", [("Flickr2K_HR", "Flickr2K_LR_bicubic/X2"), ("HR", "LRx2"), ("hr", "lr")])
def test_reductions_beside_originals_are_not_trained_on(tmp_path, names):
    for name in names:
        save(tmp_path / "data" / name / "a.png", make_image(40, 40))
    assert str(tmp_path / "data" / names[0]) in refused("would be trained on as originals", tmp_path / "data")
    assert len(read_all(tmp_path / "data" / names[0])) == len(read_all(tmp_path / "data" / names[1])) == 1
    save(tmp_path / "other" / "lrose" / "a.png", make_image(40, 40))
    save(tmp_path / "other" / "HR" / "a.png", make_image(40, 40))
    assert len(read_all(tmp_path / "other")) == 2


def test_files_that_are_no_images_are_counted_by_kind(folder, tmp_path, lines, div2k):
    for name in "a.txt", "b.TXT", "c.h5", "d", ".hidden", *(f"e.{i}" for i in range(4)):
        (folder / name).touch()
    (div2k / "DIV2K_train_HR" / "notes.md").touch()
    load_dataset([folder, div2k], 2, 4)
    kinds = "2 .txt, 1 .h5, 1 without ending, 1 .0, 1 .1, 2 of other kinds"
    said = [line for line in lines() if "passed over" in line]
    assert sorted(said) == sorted(
        [
            f"8 files of {folder} are passed over, no images by their names ({kinds})",
            f"1 files of {div2k / 'DIV2K_train_HR'} are passed over, no images by their names (1 .md)",
        ]
    )


def test_a_cache_that_cannot_be_made_is_found_before_images_are_read(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("edsr.data.dataset.scan_file", lambda *_, **__: pytest.fail("reads images"))
    assert "choose another folder with cache" in refused("is no folder", folder, cache=tmp_path / "file" / "cache")


def test_alpha_that_is_opaque_is_left_out(folder, tmp_path):
    want = read_all(folder)
    for path in folder.iterdir():
        image = Image.open(path)
        image.putalpha(255)
        image.save(path)
    assert same(read_all(folder), want)


def test_div2k_deeper_is_not_taken_for_a_folder_of_images(div2k):
    assert f"give {div2k} itself" in refused("DIV2K lies deeper", div2k.parent)
    assert len(read_all(div2k / "DIV2K_train_HR")) == 3


# ---- HDF5


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
def test_hdf5(tmp_path, form, block):
    path = hdf5(tmp_path / "91-image_x3.h5", form[1](LR), form[1](HR))
    images = load_files(find_files(path), LoadSpec(3, 4, block=block))
    gray = "luma" in form[0] or "one" in form[0]
    assert len(images) == 12 and images.hr.dtype == torch.uint8
    assert images.index[:, 4].tolist() == list(range(12))
    for i in range(12):
        low, high = images.pair(i)
        np.testing.assert_array_equal(high, HR[i][..., [0, 0, 0]] if gray else HR[i])
        np.testing.assert_array_equal(low, LR[i][..., [0, 0, 0]] if gray else LR[i])


UPSCALED = np.stack([matlab_bicubic(image.astype(np.float64), 18, 24) for image in LR])


@pytest.mark.parametrize("side", [18, 17])
@pytest.mark.parametrize("block", [1, 2**22])
@pytest.mark.parametrize("form", [lambda x: x[..., 0], lambda x: x / 255, list], ids=["luma", "0..1", "groups"])
def test_hdf5_for_srcnn(tmp_path, lines, form, block, side):
    """Where lr has been upscaled, it is made anew; of hr whole multiples of the scale are taken, as of any image."""
    low, high = UPSCALED.astype(np.float32)[:, :side], HR[:, :side].astype(np.float32)
    path = hdf5(tmp_path / "91-image_x3.h5", form(low), form(high))
    images = load_files(find_files(path), LoadSpec(3, 4, block=block))
    assert [line for line in lines() if "as for SRCNN; low-resolution images are made from hr by bicubic" in line]
    assert len(images) == 12
    for i in range(12):
        want = HR[i][: side // 3 * 3]
        want = want[..., [0, 0, 0]] if form(high)[0].ndim == 2 else want
        np.testing.assert_array_equal(images.pair(i)[1], want)
        np.testing.assert_array_equal(images.pair(i)[0], matlab_downscale(want, 3))


def test_hdf5_smaller_than_a_patch(tmp_path):
    """33 pixels a side, as SRCNN has them, are 16 low-resolution ones."""
    high = np.stack([make_image(33, 33, 1, seed=i)[..., 0] for i in range(3)]).astype(np.float32)
    path = hdf5(tmp_path / "a.h5", high, high)
    refused("give other folders or a smaller patch, 16 at most", path, patch=17)
    assert len(read_all(path, patch=16)) == 3


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


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x / 127.5 - 1, "hr holds values from"),
        (lambda x: x / 255 - 0.5, "hr holds values from"),
        (lambda x: (x / 255 - 0.45) / 0.225, "holds values from"),
        (lambda x: x - 128.0, "holds values from"),
        (lambda x: x * 257.0, "holds values from 0 to 6.554e+04; bring lr and hr to 0..1 or 0..255"),
        (lambda x: x * 8.0, "holds values from 0 to 2040;"),
        (lambda x: x / 100, "hr holds values from 0 to 2.55;"),
    ],
    ids=["signed", "centered", "normalized", "minus 128", "16 bits", "11 bits", "percent"],
)
def test_hdf5_of_other_ranges_is_refused(tmp_path, change, says, grouped, kind):
    values = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3))
    values[:, :2, :2], values[:, 2:4, 2:4] = 0, 255
    high, low = (change(x.astype(kind)) for x in (values, values[:, ::2, ::2]))
    low = low if not says.startswith("hr") else np.clip(low, 0, 1)
    refused(says, hdf5(tmp_path / "a.h5", *((list(low), list(high)) if grouped else (low, high))))


def test_hdf5_of_two_kinds_or_ranges(tmp_path, lines):
    """Whole numbers beside floating point are each read as what they are."""
    want = read_all(hdf5(tmp_path / "a.h5", LR, HR), scale=3)
    lines()
    for low, high in (LR, HR / 255), (LR / 255, HR), (LR.astype(float), HR):
        assert same(read_all(hdf5(tmp_path / "b.h5", low, high), scale=3), want)
        assert " (white)" in lines()[0]
    refused("lr holds values in 0..1, the other in 0..255", hdf5(tmp_path / "c.h5", LR / 255, HR / 1.0), scale=3)
    refused("hr holds values in 0..1, the other in 0..255", hdf5(tmp_path / "d.h5", LR / 1.0, HR / 255), scale=3)


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


@settings(max_examples=60, deadline=None)
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

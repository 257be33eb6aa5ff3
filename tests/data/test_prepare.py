"""Images written as HDF5, read by h5py itself, by `train` and by `evaluate`."""

import os
import signal
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from edsr.cli import main
from edsr.data import load_dataset, prepare_hdf5
from edsr.errors import DataError
from edsr.images import matlab_bicubic, matlab_downscale
from edsr.progress import Silent
from tests.conftest import make_image

from .files import hdf5, linux, save, sixteen_bit

h5py = pytest.importorskip("h5py")


def luma(image, white=255):
    return 16 + image @ np.array([65.481, 128.553, 24.966]) / white


def upscaled(image, height, width):
    return np.clip(np.floor(matlab_bicubic(image.astype(float), height, width) + 0.5), 0, 255)


def cut(image, side, stride):
    down, across = (range(0, length - side + 1, stride) for length in image.shape[:2])
    return [image[y : y + side, x : x + side] for y in down for x in across]


def contents(path):
    with h5py.File(path) as file:
        return {
            key: {name: item[()] for name, item in data.items()} if isinstance(data, h5py.Group) else data[()]
            for key, data in file.items()
        }


@pytest.fixture
def images(folder):
    """What `folder` has."""
    return [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("color", ["luma", "rgb"])
@pytest.mark.parametrize(("scale", "patch", "stride"), [(2, 24, None), (2, 20, 6), (3, 24, 9), (4, None, None)])
def test_patches(folder, images, tmp_path, scale, patch, stride, color):
    out = tmp_path / "a.h5"
    written = prepare_hdf5([folder], out, scale, patch=patch, stride=stride, color=color)
    convert = luma if color == "luma" else lambda image: image
    side = patch or 48
    step = stride or side
    low, high = [], []
    for image in images:
        image = image[: len(image) // scale * scale, : image.shape[1] // scale * scale]
        high += cut(convert(image), side, step)
        low += cut(convert(matlab_downscale(image, scale)), side // scale, step // scale)
    got = contents(out)
    assert set(got) == {"lr", "hr"} and written[:2] == (len(high), 4)
    assert got["hr"].dtype == got["lr"].dtype == (np.float32 if color == "luma" else np.uint8)
    np.testing.assert_allclose(got["hr"], np.stack(high), rtol=1e-6)
    np.testing.assert_allclose(got["lr"], np.stack(low), rtol=1e-6)


@pytest.mark.parametrize("color", ["luma", "rgb"])
@pytest.mark.parametrize("upscale", [False, True])
def test_whole_images(folder, images, tmp_path, color, upscale):
    """By numbers, in order; a gray one stays as it is, and gray."""
    gray = save(folder / "5.png", make_image(33, 41, 1)).name
    images.append(make_image(33, 41, 1)[..., 0])
    prepare_hdf5([folder], tmp_path / "a.h5", 2, "eval", color=color, upscaled=upscale)
    got = contents(tmp_path / "a.h5")
    assert gray == "5.png" and set(got["hr"]) == set(got["lr"]) == set("01234")
    for i, image in enumerate(images):
        image = image[: len(image) // 2 * 2, : image.shape[1] // 2 * 2]
        low = matlab_downscale(image, 2)
        low = upscaled(low, *image.shape[:2]) if upscale else low
        high, low = (x if x.ndim == 2 or color == "rgb" else luma(x) for x in (image, low))
        np.testing.assert_allclose(got["hr"][str(i)], high, rtol=1e-6)
        np.testing.assert_allclose(got["lr"][str(i)], low, rtol=1e-6)


def test_patches_for_srcnn(folder, images, tmp_path):
    prepare_hdf5([folder], tmp_path / "a.h5", 3, patch=33, stride=14, upscaled=True)
    got = contents(tmp_path / "a.h5")
    low = []
    for image in images:
        image = image[: len(image) // 3 * 3, : image.shape[1] // 3 * 3]
        low += cut(luma(upscaled(matlab_downscale(image, 3), *image.shape[:2])), 33, 14)
    assert got["lr"].shape == got["hr"].shape == (len(low), 33, 33)
    np.testing.assert_allclose(got["lr"], np.stack(low), rtol=1e-6)


def test_sixteen_bits_and_gray_among_patches(tmp_path):
    deep, gray = sixteen_bit(24, 24), make_image(24, 24, 1)
    paths = [save(tmp_path / "in" / "a.png", deep), save(tmp_path / "in" / "b.png", gray)]
    prepare_hdf5(paths, tmp_path / "a.h5", patch=24)
    got = contents(tmp_path / "a.h5")["hr"]
    np.testing.assert_allclose(got, [luma(deep, 65535), gray[..., 0]], rtol=1e-6)
    prepare_hdf5(paths, tmp_path / "b.h5", patch=24, color="rgb")
    got = contents(tmp_path / "b.h5")["hr"]
    np.testing.assert_array_equal(got, [deep, np.repeat(gray, 3, 2).astype(np.uint16) * 257])
    prepare_hdf5(paths, tmp_path / "c.h5", kind="eval", color="rgb")
    got = contents(tmp_path / "c.h5")["hr"]
    np.testing.assert_array_equal(got["0"], np.rint(deep / 257))
    np.testing.assert_array_equal(got["1"], gray[..., 0])


def test_the_layout_of_div2k(div2k, tmp_path):
    """Reductions that it has are taken; whole images are those for validation."""
    prepare_hdf5([div2k], tmp_path / "a.h5", patch=48, color="rgb")
    assert contents(tmp_path / "a.h5")["lr"].shape == (3, 24, 24, 3)
    np.testing.assert_array_equal(contents(tmp_path / "a.h5")["lr"][1], make_image(24, 30, seed=99)[:, :24])
    prepare_hdf5([div2k], tmp_path / "b.h5", kind="eval", color="rgb")
    got = contents(tmp_path / "b.h5")
    assert len(got["hr"]) == 12
    np.testing.assert_array_equal(got["hr"]["11"], make_image(48, 36, seed=812))
    np.testing.assert_array_equal(got["lr"]["0"], make_image(24, 18, seed=99))


def test_a_file_named_more_than_once_is_written_once(folder, tmp_path, lines):
    prepare_hdf5([folder, folder / "0.png", folder], tmp_path / "a.h5", kind="eval")
    assert len(contents(tmp_path / "a.h5")["hr"]) == 4
    assert lines() == ["5 files are named more than once: read only once", "reading 4 images"]


def test_hdf5_as_a_source(tmp_path):
    high = np.stack([make_image(24, 30, 1, seed=i)[..., 0] for i in range(5)])
    low = np.stack([make_image(12, 15, 1, seed=9 + i)[..., 0] for i in range(5)])
    path = hdf5(tmp_path / "a.h5", low.astype(np.float32), high.astype(np.float32))
    prepare_hdf5([path], tmp_path / "b.h5", kind="eval")
    got = contents(tmp_path / "b.h5")
    for i in range(5):
        np.testing.assert_array_equal(got["hr"][str(i)], high[i])
        np.testing.assert_array_equal(got["lr"][str(i)], low[i])


def test_from_prepare_to_scores(folder, home, tiny, run):
    """What is written is trained on and scored with, by the lines that `prepare` gives."""
    code, out, said = run("prepare", "--data", folder, "--out", "a.h5", "--patch", 32, "--stride", 16)
    assert code == 0 and "a.h5\n  24 patches of 32 x 32 pixels in luma, from 4 images; ready for " in out
    assert "reading 4 images" in said
    train = out.rpartition("ready for ")[2].split()
    assert train == ["train", "--data", "a.h5", "--scale", "2", "--patch", "16"]
    short = ["--out", "runs/a", "--steps", 3, "--batch", 2, "--device", "cpu"]
    code, _, said = run(*train[:-2], *short)
    assert code == 1 and "give other folders or a smaller --patch, 16 at most" in said.splitlines()[-1]
    assert run(*train, *short)[0] == 0
    code, out, _ = run("prepare", "--data", folder, "--out", "e.h5", "--kind", "eval")
    assert code == 0 and "4 images in luma; ready for evaluate --hr e.h5 --scale 2" in out
    score = out.rpartition("ready for ")[2].split()
    code, out, said = run(*score, "--model", "runs/a/best.safetensors")
    assert code == 0 and "mean of 4" in out and "4 of 4" in said
    code, out, said = run("prepare", "--data", folder, "--out", "q.h5", "--quiet")
    assert (code, out, said) == (0, "", "")


def test_patches_are_trained_on_as_they_are(folder, tmp_path):
    prepare_hdf5([folder], tmp_path / "a.h5", patch=24, color="rgb")
    images, got = load_dataset([tmp_path / "a.h5"], 2, 12)[0], contents(tmp_path / "a.h5")
    assert len(images) == len(got["hr"]) == 16
    for i in range(16):
        np.testing.assert_array_equal(images.pair(i)[0], got["lr"][i])
        np.testing.assert_array_equal(images.pair(i)[1], got["hr"][i])


def test_what_does_not_suit_is_named(folder, tmp_path, lines):
    (folder / "0b.png").write_bytes(b"no image")
    save(folder / "1b.png", make_image(23, 60))
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(folder / "2b.png")
    (folder / "2b.png").write_bytes((folder / "2b.png").read_bytes()[:9000])
    Image.fromarray(np.zeros((50, 50, 4), np.uint8)).save(folder / "3b.png")
    assert main(["prepare", "--data", str(folder), "--out", str(tmp_path / "a.h5")]) == 0
    for kind, count in ("train", 16), ("eval", 5):
        out = tmp_path / f"{kind}.h5"
        written = prepare_hdf5([folder], out, kind=kind, patch=24 if kind == "train" else None)
        said = " | ".join(lines())
        assert "0b.png: is not" in said and "2b.png: damaged" in said and "3b.png: is transparent in places" in said
        assert ("1b.png: 60 x 23 is smaller than 24 x 24 pixels: left out" in said) == (kind == "train")
        assert written.pairs == count and len(contents(out)["hr"]) == count


@pytest.mark.parametrize(
    ("options", "says", "code"),
    [
        (["--patch", 25], "--patch must be a multiple of 2, in HR pixels, not 25", 2),
        (["--stride", 3], "--stride must be a multiple of 2, in HR pixels, not 3", 2),
        (["--kind", "eval", "--patch", 24], "leave them out, or give --kind train", 2),
        (["--out", "a.npz"], "a.npz: HDF5 files are told by their names; name it a.h5", 2),
        (["--out", "there.h5"], "there.h5 exists; add --overwrite to replace it", 1),
        (["--out", "nowhere/a.h5"], "there is no folder nowhere, create it first", 1),
        (["--data", "there.h5", "--out", "there.h5", "--overwrite"], "there.h5: is the source itself", 1),
        (["--data", "gone"], "gone: no such file or folder; give another with --data", 1),
        (["--data", "empty"], "empty: no images in this folder", 1),
        (["--data", "broken"], "no image left; give other folders", 1),
        (["--data", "cut"], "no image left that can be read; give other folders", 1),
        (["--patch", 64], "no image left; give other folders or a --patch of 62 at most", 1),
        (["--data", "bare.h5"], "bare.h5: holds no lr; in the 91-image layout there are lr and hr", 1),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_nothing_is_written(folder, home, run, options, says, code):
    hdf5(home / "there.h5", make_image(24, 24)[None], make_image(48, 48)[None])
    h5py.File(home / "bare.h5", "w").close()
    for name in "empty", "broken", "cut":
        (home / name).mkdir()
    (home / "broken" / "a.png").write_bytes(b"no image")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).save(home / "cut" / "a.png")
    (home / "cut" / "a.png").write_bytes((home / "cut" / "a.png").read_bytes()[:9000])
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    data = [] if "--data" in options else ["--data", folder]
    out = [] if "--out" in options else ["--out", "a.h5"]
    got, printed, said = run("prepare", *data, *out, *options)
    assert (got, printed) == (code, "") and says in said.splitlines()[-1]
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    if options == ["--out", "there.h5"]:
        assert run("prepare", *data, *options, "--overwrite")[0] == 0
        assert len(contents(home / "there.h5")["hr"]) == 4


def test_misuse_in_python(folder, tmp_path, monkeypatch):
    for wrong in {"kind": "test"}, {"color": "y"}:
        with pytest.raises(ValueError, match="kind is train or eval"):
            prepare_hdf5([folder], tmp_path / "a.h5", **wrong)
    with pytest.raises(TypeError, match="a list of files"):
        prepare_hdf5(str(folder), tmp_path / "a.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"pip install 'edsr-triton\[train\]'"):
        prepare_hdf5([folder], tmp_path / "a.h5")


@linux
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_a_full_disk(folder, tmp_path, capfd, kind):
    """Of whatever size: HDF5 would print tracebacks, and pass over errors at its end."""
    import resource

    out, (soft, hard) = tmp_path / "out" / "a.h5", resource.getrlimit(resource.RLIMIT_FSIZE)
    out.parent.mkdir()
    prepare_hdf5([folder], out, kind=kind)
    whole = out.read_bytes()
    for size in (0, 100, 2048, len(whole) // 2, len(whole) - 2048, len(whole) - 1):
        out.unlink(missing_ok=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(DataError, match=r"a.h5: cannot be written \(File too large\)"):
                prepare_hdf5([folder], out, kind=kind)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not os.listdir(out.parent)
    assert "Traceback" not in capfd.readouterr().err


@linux
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_an_interruption_leaves_nothing(folder, tmp_path, kind):
    """It is met by the main thread, never inside of HDF5."""

    class Interrupting(Silent):
        def advance(self, rows):
            assert threading.current_thread() is not threading.main_thread()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        prepare_hdf5([folder], tmp_path / "out" / "a.h5", kind=kind, progress=Interrupting())
    assert not os.listdir(tmp_path / "out")


def test_patches_are_not_gathered_in_memory(tmp_path):
    source = hdf5(tmp_path / "in.h5", make_image(75, 75)[None], make_image(150, 150)[None])
    tracemalloc.start()
    try:
        written = prepare_hdf5([source], tmp_path / "a.h5", stride=2, color="rgb")
        assert written.pairs == 52**2 and tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()
    assert (tmp_path / "a.h5").stat().st_size > 18e6

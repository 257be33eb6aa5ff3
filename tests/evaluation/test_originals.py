"""Scores of images in HDF5 files; of folders in test_scoring."""

import json
import re
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from edsr.errors import DataError, EvaluateError
from edsr.evaluation.metrics import PROTOCOLS
from edsr.evaluation.scoring import evaluate
from edsr.images import matlab_bicubic, matlab_downscale
from edsr.inference.upscaler import Upscaler
from edsr.weights import save_model
from tests.conftest import make_image, repeating_network
from tests.data.files import hdf5

HR = [make_image(40 + 2 * i, 36, seed=i) for i in range(3)]
LR = [matlab_downscale(image, 2) for image in HR]
PATCHES = np.stack([make_image(40, 36, seed=i) for i in range(3)])
REDUCED = np.stack([matlab_downscale(image, 2) for image in PATCHES])


def luma(image):
    """BT.601 as files of this kind have it: 16..235, not rounded."""
    return (16 + image @ np.array([65.481, 128.553, 24.966]) / 255).astype(np.float32)


def psnr(a, b, border=2):
    a, b = (x[border:-border, border:-border].astype(float) for x in (a, b))
    return 10 * np.log10(255**2 / np.mean((a - b) ** 2))


def repeat(image):
    return image.repeat(2, 0).repeat(2, 1)


@pytest.fixture(scope="module")
def up():
    return Upscaler(repeating_network(2), device="cpu")


FORMS = {
    "groups": (list(map(luma, LR)), list(map(luma, HR)), ["0", "1", "2"]),
    "groups in 0..1": ([luma(x) / 255 for x in LR], [luma(x) / 255 for x in HR], ["0", "1", "2"]),
    "datasets": (luma(REDUCED), luma(PATCHES), ["a[0]", "a[1]", "a[2]"]),
    "channels first": (luma(REDUCED)[:, None], luma(PATCHES)[:, None], ["a[0]", "a[1]", "a[2]"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_luma_is_scored_as_it_is(tmp_path, up, form):
    """Rounded to 8 bits, as MATLAB has it, and never converted to luma again."""
    low, high, names = FORMS[form]
    found = list(evaluate(up, hdf5(tmp_path / "a.h5", low, high)))
    assert [image["name"] for image in found] == names
    pairs = zip(LR, HR, strict=True) if "groups" in form else zip(REDUCED, PATCHES, strict=True)
    for image, (small, large) in zip(found, pairs, strict=True):
        small, large = np.rint(luma(small)), np.rint(luma(large))
        assert image["psnr"] == pytest.approx(psnr(repeat(small), large))
        bicubic = np.floor(matlab_bicubic(small.astype(np.float64), *large.shape) + 0.5)
        assert image["bicubic_psnr"] == pytest.approx(psnr(bicubic, large))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("odd", [0, 1])
def test_what_was_upscaled_for_srcnn_is_made_anew(tmp_path, up, caplog, grouped, odd):
    caplog.set_level("INFO", "edsr")
    high = luma(PATCHES)[:, : 40 - odd]
    low = np.stack([matlab_bicubic(luma(x), 40, 36) for x in REDUCED])[:, : 40 - odd]
    path = hdf5(tmp_path / "a.h5", list(low) if grouped else low, list(high) if grouped else high)
    found = list(evaluate(up, path))
    assert len(found) == 3 and "low-resolution images are made from hr by bicubic" in caplog.text
    for image, large in zip(found, high, strict=True):
        large = np.rint(large[: (40 - odd) // 2 * 2]).astype(np.uint8)
        assert image["psnr"] == pytest.approx(psnr(repeat(matlab_downscale(large, 2)), large))


def test_luma_is_not_converted_again(tmp_path, up):
    path = hdf5(tmp_path / "a.h5", luma(REDUCED), luma(PATCHES))
    assert list(evaluate(up, path, protocol="edsr")) == list(evaluate(up, path))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rgb_is_scored_as_images_are(tmp_path, up, protocol):
    for name, images in ("hr", HR), ("lr", LR):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    want = list(evaluate(up, tmp_path / "hr", tmp_path / "lr", protocol))
    for low, high in (LR, HR), ([x / 255 for x in LR], [x / np.float32(255) for x in HR]):
        found = list(evaluate(up, hdf5(tmp_path / "a.h5", low, high), protocol=protocol))
        assert [image | {"name": f"{image['name']}.png"} for image in found] == want


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        ([], [], "holds no lr; in the 91-image layout there are lr and hr"),
        (REDUCED[:0], PATCHES[:0], "holds no images"),
        (REDUCED.astype(np.uint16), PATCHES.astype(np.uint16), "has 16 bits"),
        (REDUCED[:, :8], PATCHES[:, :16], "36 x 16 pixels are too few to score"),
        (REDUCED[:, :9], PATCHES, "is not 2 x lr [3, 9, 18, 3]; ask for the scale of the file"),
        (REDUCED / 127.5 - 1, PATCHES / 127.5 - 1, "bring lr and hr to 0..1 or 0..255"),
    ],
    ids=["no datasets", "empty", "16 bits", "small", "another scale", "signed"],
)
def test_files_that_cannot_be_scored(tmp_path, up, low, high, says):
    path = hdf5(tmp_path / "a.h5", low, high)
    with pytest.raises((DataError, EvaluateError), match=re.escape(says)) as caught:
        list(evaluate(up, path))
    assert "a.h5" in str(caught.value) and "\n" not in str(caught.value)


def test_one_that_does_not_suit_is_named(tmp_path, up):
    low, high = [list(map(luma, images)) for images in (LR, HR)]
    want = list(evaluate(up, hdf5(tmp_path / "a.h5", low, high)))
    nan = high[1].copy()
    nan[3, 4] = np.nan
    cases = {
        "hr/1: holds values that are no numbers": (low[1], nan),
        "pixels are too few": (low[1][:4], high[1][:8]),
        "is gray": (LR[1], high[1]),
        "16 bits": (low[1].astype(np.uint16), high[1].astype(np.uint16)),
    }
    for says, (small, large) in cases.items():
        path = hdf5(tmp_path / "b.h5", [low[0], small, low[2]], [high[0], large, high[2]])
        first, wrong, last = evaluate(up, path)
        assert [first, last] == [want[0], want[2]]
        assert wrong["name"] == "1" and says in wrong["error"]


def test_on_the_command_line(tmp_path, run):
    save_model(repeating_network(2), tmp_path / "m.safetensors")
    path = hdf5(tmp_path / "Set5_x2.h5", luma(REDUCED), luma(PATCHES))
    command = ["evaluate", "--hr", path, "--model", tmp_path / "m.safetensors"]
    code, out, said = run(*command, "--save", tmp_path / "results")
    assert code == 0 and out.count("Set5_x2[") == 3 and "mean of 3" in out
    assert "gray images and luma are scored on their values as they are: 3 of 3" in said
    for i in range(3):
        with Image.open(tmp_path / "results" / f"Set5_x2[{i}]_x2.png") as image:
            np.testing.assert_array_equal(np.asarray(image), repeat(np.rint(luma(REDUCED[i]))))
    code, out, said = run(*command, "--json")
    document = json.loads(out)
    assert code == 0 and document["hr"] == str(path) and len(document["images"]) == 3
    code, _, said = run(*command, "--lr", tmp_path)
    assert code == 2 and "holds its low-resolution images itself; leave out --lr" in said
    hdf5(path, luma(REDUCED)[:, :7], luma(PATCHES)[:, :14])
    code, _, said = run(*command)
    assert code == 1 and said.count("too few to score") == 1


def test_images_are_read_one_by_one(tmp_path, up):
    patches = np.broadcast_to(PATCHES[:1, ..., 0], (40_000, 40, 36))  # 58 MB
    path = hdf5(tmp_path / "a.h5", patches[:, ::2, ::2], patches)
    tracemalloc.start()
    try:
        scores = evaluate(up, path)
        for _ in range(3):
            assert np.isfinite(next(scores)["psnr"])
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()

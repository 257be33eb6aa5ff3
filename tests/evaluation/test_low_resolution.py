"""Low-resolution images by the names of other projects: the right file, or a line."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edsr.errors import EvaluateError, ImageError
from edsr.evaluation.low_resolution import LowResolution
from tests.conftest import make_image

TARGET, SMALL = make_image(8, 12), make_image(4, 6, seed=1)


def saved(path, pixels=SMALL):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    ("original", "given", "file"),
    [
        ("baby", "LR_bicubic", "LR_bicubic/X2/babyx2.png"),  # EDSR-PyTorch, SwinIR
        ("baby", "LR_bicubic/X2", "LR_bicubic/X2/babyx2.png"),
        ("0801", "DIV2K_valid_LR_bicubic", "DIV2K_valid_LR_bicubic/X2/0801x2.png"),
        ("0801", ".", "DIV2K_valid_LR_bicubic/X2/0801x2.png"),
        ("0801", ".", "DIV2K_valid_LR_bicubic_X2/0801.png"),
        ("baby", ".", "LRbicx2/baby.png"),  # BasicSR
        ("baby", ".", "LRx2/baby.bmp.png"),
        ("baby_HR_x2", "LRBI", "LRBI/x2/baby_LRBI_x2.png"),  # RCAN
        ("baby_GT", "LR", "LR/baby.png"),
        ("img_HR", "x2", "x2/img_LR.png"),
        ("Baby", "lr", "lr/BABY_x2.PNG"),
        ("a-HR", "lr", "lr/a-LR-x2.png"),
    ],
)
def test_names_of_other_projects(tmp_path, caplog, original, given, file):
    if file.endswith("baby.bmp.png"):
        original = "baby.bmp"
    saved(tmp_path / file)
    for other in "LR_bicubic/X3/babyx3.png", "LRx4/baby.png", "HR_x2/baby.png", "HR/x2/0801.png", "EDSR_x2/a.png":
        if not file.startswith(other.split("/")[0]):
            saved(tmp_path / other, TARGET)
    with caplog.at_level(logging.INFO, "edsr"):
        images = LowResolution(tmp_path / given, 2)
    np.testing.assert_array_equal(images.read(tmp_path / f"{original}.png", TARGET), SMALL)
    found = (tmp_path / file).parent
    assert [record.message for record in caplog.records] == (
        [] if found == tmp_path / given else [f"low-resolution images are read from {found}"]
    )


def test_images_of_the_folder_itself_come_first(tmp_path):
    saved(tmp_path / "a.png")
    saved(tmp_path / "X2" / "a.png", SMALL // 2)
    np.testing.assert_array_equal(LowResolution(tmp_path, 2).read(tmp_path / "a.png", TARGET), SMALL)


def test_several_folders_or_none(tmp_path):
    saved(tmp_path / "LR_bicubic/X2/a.png")
    saved(tmp_path / "LR_unknown/X2/a.png")
    with pytest.raises(EvaluateError, match=r"LR_bicubic.X2 and LR_unknown.X2; name one of these"):
        LowResolution(tmp_path, 2)
    for folder in tmp_path, tmp_path / "gone":
        with pytest.raises(ImageError):
            LowResolution(folder, 3)


def test_two_files_that_may_be_meant(tmp_path):
    saved(tmp_path / "ax2.png")
    saved(tmp_path / "a_LR.png")
    with pytest.raises(EvaluateError, match=r"a_LR.png and ax2.png may both belong to a_HR.png; keep one"):
        LowResolution(tmp_path, 2).read(tmp_path / "a_HR.png", TARGET)


def test_images_that_belong_to_no_original(tmp_path):
    for name in "a.png", "bx2.png", "c_LR.png", "d.png", "a_other.png":
        saved(tmp_path / name)
    images = LowResolution(tmp_path, 2)
    assert images.unused([Path("hr/a.png"), Path("hr/b.png"), Path("hr/C_HR.png")]) == [
        tmp_path / "a_other.png",
        tmp_path / "d.png",
    ]
    assert images.unused([Path(name) for name in ("a.png", "b.png", "c.png", "d.png", "a_other.png")]) == []


def test_evaluate_names_them(home, run):
    for name, size in (("hr/a.png", 40), ("lr/a.png", 20), ("lr/b.png", 20)):
        saved(home / name, make_image(size, size))
    evaluate = ["evaluate", "--hr", "hr", "--lr", "lr", "--model", "m.safetensors"]
    code, out, err = run(*evaluate)
    assert code == 0 and "mean of 1 " in out
    assert err == "low-resolution images without an original in hr are not scored: b.png\n"
    assert run(*evaluate, "--quiet") == (0, out, "")
    saved(home / "lr/a.png", make_image(21, 20))
    code, _, err = run(*evaluate, "--quiet")
    assert code == 1 and err.startswith("a.png: 40 x 40 is not 2 times its low-resolution image, 20 x 21")

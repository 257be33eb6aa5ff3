"""The images of a study: which are trained on, which are scored."""

import logging

import numpy as np
import pytest
from PIL import Image

from edsr.errors import DataError, StudyError
from edsr.study.images import make_test_squares, split_images
from tests.study.conftest import photographs


def test_folders_that_are_split_already(tmp_path):
    photographs(tmp_path / "images" / "train", 2)
    photographs(tmp_path / "images" / "test", 1)
    split = split_images([tmp_path], None)
    assert [p.parent.name for p in split.training] == ["train"] * 2 and [p.parent.name for p in split.test] == ["test"]


def test_one_in_ten_is_held_out(tmp_path):
    photographs(tmp_path / "all", 12, 8)
    split = split_images([tmp_path / "all"], None)
    assert len(split.test) == 1 and len(split.training) == 11 and not {*split.test} & {*split.training}


def test_a_folder_of_its_own_to_score(tmp_path):
    photographs(tmp_path / "a", 3, 8)
    photographs(tmp_path / "b", 2, 8)
    split = split_images([tmp_path / "a"], tmp_path / "b")
    assert len(split.training) == 3 and len(split.test) == 2


def test_what_is_scored_is_not_trained_on(tmp_path):
    photographs(tmp_path / "a", 3, 8)
    with pytest.raises(StudyError, match=r"0\.png: would be trained on and scored"):
        split_images([tmp_path / "a"], tmp_path / "a")


def test_no_images(tmp_path):
    with pytest.raises(DataError, match="no images"):
        split_images([tmp_path], None)


def test_squares_are_the_middles(tmp_path):
    photographs(tmp_path / "a", 3)
    Image.new("RGB", (100, 200)).save(tmp_path / "a" / "small.png")
    made = make_test_squares(sorted((tmp_path / "a").iterdir()), tmp_path / "test", 10)
    assert [p.name for p in made] == ["000-0.png", "001-1.png", "002-2.png"]
    whole = np.asarray(Image.open(tmp_path / "a" / "0.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(made[0])), whole[6:134, 6:134])
    with pytest.raises(StudyError, match="no image to score of 128 x 128"):
        make_test_squares([tmp_path / "a" / "small.png"], tmp_path / "other", 10)


def test_middles_of_one_color_are_left_out_and_counted(tmp_path, caplog):
    """Networks may be exact on them, and infinite PSNR has no mean."""
    caplog.set_level(logging.WARNING, "edsr")
    photographs(tmp_path / "a", 2)
    for name, color in ("white", "white"), ("z", (9, 9, 9)):
        Image.new("RGB", (140, 140), color).save(tmp_path / "a" / f"{name}.png")
    framed = Image.new("RGB", (128, 128), "white")  # by fewer pixels than are left out at x4
    framed.paste("black", (0, 0, 128, 3))
    framed.save(tmp_path / "a" / "framed.png")
    files = sorted((tmp_path / "a").iterdir())
    assert [p.name for p in make_test_squares(files, tmp_path / "test", 10)] == ["000-0.png", "001-1.png"]
    assert "3 of 5 images to score have a middle of one color, or one luma: left out" in caplog.text
    with pytest.raises(StudyError, match="or more that is not of one color"):
        make_test_squares([tmp_path / "a" / "white.png"], tmp_path / "other", 10)
    assert not (tmp_path / "other").exists()


def test_squares_are_there_whole_or_not_at_all(tmp_path, monkeypatch):
    photographs(tmp_path / "a", 4)
    files, save, saved = sorted((tmp_path / "a").iterdir()), Image.Image.save, []

    def interrupted(*arguments, **more):
        save(*arguments, **more)
        saved.append(arguments)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", interrupted)
        make_test_squares(files, tmp_path / "test", 4)
    assert len(saved) == 2 and [p.name for p in tmp_path.iterdir()] == ["a"]
    made = make_test_squares(files, tmp_path / "test", 4)
    assert len(made) == 4
    before = [path.stat().st_mtime_ns for path in made]
    assert make_test_squares([], tmp_path / "test", 4) == made
    assert [path.stat().st_mtime_ns for path in made] == before


def test_squares_that_cannot_be_written(tmp_path):
    photographs(tmp_path / "a", 1)
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="cannot be written"):
        make_test_squares([*(tmp_path / "a").iterdir()], tmp_path / "file" / "test", 4)

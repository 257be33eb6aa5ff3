import os
import sys
from pathlib import Path

import pytest

from edsr.batch.jobs import plan_jobs
from edsr.errors import ImageError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Empty files are enough: nothing is opened."""
    for name in "p/a.png", "p/b.JPG", "p/in/c.webp", "p/in/deep/ä [1].tif", "p/.hidden.png", "p/text.txt", "q/a.png":
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(*inputs: str, output: str | None = None, recursive=False) -> dict[str, str]:
    """Source -> output, of inputs that are all good."""
    result = plan_jobs(inputs, output, "x2", None, recursive)
    assert not result.errors
    return {job.source.as_posix(): job.output.as_posix() for job in result.jobs}


def test_beside_each_image(tree):
    assert plan("p") == {"p/a.png": "p/a_x2.png", "p/b.JPG": "p/b_x2.png"}
    assert plan("q/a.png", "p/a.png") == {"q/a.png": "q/a_x2.png", "p/a.png": "p/a_x2.png"}


def test_a_tree_is_mirrored(tree):
    assert plan("p", output="out/", recursive=True) == {
        "p/a.png": "out/a_x2.png",
        "p/b.JPG": "out/b_x2.png",
        "p/in/c.webp": "out/in/c_x2.png",
        "p/in/deep/ä [1].tif": "out/in/deep/ä [1]_x2.png",
    }
    assert not (tree / "out").exists()  # made when there is something to write


@pytest.mark.parametrize(
    ("inputs", "output"), [(["p"], "new"), (["p/a.png", "p/b.JPG"], "new.v2"), (["p/a.png"], "new"), (["p"], "new.v2/")]
)
def test_a_name_that_can_only_be_a_folders_is_one(tree, inputs, output):
    made = plan_jobs(inputs, output, "x2")
    assert made.into_folder and not made.errors
    assert {job.output.parent.as_posix() for job in made.jobs} == {output.rstrip("/")}


@pytest.mark.parametrize(("inputs", "output"), [(["p/a.png"], "new.v2"), (["p/a.png"], "new.png")])
def test_a_name_with_an_extension_is_a_files(tree, inputs, output):
    made = plan_jobs(inputs, output, "x2")
    assert not made.into_folder and [job.output.as_posix() for job in made.jobs] == [output]


@pytest.mark.parametrize(("inputs", "output"), [(["p"], "new.png"), (["p/a.png", "q/a.png"], "p/text.txt")])
def test_many_images_for_one_file_are_misuse(tree, inputs, output):
    with pytest.raises(ImageError, match="need a folder after -o") as caught:
        plan_jobs(inputs, output, "x2")
    assert caught.value.misuse


def test_one_name_twice_does_not_collide(tree):
    (tree / "p" / "a.jpg").touch()
    assert plan("p") == {"p/a.jpg": "p/a_jpg_x2.png", "p/a.png": "p/a_png_x2.png", "p/b.JPG": "p/b_x2.png"}


def test_results_of_an_earlier_run_are_no_inputs(tree):
    (tree / "p" / "a_x2.png").touch()
    assert "p/a_x2.png" not in plan("p")
    assert plan("p/a_x2.png") == {"p/a_x2.png": "p/a_x2_x2.png"}  # but where it is named, it is meant
    assert plan("p/a.png", "p/a_x2.png") == {"p/a.png": "p/a_x2.png"}  # unless it would be overwritten by another
    (tree / "p" / "a.jpg").touch()
    for name in "a_png_x2.png", "a_jpg_x2.png", "b_x2.webp":
        (tree / "p" / name).touch()
    assert plan("p") == {"p/a.jpg": "p/a_jpg_x2.png", "p/a.png": "p/a_png_x2.png", "p/b.JPG": "p/b_x2.png"}


def test_a_list_in_a_list_is_a_name(tree):
    (tree / "list.txt").write_text("@list.txt\n", encoding="utf-8")
    assert plan("@list.txt") == {"@list.txt": "@list_x2.png"}


def test_lists_patterns_and_repeats(tree):
    (tree / "list.txt").write_text("p/a.png\n\n  p/in  \np/a.png\n", encoding="utf-8")
    assert list(plan("@list.txt")) == ["p/a.png", "p/in/c.webp"]
    assert list(plan("p/*.png", "p")) == ["p/a.png", "p/b.JPG"]
    assert list(plan("p/in/deep/ä [1].tif")) == ["p/in/deep/ä [1].tif"]  # a name, though it looks like a pattern


def test_named_inputs_that_are_left_out_are_told(tree):
    (tree / "p" / "a_x2.png").touch()
    assert plan_jobs(["p/a.png", "p/a_x2.png"], None, "x2").left_out == [Path("p/a_x2.png")]
    assert plan_jobs(["p/a_x2.png", "p"], None, "x2").left_out == [Path("p/a_x2.png")]
    assert plan_jobs(["p/*.png"], None, "x2").left_out == [Path("p/a_x2.png")]
    assert plan_jobs(["p"], None, "x2").left_out == []  # found in a folder, nobody has named it
    assert plan_jobs(["p/a_x2.png"], None, "x2").left_out == []


BAD = {
    "empty/": "empty: no images",
    "@none.txt": "none.txt: the list cannot be read",
    "@half.txt": "half.txt: the list cannot be read (",
    "@blank.txt": "blank.txt: the list is empty",
    "p/*.gif": "p/*.gif: nothing matches",
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_input_does_not_stop_the_others(tree, bad, first):
    (tree / "empty").mkdir()
    (tree / "half.txt").write_bytes(b"\xff\xfea")  # half a character
    (tree / "blank.txt").write_text("\n \n")
    result = plan_jobs([bad, "p/a.png"] if first else ["p/a.png", bad], "out/", "x2")
    assert [(job.source, job.output) for job in result.jobs] == [(Path("p/a.png"), Path("out/a_x2.png"))]
    ((name, error),) = result.errors
    assert name == bad and BAD[bad] in str(error).replace("empty/:", "empty:") and isinstance(error, ImageError)
    alone = plan_jobs([bad], "nothing/", "x2")
    assert alone.jobs == [] and [failed.name for failed in alone.errors] == [bad] and not (tree / "nothing").exists()


def test_a_bad_line_of_a_list_does_not_stop_the_others(tree):
    (tree / "empty").mkdir()
    (tree / "list.txt").write_text("p/a.png\nempty\np/*.gif\nq\n")
    result = plan_jobs(["@list.txt"], None, "x2")
    assert [job.source.as_posix() for job in result.jobs] == ["p/a.png", "q/a.png"]
    assert [failed.name for failed in result.errors] == ["empty", "p/*.gif"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
def test_an_image_that_would_become_itself_does_not_stop_the_others(tree):
    (tree / "out").mkdir()
    (tree / "out" / "a_x2.png").symlink_to(tree / "p" / "a.png")
    result = plan_jobs(["p/a.png", "p/b.JPG"], "out", "x2")
    assert [job.source.name for job in result.jobs] == ["b.JPG"]
    assert [failed.name for failed in result.errors] == ["p/a.png"] and "input itself" in str(result.errors[0].error)


def test_an_unlistable_folder_does_not_stop_the_others(tree):
    (tree / "locked").mkdir(mode=0)
    if os.access(tree / "locked", os.R_OK):
        pytest.skip("this user may list every folder")
    result = plan_jobs(["locked", "p/a.png"], None, "x2")
    assert len(result.jobs) == 1 and "cannot be listed" in str(result.errors[0].error)


@pytest.mark.parametrize(
    ("inputs", "output", "says"),
    [
        ([], None, "no images given"),
        (["p"], "file.png", "2 images need a folder after -o"),
        (["q"], "file.png", "the images of a folder need a folder after -o"),
        (["p/a.png", "p/*.gif"], "file.png", "2 images need a folder after -o"),
    ],
)
def test_misuse(tree, inputs, output, says):
    with pytest.raises(ImageError, match=says) as caught:
        plan_jobs(inputs, output, "x2")
    assert "\n" not in str(caught.value)


def test_a_missing_file_fails_when_it_is_its_turn(tree):
    assert plan("nowhere/") == {"nowhere": "nowhere_x2.png"}

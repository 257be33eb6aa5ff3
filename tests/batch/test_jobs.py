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
    return {j.source.as_posix(): j.output.as_posix() for j in plan_jobs(inputs, output, "x2", None, recursive)}


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
    assert (tree / "out").is_dir()


def test_one_name_twice_does_not_collide(tree):
    (tree / "p" / "a.jpg").touch()
    assert plan("p") == {"p/a.jpg": "p/a_jpg_x2.png", "p/a.png": "p/a_png_x2.png", "p/b.JPG": "p/b_x2.png"}
    with pytest.raises(ImageError, match=r"p/a\.png and q/a\.png would both become this"):
        plan("p/a.png", "q/a.png", output="p")


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


@pytest.mark.parametrize(
    ("inputs", "output", "says"),
    [
        (["p/*.gif"], None, "nothing matches"),
        (["@none.txt"], None, "none.txt: the list cannot be read"),
        (["p"], "file.png", "need a folder after -o"),
        (["nowhere/"], None, None),
    ],
)
def test_misuse(tree, inputs, output, says):
    if says is None:  # a file that is not there is told when it is its turn
        assert plan_jobs(inputs, output, "x2")[0].source == Path("nowhere")
        return
    with pytest.raises(ImageError, match=says) as caught:
        plan_jobs(inputs, output, "x2")
    assert "\n" not in str(caught.value)

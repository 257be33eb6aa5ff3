"""Which files names stand for, and which outputs would be one file."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edsr.batch import clashes
from edsr.batch.jobs import plan_jobs

unix = pytest.mark.skipif(sys.platform == "win32", reason="needs links, FIFOs and devices")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Empty files are enough: nothing is opened."""
    make(tmp_path, "p/a.png", "p/b.JPG", "p/in/c.webp", "p/in/deep/d.tif", "p/.hidden.png", "p/text.txt", "q/a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def sources(*inputs, **options):
    """Of inputs that are all good."""
    result = plan_jobs(inputs, None, "x2", **options)
    assert not result.errors
    return [job.source.as_posix() for job in result.jobs]


def outputs(result):
    return {job.source.as_posix(): job.output.as_posix() for job in result.jobs}


def failed(result):
    """Names of the inputs that give no job; each error names its input."""
    assert all(failure.name.removesuffix("/") in str(failure.error) for failure in result.errors)
    return [failure.name for failure in result.errors]


# --- clashes


def test_one_clash_does_not_stop_the_others(tree):
    make(tree, "p/a.jpg", "p/a_jpg.png")
    assert outputs(plan_jobs(["p/a.png", "p/a.jpg", "p/a_jpg.png", "p/b.JPG"], None, "x2")) == {
        "p/a.png": "p/a_png_x2.png",
        "p/a.jpg": "p/a_jpg_x2.png",
        "p/a_jpg.png": "p/a_jpg_png_x2.png",
        "p/b.JPG": "p/b_x2.png",
    }
    result = plan_jobs(["p/a.png", "q/a.png", "p/b.JPG"], "out/", "x2")
    assert outputs(result) == {"p/b.JPG": "out/b_x2.png"} and failed(result) == ["p/a.png", "q/a.png"]
    assert "q/a.png would become the same file, out/a_x2.png; rename" in str(result.errors[0].error)
    result = plan_jobs(["p/a.png", "q/a.png", "p/a.jpg"], "out/", "x2")
    assert outputs(result) == {"p/a.jpg": "out/a_jpg_x2.png"} and len(result.errors) == 2


@unix
def test_outputs_that_are_one_file_through_links(tree):
    make(tree, "in/p/a.png", "in/q/a.png", "in/c.png", "out/p/x")
    (tree / "out" / "q").symlink_to("p")
    result = plan_jobs(["in"], "out", "x2", recursive=True)
    assert outputs(result) == {"in/c.png": "out/c_x2.png"} and failed(result) == ["in/p/a.png", "in/q/a.png"]
    for name in "a_x2.png", "b_x2.png":
        (tree / "out" / name).symlink_to("shared.png")
    result = plan_jobs(["p/a.png", "p/b.JPG", "in/c.png"], "out", "x2")
    assert outputs(result) == {
        "p/a.png": "out/a_png_x2.png",
        "p/b.JPG": "out/b_jpg_x2.png",
        "in/c.png": "out/c_x2.png",
    }


@pytest.mark.parametrize("ignored", [True, False])
def test_names_that_differ_in_case_or_in_composition(tree, monkeypatch, ignored):
    monkeypatch.setattr(clashes, "ignores_case", lambda folder: ignored)
    names = ["q/A.png", "q/\u00c4.png", "p/a\u0308.png"]
    make(tree, *names)
    result = plan_jobs(["p/a.png", "p/b.JPG", *names], "out/", "x2")
    assert (len(result.jobs), len(result.errors)) == ((1, 4) if ignored else (5, 0))


def test_whether_a_folder_ignores_case(tree, monkeypatch):
    assert clashes.ignores_case(str(tree)) == (tree / "P").exists()
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert clashes.ignores_case(str(tree / "p" / "yet" / "to be made")) and not list(tree.rglob(".edsr*"))


# --- folders and patterns


def test_folders_that_are_not_entered_are_named(tree, run):
    make(tree, "f/a.png", "f/.hidden/b.png", "f/deep/er/c.png", "f/more/d.JPG", "f/old/d_x2.png", "f/texts/e.txt")
    assert plan_jobs(["f"], None, "x2").closed == [Path("f/deep"), Path("f/more")]
    assert plan_jobs(["f"], None, "x2", recursive=True).closed == []
    assert plan_jobs(["f/old"], None, "x2").closed == plan_jobs(["f/more"], None, "x2").closed == []
    (error,) = plan_jobs(["f/deep"], None, "x2").errors
    assert str(error.error).endswith("; there are some in er; add recursive=True to enter them")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("f/a.png")
    code, _, err = run("upscale", "f", "--dry-run")
    assert code == 0 and "note: 2 folders were not entered, though images lie in: deep, more; add --recursive" in err
    assert "there are some in er; add --recursive to enter them" in run("upscale", "f/deep")[2]
    assert "not entered" not in run("upscale", "f", "--dry-run", "--recursive")[2]


@unix
@pytest.mark.parametrize(
    ("pattern", "want"),
    [
        ("d/**/*.png", "ab"),
        ("**/e/*.png", "b"),
        ("d/**", "ab"),
        ("d/**/**/?.png", "ab"),
        ("{tree}/**/d/**/a.png", "a"),
        ("[d]/**/*.png", "ab"),
    ],
)
def test_patterns_over_links_in_circles(tree, pattern, want):
    make(tree, "d/a.png", "d/e/b.png", "d/.c.png")
    for i in range(3):
        (tree / "d" / f"l{i}").symlink_to(".")
        (tree / "d" / "e" / f"m{i}").symlink_to("..")
    found = sources(pattern.replace("{tree}", str(tree)))
    assert [os.path.relpath(path) for path in found] == [{"a": "d/a.png", "b": "d/e/b.png"}[name] for name in want]
    assert sources("d", recursive=True) == ["d/a.png", "d/e/b.png"]


@unix
def test_links_do_not_hide_where_an_image_lies(tree):
    make(tree, "d/real/a.png")
    (tree / "d" / "link").symlink_to("real")
    (tree / "d" / "gone.png").symlink_to("nowhere")
    assert outputs(plan_jobs(["d"], "out/", "x2", recursive=True)) == {
        "d/gone.png": "out/gone_x2.png",  # which fails when it is its turn
        "d/real/a.png": "out/real/a_x2.png",
    }


@pytest.mark.parametrize("inputs", [["p"], ["p/**/*.*"]])
def test_a_folder_in_a_folder_that_cannot_be_listed(tree, monkeypatch, inputs):
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    result = plan_jobs(inputs, None, "x2", recursive=True)
    assert {"p/a.png", "p/b.JPG", "p/in/c.webp"} <= {*outputs(result)}
    assert failed(result) == ["p/in/deep"] and "cannot be listed" in str(result.errors[0].error)
    assert failed(plan_jobs(["p/in/deep"], None, "x2")) == ["p/in/deep"]


def test_other_files_in_folders_are_counted(tree):
    assert plan_jobs(["p", "q"], None, "x2").others == [Path("p/text.txt")]


# --- results of earlier runs


def test_results_of_other_runs_are_no_inputs_unless_wanted(tree):
    mine = ["photo_1920x1080.png", "map_w3000.png", "mix_x.png", "x2.png", "_x2.png", "a_x2_final.png"]
    earlier = ["a_x4.png", "a_compare.png", "gone_x2.webp", "b_JPG_x2.png", "a_x2_x2.png", "a_x1.3.jpg"]
    earlier += ["a_w79.png", "a_3000x2000.tif", "b_jpg_h61.png"]
    make(tree / "p", *mine, *earlier)
    result = plan_jobs(["p"], None, "x3")
    assert {job.source.name for job in result.jobs} == {"a.png", "b.JPG", *mine}
    assert [path.name for path in result.earlier] == sorted(earlier) and not result.left_out and not result.errors
    result = plan_jobs(["p"], None, "x3", again=True)
    assert {job.source.name for job in result.jobs} == {"a.png", "b.JPG", *mine, *earlier}
    result = plan_jobs(["p"], None, "x4", again=True)  # but for what this batch itself writes
    assert Path("p/a_x4.png") not in [job.source for job in result.jobs] and result.left_out == [Path("p/a_x4.png")]


def test_a_folder_of_nothing_but_results(tree):
    make(tree, "out/a_x2.png")
    result = plan_jobs(["out", "q"], None, "x2")
    assert outputs(result) == {"q/a.png": "q/a_x2.png"}
    assert failed(result) == ["out"] and "again=True" in str(result.errors[0].error)
    assert sources("out", again=True) == sources("out/a_x2.png") == ["out/a_x2.png"]


def test_the_summary_counts_what_a_folder_holds_besides(home, upscale):
    make(home, "text.txt")
    assert upscale(".", "--again")[0] == 0  # m.safetensors lies there, too
    code, out, err = upscale(".", "--width", "70")
    others = "2 files passed over, no images by their names (1 .safetensors, 1 .txt)"
    counted = f"1 earlier result left out (--again takes it), {others}"
    assert code == 0 and out.count("\n") == 1 and err == f"1 of 1 image done, {counted}\n"


# --- lists


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfp/a.png\nq/a.png",
        b"p/a.png\r\n\r\nq/a.png\r\n",
        "\ufeffp/a.png\r\nq/a.png\r\n".encode("utf-16-le"),  # PowerShell's
        b"  p/a.png\n\t\n q/a.png  \n",
    ],
)
def test_lists_as_programs_write_them(tree, data):
    (tree / "list.txt").write_bytes(data)
    assert sources("@list.txt") == ["p/a.png", "q/a.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_lists_of_names_of_any_bytes(tree):
    lines = [b"q/\xe9.png", b"q/ b .png ", b"q/c\x85.png"]
    make(tree, *map(os.fsdecode, lines))
    (tree / "list.txt").write_bytes(b"\n".join(lines))
    assert [os.fsencode(job.source) for job in plan_jobs(["@list.txt"], None, "x2").jobs] == lines


def test_lines_with_nul(tree):
    (tree / "list.txt").write_bytes(b"p/a.png\n\0\nx\0y*\nq/a.png\n")
    result = plan_jobs(["@list.txt", "@a\0b"], None, "x2")
    assert [*outputs(result)] == ["p/a.png", "q/a.png"]
    assert [failure.name for failure in result.errors] == ["\0", "x\0y*", "@a\0b"]
    assert all("NUL" in str(failure.error) for failure in result.errors)


@unix
def test_lists_without_an_end(tree, monkeypatch):
    os.mkfifo("fifo")
    (tree / "long.txt").write_bytes(b"p/a.png\n" * 100)
    monkeypatch.setattr("edsr.batch.inputs.MAX_LIST_BYTES", 500)
    result = plan_jobs(["@fifo", "@/dev/zero", "@p", "@long.txt", "q"], None, "x2")
    reasons = ["not a regular file"] * 3 + ["more than 0 MB"]
    assert [*outputs(result)] == ["q/a.png"]
    assert all(reason in str(failure.error) for reason, failure in zip(reasons, result.errors, strict=True))

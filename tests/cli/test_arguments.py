"""Arguments that are empty, out of range, or written as people write them; what is asked for and cannot be given."""

import json
import os
import signal
import sys

import numpy as np
import pytest
from PIL import Image

from edsr import cli
from edsr.batch import OutputSize
from tests.support.image_files import make_image, names
from tests.support.tiff import tiff


@pytest.mark.parametrize(
    "arguments",
    [
        ["upscale", ""],
        ["upscale", "photo.png", "-o", ""],
        ["evaluate", "--hr", ""],
        ["info", ""],
        ["convert", "edsr-photo", ""],
        ["train", "--data", "", "--out", "run"],
        ["train", "--resume", ""],
    ],
)
def test_an_empty_argument_stands_for_nothing(home, run, arguments):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and "an argument is empty" in err and err.count("\n") == 1
    assert names(".") == ["m.safetensors", "photo.png"]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["train", "--data", "photo.png", "--out", "s3://bucket/run", "--steps", "1"], "s3://bucket/run"),
        (["train", "--data", "photo.png", "gs://bucket/photos", "--out", "run"], "gs://bucket/photos"),
        (["study", "--data", ".", "--out", "file:///study"], "file:///study"),
        (["evaluate", "--hr", ".", "--save", "s3://bucket/results/"], "s3://bucket/results/"),
        (["evaluate", "--hr", "https://me:secret@host/hr?key=secret"], "https://host/hr"),
        (["compare", "https://host/photo.png?key=secret"], "https://host/photo.png"),
        (["compare", "photo.png", "--save", "s3://bucket"], "s3://bucket"),
        (["convert", "m.safetensors", "s3://bucket/m.pth"], "s3://bucket/m.pth"),
        (["export", "m.safetensors", "-o", "s3://bucket/m.onnx"], "s3://bucket/m.onnx"),
        (["info", "https://host/m.safetensors"], "https://host/m.safetensors"),
        (["prepare", "--data", "photo.png", "--out", "s3://bucket/data.h5"], "s3://bucket/data.h5"),
        (["upscale", "photo.png", "--model", "https://host/m.safetensors"], "https://host/m.safetensors"),
    ],
)
def test_a_url_is_not_taken_for_a_path(home, run, arguments, shown):
    """A folder called s3: would be made here, and all said to be well."""
    code, out, err = run(*arguments)
    assert code == 1 and out == ""
    assert err == f"error: {shown}: is a URL; only images to upscale, and their results, may be at one: give a path\n"
    assert names(".") == ["m.safetensors", "photo.png"]


@pytest.mark.parametrize("factor", ["1e308", "1001", "inf"])
def test_a_factor_without_sense_is_misuse(home, upscale, capsys, factor):
    with pytest.raises(SystemExit) as misuse:
        upscale("photo.png", "--outscale", factor)
    assert misuse.value.code == 2 and "--outscale" in capsys.readouterr().err


def test_the_largest_factor_is_one_that_a_line_tells_of(home, upscale):
    code, _, err = upscale("photo.png", "--outscale", "1000")
    assert code == 2 and "40000 x 30000 is more than 2 times" in err and err.count("\n") == 1
    assert OutputSize(outscale=1000).resolve(10**8, 1) == (10**11, 1000)


@pytest.mark.parametrize(("name", "ending"), [("tif", "tiff"), ("TIFF", "tiff"), (".jpeg", "jpg"), ("PNG", "png")])
def test_a_format_by_any_of_its_endings(home, upscale, name, ending):
    assert upscale("photo.png", "--format", name)[0] == 0
    assert os.path.isfile(f"photo_x2.{ending}")


@pytest.mark.parametrize("arguments", [["--range", "-1,1"], ["-o", "-x.png"]])
def test_a_value_that_looks_like_an_option(home, upscale, capsys, arguments):
    with pytest.raises(SystemExit) as misuse:
        upscale("photo.png", *arguments)
    assert misuse.value.code == 2 and "as in --range=-1,1" in capsys.readouterr().err


def test_a_residual_scale_that_auto_does_not_have_is_refused(home, run):
    code, _, err = run("upscale", "photo.png", "--residual-scale", "0.1")
    assert code == 1 and "the file says residual scale 1.0, not 0.1" in err
    assert names(".") == ["m.safetensors", "photo.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="has /dev/full")
@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_into_a_full_stream(monkeypatch, argument):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as end:
            cli.main([argument])
    assert end.value.code == 1


def test_help_into_a_stream_that_takes_it(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0 and "upscale" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="uses POSIX's pipes")
def test_a_pipe_by_name_is_pointed_to_standard_input(home, upscale):
    source, sink = os.pipe()
    os.write(sink, (home / "photo.png").read_bytes())
    os.close(sink)
    code, _, err = upscale(f"/dev/fd/{source}", "-o", "out.png")
    os.close(source)
    assert code == 1 and "pipe it into upscale -" in err


def test_to_overwrite_needs_no_note(home, upscale):
    Image.new("RGB", (7, 7)).save("photo_x2.png")
    assert "add --overwrite" in upscale("photo.png", "--skip-existing")[2]
    code, _, err = upscale("photo.png", "--skip-existing", "--overwrite")
    assert (code, err) == (0, "") and Image.open("photo_x2.png").size == (80, 60)


def test_unlimited_believes_what_a_file_claims(home, upscale):
    """A page of white, whose bytes are fewest for its pixels; what is refused then is the size asked for."""
    Image.new("1", (12000, 12000), 1).save("flat.tif", compression="group4")
    arguments = "flat.tif", "-o", "a.png", "--width", "100000"
    assert "12000 x 12000 pixels" in (err := upscale(*arguments)[2]) and "--unlimited" in err
    code, _, err = upscale(*arguments, "--unlimited")
    assert code == 1 and "100000 x 100000 is more than 2 times its 12000 x 12000" in err


def test_compare_says_what_the_reader_says(home, run):
    image = make_image(20, 24, 4)
    (home / "infrared.tif").write_bytes(tiff(image, {338: (3, (0,))}))
    code, out, err = run("compare", "infrared.tif", "--model", "m.safetensors")
    assert code == 0 and "infrared_compare.png" in out and err.startswith("note: infrared.tif: ")
    assert run("compare", "infrared.tif", "--model", "m.safetensors", "--overwrite", "--quiet") == (0, "", "")


def test_what_was_noted_of_an_image_that_fails_is_told(home, upscale):
    image = make_image(20, 24, 4)
    (home / "infrared.tif").write_bytes(tiff(image, {338: (3, (0,))}))
    code, out, _ = upscale("infrared.tif", "--json")
    said = json.loads(out)["warnings"]
    (home / "infrared_x2.png").write_bytes(b"")
    code, out, _ = upscale("infrared.tif", "--json")
    record = json.loads(out)
    assert code == 1 and "exists" in record["error"] and record["warnings"] and set(record["warnings"]) <= set(said)


def test_compare_into_a_folder_that_is_not_there(home, run):
    code, _, err = run("compare", "photo.png", "--model", "m.safetensors", "-o", "new/")
    assert code == 1 and err == "error: new/: there is no such folder, create it first\n"


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("none/a.safetensors", "there is no folder none"),
        ("folder.safetensors", "is a folder"),
        ("pipe.safetensors", "FIFO"),
    ],
)
def test_convert_says_why_in_words(home, run, output, says):
    os.mkdir("folder.safetensors")
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe.safetensors")
    code, _, err = run("convert", "m.safetensors", output, "--overwrite")
    assert code == 1 and says in err and "Errno" not in err and ".edsr-" not in err and err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="uses POSIX's links and pipes")
def test_evaluate_passes_over_nothing_unsaid(home, run):
    os.mkdir("hr")
    Image.fromarray(make_image(40, 40)).save("hr/good.png")
    os.symlink("gone.png", "hr/link.png")
    os.mkfifo("hr/pipe.png")
    (home / "hr/notes.txt").touch()
    code, out, err = run("evaluate", "--hr", "hr", "--model", "m.safetensors")
    assert code == 1 and "mean of 1 of 3" in out
    assert "hr/link.png: no such file" in err and "hr/pipe.png: is not a regular file" in err
    assert "1 files of hr are passed over, no images by their names (1 .txt)" in err


def spoiled(home):
    """Places where nothing can be written: below a file, a link to nowhere, too long, in a folder of the kernel."""
    (home / "file").touch()
    os.symlink("gone", "link")
    return ["file/out", "link/out", f"{'n' * 300}/out", "/proc/none/out"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc, and links")
@pytest.mark.parametrize("number", range(4))
def test_an_output_that_cannot_be_made_is_found_before_any_work(home, run, number, monkeypatch):
    place = spoiled(home)[number]
    os.mkdir("images")
    Image.fromarray(make_image(40, 40)).save("images/a.png")
    for name in "edsr.weights.load_model", "edsr.batch.UpscalerPool", "edsr.training.setup.load_dataset":
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("work has begun"))
    train = ["train", "--data", "images", "--steps", "1", "--device", "cpu"]
    for command in (
        ["upscale", "photo.png", "-o", f"{place}/"],
        ["upscale", "photo.png", "-o", f"{place}/a.png"],
        ["compare", "photo.png", "-o", f"{place}/a.png"],
        ["convert", "m.safetensors", f"{place}/a.safetensors"],
        [*train, "--out", place],
        [*train, "--preview", place, "--degrade", "jpeg:50"],
    ):
        code, out, err = run(*command)
        assert (code, out, err.count("\n")) == (1, "", 1) and "Errno" not in err and place.split("/")[0] in err, command


def test_training_leaves_the_handlers_of_signals(home, run, folder, tiny):
    before = signal.getsignal(signal.SIGINT)
    assert run("train", "--data", folder, "--out", "run", "--steps", "1", "--patch", "8", "--batch", "1")[0] == 0
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--seed", 2**63], "--seed"),
        (["--seed", -(2**63) - 1], "--seed"),
        (["--val", "none"], "give another with --val"),
    ],
)
def test_training_refuses_by_the_right_name(home, run, folder, tiny, more, says):
    code, _, err = run("train", "--data", folder, "--out", "run", "--steps", "1", "--patch", "8", *more)
    assert code == (2 if says == "--seed" else 1) and says in err
    assert not os.path.exists("run")


def test_pixels_are_as_before_whatever_the_name_of_the_format(home, upscale):
    assert upscale("photo.png", "--format", "tif")[0] == 0 and upscale("photo.png")[0] == 0
    np.testing.assert_array_equal(np.asarray(Image.open("photo_x2.tiff")), np.asarray(Image.open("photo_x2.png")))


@pytest.mark.parametrize("command", ["upscale", "compare", "evaluate", "train", "info", "convert"])
def test_help_has_one_group_of_what_is_rarely_needed_and_explains_its_words(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    groups = [line for line in out.splitlines() if line.startswith("execution")]
    assert groups == ["execution, rarely needed:"] and out.index(groups[0]) < out.rindex("--debug")
    assert "residual" not in out.replace("--residual-scale", "")


@pytest.mark.parametrize("arguments", [("-dash.png",), ("photo.png", "-dash.png")])
def test_a_name_that_looks_like_an_option(home, upscale, capsys, arguments):
    (home / "photo.png").rename(home / "-dash.png")
    with pytest.raises(SystemExit) as end:
        upscale(*arguments)
    assert end.value.code == 2
    assert "; -dash.png is taken for an option, write ./-dash.png\n" in capsys.readouterr().err


def test_a_single_file_is_no_folder_of_originals(home, run):
    code, out, err = run("evaluate", "--hr", "photo.png", "--model", "m.safetensors")
    assert (code, out) == (1, "")
    assert err == "error: photo.png: is a single file, and no HDF5; give its folder with --hr\n"

"""Standard streams that are closed, full, or cannot show a name: the work is done all the same."""

import io
import json
import os
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from edsr import cli
from edsr.errors import printable
from tests.conftest import ROOT
from tests.support.image_files import make_image as smooth
from tests.support.image_files import names, pillow
from tests.support.processes import run as run_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes, and a shell")
HOSTILE = "a\x1b]0;title\x07\nb\u202e\udcff"
"""Part of a name: a terminal's title, a line's end, writing turned around, a byte that is no UTF-8."""
CONTROLS = {*map(chr, [*range(32), *range(127, 160)]), "\u202e", "\u2028"} - {"\n"}


def shell(redirections, *arguments, **environment):
    """`upscale` as a shell starts it."""
    command = shlex.join([sys.executable, str(ROOT / "cli.py"), *map(str, arguments)])
    return run_process(["sh", "-c", f"{command} {redirections}"], capture_output=True, env=os.environ | environment)


def stream(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")


def text(file):
    return file.buffer.getvalue().decode(file.encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", "latin-1"])
@pytest.mark.parametrize("name", ["caf\udce9.png", "画像.png", "a\x9b2J.png", "ä.png"])
@pytest.mark.parametrize("flag", [["--json"], []])
def test_a_name_that_a_stream_cannot_show(home, upscale, monkeypatch, encoding, name, flag):
    os.rename("photo.png", name)
    Image.fromarray(smooth(9, 9)).save("zebra.png")
    monkeypatch.setattr(sys, "stdout", stream(encoding))
    monkeypatch.setattr(sys, "stderr", stream(encoding))
    code = cli.main(["upscale", name, "none" + name, "zebra.png", "-o", "out/", "--model", "m.safetensors", *flag])
    assert code == 1 and len(names("out")) == 2
    lines = text(sys.stdout).splitlines()
    if flag:
        assert [json.loads(line)["input"] for line in lines] == ["none" + name, name, "zebra.png"]
    else:
        shown = printable(name.removesuffix(".png")).encode(encoding, "backslashreplace").decode(encoding)
        assert len(lines) == 2 and lines[0].startswith(f"out/{shown}_x2.png  80 x 60") and "zebra" in lines[1]
    assert "2 of 3 images done, 1 failed" in text(sys.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["upscale", f"{HOSTILE}.png"],
        ["upscale", f"@{HOSTILE}"],
        ["upscale", f"{HOSTILE}*"],
        ["upscale", "photo.png", "--model", HOSTILE],
        ["upscale", "photo.png", "--device", HOSTILE],
        ["upscale", "photo.png", "-o", f"none/{HOSTILE}.png"],
        ["upscale", "photo.png", "--format", HOSTILE],
        ["upscale", "photo.png", f"--{HOSTILE}"],
        [HOSTILE],
        ["info", HOSTILE],
        ["convert", HOSTILE, "a.safetensors"],
        ["convert", "m.safetensors", f"{HOSTILE}.safetensors"],
        ["compare", f"{HOSTILE}.png"],
        ["compare", "--model", "m.safetensors", "photo.png", "-o", f"{HOSTILE}.png"],
        ["evaluate", "--hr", HOSTILE],
        ["train", "--data", HOSTILE, "--out", HOSTILE],
        ["train", "--resume", HOSTILE],
        ["train", "--data", "photo.png", "--out", "run", "--degrade", HOSTILE],
        ["train", "--resume", HOSTILE, "--out", "other"],
    ],
    ids=str,
)
def test_arguments_neither_break_lines_nor_steer_the_terminal(home, capsys, arguments):
    try:
        code = cli.main(arguments)
    except SystemExit as misuse:
        code = misuse.code
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert (code != 0) == ("convert m" not in " ".join(arguments) and "-o" not in arguments[3:5])
    assert not CONTROLS & set(shown) and shown.isascii() and "\nb" not in shown


def test_what_weights_say_of_themselves_is_shown_escaped(home, run):
    from safetensors.torch import load_file, save_file

    from edsr.weights import read_info

    training = json.dumps({HOSTILE.replace("\udcff", ""): "c\x1b[2Jd\ne"})
    with open("m.safetensors", "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(size))["__metadata__"]
    save_file(load_file("m.safetensors"), "n.safetensors", metadata | {"training": training})
    assert "\x1b" in str(read_info("n.safetensors")) or "x1b" in repr(read_info("n.safetensors"))
    code, out, err = run("info", "n.safetensors")
    assert code == 0 and not CONTROLS & set(out + err) and "\ne" not in out
    assert json.loads(run("info", "n.safetensors", "--json")[1])


def test_a_comment_of_a_file_is_shown_escaped(home, upscale):
    """What libraries say of a damaged file may quote it."""
    data = bytearray(Path("photo.png").read_bytes())
    data[12:16] = b"I\x1bD\n"
    Path("broken.png").write_bytes(data)
    code, out, err = upscale("broken.png")
    assert code == 1 and not CONTROLS & set(out + err) and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams(home, closed):
    pillow(smooth(9, 9)).save("b.jpg")
    Path("broken.png").write_bytes(b"broken")
    done = shell(closed, "upscale", "photo.png", "b.jpg", "--model", "m.safetensors")
    assert done.returncode == 0 and Image.open("photo_x2.png").size == (80, 60)
    assert Image.open("b_x2.png").size == (18, 18)
    assert done.stdout.count(b"\n") == (2 if closed == "2>&-" else 0)
    assert shell(closed, "upscale", "photo.png", "broken.png", "-o", "o/", "--model", "m.safetensors").returncode == 1
    assert names("o") == ["photo_x2.png"]


@pytest.mark.slow
def test_an_image_for_a_closed_stream_is_refused(home):
    done = shell("<&-", "upscale", "-", "-o", "o.png", "--model", "m.safetensors")
    assert done.returncode == 2 and b"standard input is closed" in done.stderr and done.stderr.count(b"\n") == 1
    for arguments in ["photo.png", "-o", "-"], ["photo.png", "--json"]:
        done = shell(">&-", "upscale", *arguments, "--model", "m.safetensors")
        assert done.returncode == 2 and b"standard output is closed" in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--json", "--format=png"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output(home, flag, unbuffered):
    pillow(smooth(9, 9)).save("b.jpg")
    arguments = ["upscale", "photo.png", "b.jpg", flag, "--model", "m.safetensors"]
    done = shell(">/dev/full", *arguments, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1 and {"b_x2.png", "photo_x2.png"} <= {*names(".")}
    assert done.stderr.decode().splitlines() == [
        "2 of 2 images done",
        "error: standard output: No space left on device; lines are missing there",
    ]
    done = shell(">/dev/full 2>/dev/full", *arguments, "--overwrite", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1


@pytest.mark.slow
def test_a_full_standard_output_for_an_image(home):
    done = shell(">/dev/full", "upscale", "photo.png", "-o", "-", "--model", "m.safetensors")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(b"error: standard output: cannot be")
    assert done.stderr.count(b"\n") <= 2


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_the_work(home):
    for i in range(4):
        pillow(smooth(9, 9 + i)).save(f"{i}.png")
    done = shell("| head -c 1", "upscale", *(f"{i}.png" for i in range(4)), "--model", "m.safetensors")
    assert len([name for name in names(".") if name.endswith("_x2.png")]) == 4
    assert b"4 of 4 images done" in done.stderr and b"Traceback" not in done.stderr


def test_only_the_console_prints():
    for path in (ROOT / "edsr" / "cli").glob("*.py"):
        if path.name != "console.py":
            source = path.read_text(encoding="utf-8").replace("def print(", "")  # a method, called by rich
            assert " print(" not in source and "stdout.write" not in source and "stderr.write" not in source, path

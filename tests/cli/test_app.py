"""What a person meets: files that appear, lines that are printed, exit codes."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from edsr import cli
from edsr.images.resize import matlab_downscale
from edsr.inference.upscaler import Upscaler
from edsr.kernels.winograd import ops as winograd_cpu
from edsr.weights import load_model, save_model
from tests.conftest import ROOT, make_image, network
from tests.support.processes import communicate, read_terminal, wait_until
from tests.support.processes import run as run_process


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


def test_default_output_lies_beside_the_input(home, upscale):
    code, out, err = upscale("photo.png")
    assert code == 0 and err == "" and out.startswith("photo_x2.png  80 x 60")
    want = Upscaler(load_model(home / "m.safetensors"), device="cpu")(make_image(30, 40))
    np.testing.assert_array_equal(np.asarray(Image.open(home / "photo_x2.png")), want)
    assert listing(home) == ["m.safetensors", "photo.png", "photo_x2.png"]


@pytest.mark.parametrize("tile", ["32", "33", "512", "auto"])
def test_every_tile_gives_the_same_image(home, upscale, tile):
    Image.fromarray(make_image(50, 200)).save("photo.png")
    assert upscale("photo.png", "--tile", tile)[0] == 0
    want = Upscaler(load_model(home / "m.safetensors"), device="cpu")(make_image(50, 200)).astype(int)
    got = np.asarray(Image.open(home / "photo_x2.png"))
    assert np.abs(got - want).max() <= 1 and (got != want).mean() < 1e-3  # one accumulation order, then rounding


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_scales(home, upscale, scale):
    save_model(network(scale), "m.safetensors")
    assert upscale("photo.png")[0] == 0
    assert Image.open(f"photo_x{scale}.png").size == (40 * scale, 30 * scale)
    assert upscale("photo.png", "-o", "again.png", "--scale", scale)[0] == 0


@pytest.mark.parametrize("name", ["out.png", "out.jpg", "out.webp", "out.tif"])
def test_the_ending_chooses_the_format(home, upscale, name):
    assert upscale("photo.png", "-o", name)[0] == 0
    kinds = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tif": "TIFF"}
    assert Image.open(name).format == kinds[name[4:]]


def test_folders_in_and_out(home, upscale):
    (home / "in").mkdir()
    (home / "out").mkdir()
    for i in range(3):
        Image.fromarray(make_image(9, 9, seed=i)).save(home / "in" / f"{i}.png")
    assert upscale("in", "-o", "out")[0] == 0
    assert listing(home / "out") == ["0_x2.png", "1_x2.png", "2_x2.png"]


def test_a_batch_survives_bad_files_and_goes_on_where_it_stopped(home, upscale):
    (home / "in" / "deep").mkdir(parents=True)
    for name in "a.png", "deep/b.png", "deep/c.png":
        Image.fromarray(make_image(9, 9)).save(home / "in" / name)
    (home / "in" / "broken.png").write_bytes((home / "in" / "a.png").read_bytes()[:60])
    (home / "in" / "empty.jpg").touch()
    code, out, err = upscale("in", "-o", "out/", "--recursive")
    assert code == 1 and out.count("\n") == 3
    assert "3 of 5 images done, 2 failed:" in err and err.count("broken.png") == err.count("empty.jpg") == 2
    assert listing(home / "out") == ["a_x2.png", "deep"]
    assert listing(home / "out" / "deep") == ["b_x2.png", "c_x2.png"]
    (home / "out" / "deep" / "c_x2.png").unlink()
    before = (home / "out" / "a_x2.png").stat().st_mtime_ns
    code, out, err = upscale("in", "-o", "out/", "--recursive", "--skip-existing")
    assert code == 1 and out.count("\n") == 1 and "c_x2.png" in out
    assert "1 of 5 images done, 2 skipped, 2 failed:" in err
    assert (home / "out" / "a_x2.png").stat().st_mtime_ns == before
    assert listing(home / "out" / "deep") == ["b_x2.png", "c_x2.png"]


def test_gray_stays_gray_and_unicode_names_work(home, upscale):
    Image.fromarray(make_image(9, 9, 1)[:, :, 0]).save("ÿ 画像.png")
    assert upscale("ÿ 画像.png")[0] == 0
    assert Image.open("ÿ 画像_x2.png").mode == "L"


def test_self_ensemble(home, upscale):
    assert upscale("photo.png", "--self-ensemble")[0] == 0
    want = Upscaler(load_model("m.safetensors"), device="cpu")(make_image(30, 40), self_ensemble=True)
    np.testing.assert_array_equal(np.asarray(Image.open("photo_x2.png")), want)


def test_json_is_one_line_per_file(home, upscale):
    code, out, _ = upscale("photo.png", "missing.png", "--json", "--precision", "fp32", "--device", "cpu")
    assert code == 1
    failed, done = map(json.loads, out.splitlines())
    assert done | {"seconds": 0, "megapixels_per_second": 0} == {
        "input": "photo.png",
        "output": "photo_x2.png",
        "input_size": [40, 30],
        "output_size": [80, 60],
        "seconds": 0,
        "megapixels_per_second": 0,
        "skipped": False,
        "warnings": [],
        "model": "m.safetensors",
        "device": "cpu",
        "precision": "fp32",
        "backend": "torch",
        "error": None,
    }
    assert failed["output"] is None and "missing.png" in failed["error"]
    assert set(failed) == set(done)


@pytest.mark.skipif(
    bool(winograd_cpu.unavailable_reason("cpu", torch.float32, 16)), reason="needs llvmlite and AVX2, AVX-512 or NEON"
)
def test_cpu_kernels_are_compiled_once_and_say_so(home, upscale, monkeypatch):
    from edsr.kernels.winograd import jit

    save_model(network(2, features=16), "m.safetensors")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    for first in (True, False):
        jit.loaded.cache_clear()
        code, out, err = upscale("photo.png", "--json", "--overwrite", "--device", "cpu")
        assert code == 0 and json.loads(out)["backend"] == "winograd"
        assert ("compiling the CPU kernels" in err) == first and bool(err) == first
    code, out, err = upscale("photo.png", "--json", "--overwrite", "--device", "cpu", "--backend", "torch")
    assert code == 0 and json.loads(out)["backend"] == "torch" and err == ""


def test_threads(home, upscale):
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            assert upscale("photo.png", "--overwrite", "--threads", threads)[0] == 0
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_quiet_and_pipes_get_no_progress(home, upscale):
    assert upscale("photo.png", "--quiet") == (0, "", "")
    result = subprocess.run(
        [sys.executable, ROOT / "cli.py", "upscale", "photo.png", "-o", "b.png", "--model", "m.safetensors"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and result.stderr == ""
    assert re.fullmatch(r"b\.png  80 x 60, [\d.]+ s, m\.safetensors\n", result.stdout)


def test_a_terminal_gets_progress(home):
    pty = pytest.importorskip("pty", reason="needs a Unix terminal")
    leader, follower = pty.openpty()
    command = [sys.executable, ROOT / "cli.py", "upscale", "photo.png", "--model", "m.safetensors"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=os.environ | {"TERM": "xterm"})
    os.close(follower)
    shown = read_terminal(leader)
    communicate(process)
    os.close(leader)
    assert process.returncode == 0
    assert b"loading the network" in shown and b"photo.png" in shown and b"100 %" in shown


# --- bad input: one line, naming the file; exit code 1; nothing written, nothing lost


def damaged(kind, path):
    data = path.read_bytes()
    path.unlink()
    if kind == "not an image":
        path.write_bytes(b"just some text, not an image at all")
    elif kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "a folder without images":
        path.mkdir()
    elif kind == "an animation":
        frames = [Image.fromarray(np.full((5, 5, 3), value, np.uint8)) for value in (0, 99)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    else:
        assert kind == "missing"


@pytest.mark.parametrize(
    "kind", ["not an image", "truncated", "empty", "missing", "a folder without images", "an animation"]
)
def test_bad_images(home, upscale, kind):
    Image.fromarray(make_image(200, 200)).save("photo.png")
    damaged(kind, home / "photo.png")
    before = listing(home)
    code, out, err = upscale("photo.png")
    assert code == 1 and out == ""
    assert err.startswith("error: ") and "photo.png" in err and err.count("\n") == 1
    assert listing(home) == before


def test_unreadable_image(home, upscale):
    os.chmod("photo.png", 0)
    if os.access("photo.png", os.R_OK):
        pytest.skip("this user may read every file")
    code, _, err = upscale("photo.png")
    assert code == 1 and "photo.png" in err and err.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
@pytest.mark.parametrize("arguments", [("/proc/self/mem",), ("photo.png", "-o", "/proc/out.png")])
def test_what_even_root_cannot_read_or_write(home, upscale, arguments):
    before = listing(home)
    code, out, err = upscale(*arguments)
    assert code == 1 and out == "" and "/proc/" in err and err.count("\n") == 1
    assert listing(home) == before


def test_a_bad_file_does_not_stop_the_others(home, upscale):
    (home / "bad.png").write_bytes(b"x")
    code, out, err = upscale("bad.png", "photo.png")
    assert code == 1 and "bad.png" in err and "photo_x2.png" in out and (home / "photo_x2.png").exists()


@pytest.mark.parametrize(
    ("bad", "says"), [("empty", "empty: no images"), ("@none.txt", "none.txt: the list"), ("*.gif", "nothing matches")]
)
def test_an_input_that_gives_no_images_does_not_stop_the_others(home, upscale, bad, says):
    (home / "empty").mkdir()
    code, out, err = upscale("photo.png", bad, "-o", "out/", "--json")
    assert code == 1 and listing(home / "out") == ["photo_x2.png"]
    failed, done = map(json.loads, out.splitlines())
    assert failed["input"] == bad and says in failed["error"] and failed["output"] is None
    assert set(failed) == set(done) and done["output"] == os.path.join("out", "photo_x2.png")
    error, summary, again = err.splitlines()
    assert error.startswith("error: ") and says in error
    assert summary == "1 of 2 images done, 1 failed:" and says in again


def test_named_inputs_that_are_left_out_are_told(home, upscale):
    for i in range(5):
        Image.fromarray(make_image(9, 9)).save(f"{i}.png")
        Image.fromarray(make_image(18, 18)).save(f"{i}_x2.png")
    named = [f"{i}{end}.png" for i in range(5) for end in ("", "_x2")]
    code, out, err = upscale(*named, "--skip-existing")
    note = "note: left out, because other inputs become this: 0_x2.png, 1_x2.png, 2_x2.png and 2 more\n"
    assert (code, out, err) == (0, "", note + "0 of 5 images done, 5 skipped\n")
    assert upscale(*named, "--skip-existing", "--quiet") == (0, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_names_cannot_break_lines_or_steer_the_terminal(home, upscale):
    save, lost = "a\n\x1b[31m\udcff.png", "b\r\x07.png"
    (home / "photo.png").rename(home / save)
    code, out, err = upscale(save, lost, "-o", "out/")
    assert code == 1 and out.startswith(r"out/a\n\x1b[31m\xff_x2.png  80 x 60") and out.count("\n") == 1
    assert err.splitlines() == [
        r"error: b\r\x07.png: no such file",
        "1 of 2 images done, 1 failed:",
        r"  b\r\x07.png: no such file",
    ]
    code, out, err = upscale(save, "-o", "out/", "--overwrite", "--json")
    assert code == 0 and json.loads(out)["input"] == save


def test_nothing_is_overwritten(home, upscale):
    (home / "photo_x2.png").write_bytes(b"precious")
    code, _, err = upscale("photo.png")
    assert code == 1 and "--overwrite" in err and (home / "photo_x2.png").read_bytes() == b"precious"
    assert upscale("photo.png", "--overwrite")[0] == 0
    assert Image.open("photo_x2.png").size == (80, 60)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-o", "nowhere/out.png"), "create it first"),
        (("--device", "cuda"), "no CUDA device"),
        (("--precision", "fp16", "--device", "cpu"), "no fast fp16"),
        (("--backend", "triton"), "--backend triton: the kernels need"),
        (
            ("--backend", "winograd", "--device", "cpu"),
            "--backend winograd: the kernels need a multiple of 16 features",
        ),
        (("--scale", "3"), "scale"),
    ],
)
def test_what_cannot_be_done(home, upscale, arguments, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("edsr.inference.plan.cpu_has", lambda precision: False)
    before = listing(home), (home / "photo.png").read_bytes()
    code, out, err = upscale("photo.png", *arguments)
    assert code == 1 and out == "" and says in err and err.count("\n") == 1
    assert (listing(home), (home / "photo.png").read_bytes()) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-o", "photo.png"), "input itself"),
        (("-o", "./photo.png", "--overwrite"), "input itself"),
        (("-o", "out.bmp"), "out.bmp: images are not written as .bmp; use one of .png, .jpg"),
        (("-o", "/dev/full"), "/dev/full: has no ending that names a format; use one of .png, .jpg"),
        (("-o", "out.jpg", "--format", "png"), "leave one of them out"),
        (("m.safetensors", "-o", "one.png"), "2 images need a folder after -o"),
        (("m.safetensors", "-o", "-"), "- is one image"),
        (("--outscale", "2.5"), "is more than 2 times"),
        (("--outscale", "1.5", "--height", "9"), "contradict"),
        (("--width", "50", "--fit"), "--fit needs --width and --height"),
        (("--linear-light",), "--linear-light has no effect without a size"),
        (("--quality", "90"), "--quality has no effect on PNG"),
        (("--quality", "90", "--format", "tif"), "--quality has no effect on TIFF"),
        (("--quality", "90", "-o", "new"), "--quality has no effect on PNG"),
        (("--strength", "0.5"), "leave --model out"),
    ],
)
def test_what_makes_no_sense_is_misuse(home, upscale, arguments, says, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    before = listing(home), (home / "photo.png").read_bytes()
    code, out, err = upscale("photo.png", *arguments)
    assert code == 2 and out == "" and says in err and err.count("\n") == 1
    assert (listing(home), (home / "photo.png").read_bytes()) == before


def test_misuse_of_one_input_is_a_failure_of_the_batch(home, upscale):
    Image.fromarray(make_image(9, 9)).save("other.png")
    assert upscale("photo.png", "other.png", "-o", ".", "--format", "keep")[0] == 0
    code, _, err = upscale("photo.png", "missing.png", "--outscale", "2.5")
    assert code == 1 and "1 of 2" not in err and "2 failed" in err


def test_a_missing_file_is_told_without_torch(home):
    for command in (
        ["upscale", "none.png"],
        ["upscale", "photo.png", "--model", "none.pth"],
        ["compare", "none.png"],
        ["evaluate", "--hr", "none"],
        ["train", "--data", "none", "--out", "run"],
        ["train", "--resume", "none"],
        ["info", "none.safetensors"],
        ["convert", "none.pt", "new.safetensors"],
    ):
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from edsr import cli\n"
        code += f"code = cli.main({command!r}); assert 'torch' not in sys.modules; sys.exit(code)"
        done = run_process([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1 and done.stdout == "", command
        assert re.fullmatch(r"error: none\S*: no such file.*\n", done.stderr), command


@pytest.mark.skipif(os.name == "nt", reason="links a folder")
@pytest.mark.parametrize("installed", [False, True])
def test_another_python_is_told_how_to_run_it(tmp_path, installed):
    (tmp_path / "cli.py").write_bytes((ROOT / "cli.py").read_bytes())
    os.symlink(ROOT / "edsr", tmp_path / "edsr")
    if installed:
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        (tmp_path / ".venv" / "bin" / "python").touch()
    command = [sys.executable, "-S", "cli.py", "upscale", "my photo.png"]  # without the packages that are installed
    done = run_process(command, capture_output=True, text=True, cwd=tmp_path)
    run = "; run .venv/bin/python cli.py upscale 'my photo.png'\n"
    first = "; install it first, in its folder: python3 -m venv .venv && .venv/bin/python -m pip install -e ., then use"
    assert done.returncode == 1 and done.stderr.startswith("error: this Python lacks the package ")
    assert (run if installed else first) in done.stderr and done.stderr.count("\n") == 1


def test_quality_that_no_image_takes_is_noted(home, upscale):
    note = "note: --quality has no effect, as PNG and TIFF lose nothing\n"
    assert upscale("photo.png", "--format", "keep", "--quality", "50")[2] == note
    Image.open("photo.png").save("other.jpg")
    code, _, err = upscale("photo.png", "other.jpg", "--format", "keep", "--quality", "50", "--overwrite")
    assert code == 0 and note not in err


def test_both_sides_are_taken_as_they_are_unless_they_are_to_fit(home, upscale):
    assert upscale("photo.png", "--width", "60", "--height", "60", "-o", "a.png")[0] == 0
    assert upscale("photo.png", "--width", "60", "--height", "60", "-o", "b.png", "--fit")[0] == 0
    assert Image.open("a.png").size == (60, 60) and Image.open("b.png").size == (60, 45)


def test_unknown_models_and_scales_without_weights(home, upscale, monkeypatch):
    code, _, err = upscale("photo.png", model="srcnn")
    assert code == 1 and "srcnn" in err and "edsr-baseline" in err and err.count("\n") == 1
    monkeypatch.setattr("edsr.weights.files.FOLDER", home)
    code, _, err = upscale("photo.png", "--scale", "4", model="edsr-baseline")
    assert code == 1 and "edsr-baseline" in err and "--model" in err and err.count("\n") == 1


def test_an_output_folder_that_cannot_be_written(home, upscale):
    (home / "locked").mkdir()
    os.chmod(home / "locked", 0o500)
    if os.access(home / "locked", os.W_OK):
        pytest.skip("this user may write into every folder")
    code, _, err = upscale("photo.png", "-o", "locked/out.png")
    assert code == 1 and "locked" in err and err.count("\n") == 1


@pytest.mark.parametrize(("name", "width"), [("out.jpg", 33_000), ("out.webp", 8_200)])
def test_sides_a_format_cannot_hold(home, upscale, name, width):
    Image.fromarray(make_image(1, width)).save("wide.png")
    before = listing(home)
    code, _, err = upscale("wide.png", "-o", name)
    assert code == 1 and ".png" in err and err.count("\n") == 1
    assert listing(home) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["upscale"],
        ["upscale", "a.png", "--scale", "5"],
        ["upscale", "a.png", "--tile", "7"],
        ["upscale", "a.png", "--threads", "0"],
        ["sharpen"],
        [],
    ],
)
def test_misuse_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ") and lines[1].startswith("usage: ") and lines[-1].endswith(" --help")
    assert len(lines) <= 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["upscale", "a.png", "--ouput", "b.png"], "error: --ouput: there is no such option; did you mean --output?"),
        (["info", "a.pt", "b.pt"], "error: b.pt: there is no such argument"),
        (["upscale", "a.png", "--device", "gpu"], "error: argument --device: 'gpu' is none; give auto, cpu,"),
        (["train", "--device", "tpu"], "error: argument --device: 'tpu' is none; give auto, cpu,"),
        (["upscale", "a.png", "--device", "cpu,,cpu"], "error: argument --device: a name is missing"),
        (["train", "--steps", "0"], "error: argument --steps: give auto or a whole number of 1 or more"),
    ],
)
def test_misuse_says_what_to_do_first(arguments, says, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and capsys.readouterr().err.startswith(says)


def test_debug_shows_the_traceback(home):
    with pytest.raises(Exception, match=r"missing\.png"):
        cli.main(["upscale", "missing.png", "--model", "m.safetensors", "--debug"])


def test_an_unexpected_error_is_not_hidden(home, monkeypatch):
    def broken(*arguments):
        raise AssertionError("a defect of ours")

    monkeypatch.setattr("edsr.inference.upscaler.Upscaler.bands", broken)
    with pytest.raises(AssertionError):
        cli.main(["upscale", "photo.png", "--model", "m.safetensors"])
    assert listing(home) == ["m.safetensors", "photo.png"]


def test_a_defect_does_not_end_a_batch(home, upscale, monkeypatch):
    honest = Upscaler.bands

    def broken(self, rows, width, self_ensemble=False):
        if width == 41:
            raise AssertionError("here")
        return honest(self, rows, width, self_ensemble)

    monkeypatch.setattr("edsr.inference.upscaler.Upscaler.bands", broken)
    Image.fromarray(make_image(30, 41)).save(home / "odd.png")
    code, out, err = upscale("odd.png", "photo.png")
    assert code == 1 and "photo_x2.png" in out
    assert err.splitlines()[0] == "error: odd.png: AssertionError('here'), a defect; --debug shows where"
    assert listing(home) == ["m.safetensors", "odd.png", "photo.png", "photo_x2.png"]


def test_interruption_leaves_no_half_file(home, capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("edsr.kernels.reference.quantize", interrupted)
    assert cli.main(["upscale", "photo.png", "--model", "m.safetensors"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert listing(home) == ["m.safetensors", "photo.png"]


@pytest.mark.parametrize(
    ("files", "devices"), [(1, "cpu"), *(pytest.param(files, "cpu,cpu", marks=pytest.mark.slow) for files in (1, 2))]
)
def test_sigterm_leaves_no_half_file(home, files, devices):
    """A real signal, half way through images that would take a minute."""
    names = [f"large{i}.png" for i in range(files)]
    for name in names:
        Image.fromarray(make_image(3000, 1000)).resize((2000, 12000)).save(name, compress_level=1)
    save_model(network(2, blocks=8, features=64), "m.safetensors")
    command = [sys.executable, ROOT / "cli.py", "upscale", *names, "--model", "m.safetensors", "--device", devices]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    wait_until(lambda: any(p.name.endswith(".part") for p in home.iterdir()), process)
    process.terminate()
    _, err = communicate(process)
    goes_on = b"" if files == 1 else b": 0 of 2 images done; the same command with --skip-existing goes on"
    assert process.returncode == 130 and err == b"interrupted" + goes_on + b"\n"
    assert listing(home) == [*names, "m.safetensors", "photo.png"]


# --- compare


@pytest.fixture
def compare(run):
    return lambda *arguments: run("compare", *arguments, "--model", "m.safetensors")


def test_compare_draws_a_figure_or_a_page(home, compare):
    Image.fromarray(make_image(60, 80)).save("original.png")
    Image.fromarray(matlab_downscale(make_image(60, 80), 2)).save("photo.png")
    assert compare("photo.png") == (0, "photo_compare.png\n", "")
    code, out, err = compare("photo.png", "--hr", "original.png", "--html", "--detail", "10,20,30")
    assert code == 0 and err == "" and out.splitlines()[0] == "photo_compare.html" and out.count(" dB") == 2
    assert compare("--hr", "original.png", "-o", "new.png", "--quiet") == (0, "", "")
    assert listing(home) == [
        "m.safetensors",
        "new.png",
        "original.png",
        "photo.png",
        "photo_compare.html",
        "photo_compare.png",
    ]
    assert all(Image.open(name).mode == "RGB" for name in ("photo_compare.png", "new.png"))
    assert (home / "photo_compare.html").read_text(encoding="utf-8").count("data:image/webp") == 3


def test_compare_shows_several_networks_and_keeps_their_images(home, run):
    save_model(network(), "n.safetensors")
    Image.fromarray(make_image(60, 80)).save("original.png")
    arguments = ["compare", "--hr", "original.png", "--model", "m.safetensors", "--model", "n.safetensors"]
    code, out, err = run(*arguments, "--save", "kept/deep")
    assert code == 0 and err == ""
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["bicubic", out.splitlines()[1].split()[1]],
        ["m", "x2"],
        ["n", "x2"],
    ]
    names = [f"original_{title}.png" for title in ("bicubic", "m_x2", "n_x2", "original")]
    assert listing(home / "kept/deep") == names
    assert (np.asarray(Image.open(home / "kept/deep" / names[3])) == make_image(60, 80)).all()
    for name, model in ("m_x2", "m.safetensors"), ("n_x2", "n.safetensors"):
        want = Upscaler(load_model(model), device="cpu")(matlab_downscale(make_image(60, 80), 2))
        np.testing.assert_array_equal(np.asarray(Image.open(home / f"kept/deep/original_{name}.png")), want)
    code, out, err = run(*arguments, "--save", "kept/deep", "-o", "b.png")
    assert code == 1 and out == "" and "original_bicubic.png: exists; add --overwrite" in err
    assert not (home / "b.png").exists()
    assert run(*arguments, "--save", "kept/deep", "-o", "b.html", "--html", "--overwrite")[0] == 0
    assert (home / "b.html").read_text(encoding="utf-8").count("data:image/webp") == 4
    assert run("compare", "original.png", "--model", "m.safetensors", "--model", "m.safetensors")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "says", "wants"),
    [
        ((), "--hr", 2),
        (("photo.png", "--save", "there.png"), "is no folder", 1),
        (("photo.png", "--hr", "photo.png"), "check --scale", 1),
        (("photo.png", "-o", "photo.png", "--overwrite"), "input itself", 2),
        (("photo.png", "-o", "there.png"), "--overwrite", 1),
        (("photo.png", "-o", "a.jpg"), "as .png", 2),
        (("photo.png", "-o", "a.png", "--html"), "as .html", 2),
        (("photo.png", "--detail", "70,0,20"), "not inside", 2),
        (("missing.png",), "no such file", 1),
    ],
)
def test_what_cannot_be_compared(home, compare, arguments, says, wants):
    (home / "there.png").touch()
    before = listing(home)
    code, out, err = compare(*arguments)
    assert code == wants and out == "" and says in err and err.count("\n") == 1
    assert listing(home) == before


# --- the other commands


def test_train_then_upscale(home, capsys):
    (home / "data").mkdir()
    for i in range(3):
        Image.fromarray(make_image(64, 64, seed=i)).save(home / "data" / f"{i}.png")
    arguments = ["train", "--data", "data", "--out", "run", "--steps", "2", "--batch", "1", "--patch", "8"]
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    assert "validation" in capsys.readouterr().err
    assert cli.main(["upscale", "photo.png", "--model", "run/best.safetensors"]) == 0
    assert cli.main([*arguments, "--device", "cpu"]) == 1
    assert "--resume" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_is_resumed_by_its_name_and_decayed(home, capsys):
    (home / "data").mkdir()
    for i in range(3):
        Image.fromarray(make_image(64, 64, seed=i)).save(home / "data" / f"{i}.png")
    small = ["--batch", "1", "--patch", "8", "--device", "cpu", "--schedule", "wsd", "--lr", "1e-3"]
    assert cli.main(["train", "--data", "data", "--out", "run", "--steps", "2", *small]) == 0
    assert cli.main(["train", "--resume", "run", "--steps", "3", "--device", "cpu"]) == 0
    assert "resuming run at step 2" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--out", "run", "--device", "cpu"]) == 0
    assert "has had its 3 steps already" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "run", "--decay", "2", "--device", "cpu"]) == 0
    assert "run-decay-3/best.safetensors is ready" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "run", "--batch", "16", "--device", "cpu"]) == 1
    assert "was started with --batch 1, not 16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "data"], "--out"),
        (["--out", "run"], "--data"),
        (["--resume"], "--out"),
        (["--resume", "run", "--out", "other"], "--decay"),
        (["--out", "run", "--data", "data", "--decay", "5"], "--resume RUN"),
        (["--resume", "--out", "run", "--decay", "5"], "--resume RUN"),
        (["--resume", "run", "--decay", "5", "--steps", "9"], "--steps"),
    ],
)
def test_a_training_that_makes_no_sense_is_misuse(home, capsys, arguments, says):
    assert cli.main(["train", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_training_stopped_in_another_process_says_so(home, capsys, monkeypatch):
    """A signal to one process of several ends the run in all; no --minutes were given."""
    from edsr.training.trainer import Progress

    def train(*_):
        yield Progress(3, 9, home / "run", 0.1, 1e-4, 5.0)
        return True

    monkeypatch.setattr("edsr.training.train", train)
    (home / "data").mkdir()
    assert cli.main(["train", "--data", "data", "--out", "run"]) == 130
    assert f"interrupted and saved at step 3 of 9; continue with --resume {home / 'run'}" in capsys.readouterr().err


def test_a_stopped_training_is_saved_and_continues(home):
    (home / "data").mkdir()
    Image.fromarray(make_image(64, 64)).save(home / "data" / "a.png")
    command = [sys.executable, ROOT / "cli.py", "train", "--data", "data", "--out", "run", "--device", "cpu"]
    command += ["--batch", "1", "--patch", "8", "--save-every", "1"]
    process = subprocess.Popen([*command, "--steps", "100000"], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: any(p.name > "checkpoint-00000001" for p in (home / "run").glob("checkpoint-*")), process)
    process.terminate()
    _, err = communicate(process)
    assert process.returncode == 130 and "continue with --resume" in err
    step = int(re.findall(r"saved at step (\d+)", err)[0])
    assert (home / "run" / f"checkpoint-{step:08d}" / "state.json").exists()
    assert not [name for name in listing(home / "run") if name.endswith(".part")]


def test_info_and_convert(home, capsys):
    assert cli.main(["info", "m.safetensors"]) == 0
    assert "blocks" in capsys.readouterr().out
    assert cli.main(["info", "m.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["features"] == 8
    assert cli.main(["convert", "m.safetensors", "n.safetensors"]) == 0
    assert (home / "n.safetensors").exists()
    assert cli.main(["convert", "m.safetensors", "n.safetensors"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main(["convert", "m.safetensors", "n.onnx"]) == 2
    assert cli.main(["info", "photo.png"]) == 1
    assert "photo.png" in capsys.readouterr().err


def test_the_version_needs_no_torch():
    for command in ([ROOT / "cli.py"], ["-m", "edsr"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *command, "--version"], capture_output=True, text=True, cwd=ROOT
        )
        assert (done.returncode, done.stdout) == (0, "edsr-triton 0.1.0\n")
        for module in "torch", "numpy", "rich":
            assert not re.search(rf"\| +{module}$", done.stderr, re.M)


@pytest.mark.parametrize("command", ["upscale", "compare", "evaluate", "train", "info", "convert"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0 and "--debug" in out
    if command == "train":  # though a resumed run takes them from what it was
        assert all(f"(default: {value})" in out for value in ("300000", "16", "48", "0.0002", "l1", "cosine"))

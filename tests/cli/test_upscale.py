"""`upscale` in all its forms: kinds of images, sizes, pipes, devices, disks that are full."""

import io
import json
import os
import resource
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from edsr.images.reader import read_image
from edsr.inference.upscaler import Upscaler
from edsr.weights import load_model, save_model
from tests.conftest import ROOT, make_image
from tests.support.image_files import ICC, encoded, names, pillow
from tests.support.image_files import make_image as smooth
from tests.support.image_files import write as save
from tests.support.processes import run as run_process


def process(*arguments, stdin=b"", **options):
    command = [sys.executable, ROOT / "cli.py", "upscale", *arguments, "--model", "m.safetensors"]
    return run_process(command, input=stdin, capture_output=True, **options)


def ours():
    return Upscaler(load_model("m.safetensors"), device="cpu")


# --- kinds of images


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_depth_and_channels_are_kept(home, upscale, name, channels, dtype):
    pixels = smooth(31, 23, channels, dtype=dtype)
    save("a.tif", pixels)
    save("a.png", pixels)
    code, out, err = upscale(name, "-o", "b.tif")
    held = read_image(name, full=True)
    assert code == 0 and out and err == ""
    # By an independent reader, which does not know libtiff's predictor of floats.
    got = read_image("b.tif", full=True) if held.dtype == np.float32 else tifffile.imread("b.tif").reshape(62, 46, -1)
    assert got.dtype == held.dtype and got.shape[2] == channels
    np.testing.assert_array_equal(got, ours()(held))


def test_sixteen_bits_are_computed_as_such(home, upscale):
    """Of a ramp within one level of 8 bits, steps remain."""
    ramp = np.linspace(30000, 30200, 40).astype(np.uint16)[None, :, None].repeat(30, 0).repeat(3, 2)
    save("a.png", ramp)
    save_model(load_model("edsr-baseline"), "m.safetensors")
    assert upscale("a.png", "-o", "b.png")[0] == 0
    got = read_image("b.png", full=True)[20:-20, 20:-20, 0].astype(int)
    assert got.dtype == int and len(np.unique(got)) > 30
    assert np.abs(got - np.linspace(30000, 30200, 80)[20:-20]).max() < 200


def test_what_a_format_cannot_hold_is_said(home, upscale):
    save("a.png", smooth(31, 23, 4, dtype="uint16"))
    code, out, err = upscale("a.png", "-o", "b.jpg", "--json")
    assert code == 0 and err.count("\n") == 2
    assert "note: a.png: JPEG has no transparency" in err and "16-bit samples are rounded" in err
    assert len(json.loads(out)["warnings"]) == 2
    assert upscale("a.png", "-o", "c.jpg", "--quiet") == (0, "", "")


def test_profile_orientation_and_resolution_are_kept(home, upscale):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A maker"
    pillow(smooth(31, 23)).save("a.jpg", exif=exif, icc_profile=ICC, dpi=(300, 300))
    assert upscale("a.jpg", "--format", "keep")[0] == 0
    with Image.open("a_x2.jpg") as image:
        assert image.size == (62, 46) and image.getexif().get(0x0112, 1) == 1
        assert image.getexif()[0x010F] == "A maker" and image.info["icc_profile"] == ICC
        assert image.info["dpi"] == (300, 300)


@pytest.mark.parametrize(
    ("form", "suffix", "kind"),
    [
        ("png", "png", "PNG"),
        ("jpg", "jpg", "JPEG"),
        ("webp", "webp", "WEBP"),
        ("tiff", "tiff", "TIFF"),
        ("avif", "avif", "AVIF"),
    ],
)
def test_formats(home, upscale, form, suffix, kind):
    assert upscale("photo.png", "--format", form)[0] == 0
    assert Image.open(f"photo_x2.{suffix}").format == kind


def test_quality(home, upscale):
    for quality in "20", "95":
        assert upscale("photo.png", "-o", f"{quality}.jpg", "--quality", quality)[0] == 0
    assert os.path.getsize("20.jpg") < os.path.getsize("95.jpg")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--quality", "0"),
        ("--quality", "101"),
        ("--width", "0"),
        ("--outscale", "-1"),
        ("--outscale", "nan"),
        ("--format", "bmp"),
    ],
)
def test_values_out_of_range_are_misuse(home, upscale, arguments):
    with pytest.raises(SystemExit) as caught:
        upscale("photo.png", *arguments)
    assert caught.value.code == 2


def test_a_tree_keeps_its_formats(home, upscale):
    (home / "in" / "deep").mkdir(parents=True)
    for name in "a.png", "a.jpg", "deep/b.webp":
        pillow(smooth(9, 9)).save(home / "in" / name)
    assert upscale("in", "-o", "out/", "--recursive", "--format", "keep")[0] == 0
    assert names("out") == ["a_x2.jpg", "a_x2.png", "deep"] and names("out/deep") == ["b_x2.webp"]


# --- sizes


def test_any_size(home, upscale):
    assert upscale("photo.png", "--outscale", "1.3")[0] == 0
    assert Image.open("photo_x1.3.png").size == (52, 39)
    assert upscale("photo.png", "--width", "79", "--linear-light")[0] == 0
    assert Image.open("photo_w79.png").size == (79, 59)
    code, _, err = upscale("photo.png", "--height", "61", "-o", "no.png")
    assert code == 1 and "81 x 61 is more than 2 times its 40 x 30" in err and err.count("\n") == 1
    assert not os.path.exists("no.png")
    code, _, err = upscale("photo.png", "--height", "61", "--outscale", "2")
    assert code == 2 and "--outscale" in err and err.count("\n") == 1


def test_the_networks_own_size_is_not_reduced(home, upscale):
    assert upscale("photo.png", "--outscale", "2")[0] == 0
    np.testing.assert_array_equal(read_image("photo_x2.png"), ours()(make_image(30, 40)))


# --- standard input and output


@pytest.mark.parametrize("kind", ["png", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("jpeg", "tiff"))])
def test_pipes(home, kind):
    data = encoded(kind, pillow(smooth(20, 30)))
    done = process("-", stdin=data)
    assert done.returncode == 0 and done.stderr.startswith(b"standard output  60 x 40")
    (home / f"in.{kind}").write_bytes(data)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(done.stdout))), ours()(read_image(f"in.{kind}")))
    assert names(home) == sorted(["m.safetensors", "photo.png", f"in.{kind}"])


@pytest.mark.slow
def test_pipes_to_and_from_files(home):
    done = process("photo.png", "-o", "-", "--format", "webp", "--quiet")
    assert (done.returncode, done.stderr) == (0, b"") and Image.open(io.BytesIO(done.stdout)).format == "WEBP"
    done = process("-", "-o", "b.tif", "--json", stdin=(home / "photo.png").read_bytes())
    assert done.returncode == 0 and Image.open("b.tif").size == (80, 60)
    record = json.loads(done.stdout)
    assert (record["input"], record["output"]) == ("standard input", "b.tif")


def test_a_pipe_into_a_folder_makes_the_folder(home):
    done = process("-", "-o", "new/", stdin=(home / "photo.png").read_bytes())
    assert done.returncode == 0 and names("new") == ["stdin_x2.png"] and done.stdout == b""
    assert done.stderr.startswith(os.path.join("new", "stdin_x2.png").encode())


@pytest.mark.slow
def test_a_folder_of_one_image_may_go_to_standard_output(home):
    (home / "in").mkdir()
    (home / "photo.png").rename(home / "in" / "photo.png")
    done = process("in", "-o", "-")
    assert done.returncode == 0 and Image.open(io.BytesIO(done.stdout)).size == (80, 60)
    save("in/other.png", smooth(9, 9))
    done = process("in", "-o", "-")
    assert done.returncode == 2 and done.stdout == b"" and done.stderr.startswith(b"error: -o -: standard output")
    assert done.stderr.count(b"\n") == 1


def test_files_called_like_a_stream_are_told_by_their_name(home, upscale):
    (home / "edsr-samples").mkdir()
    (home / "photo.png").rename(home / "edsr-samples" / "stdin.png")
    name = os.path.join("edsr-samples", "stdin.png")
    code, out, _ = upscale(name, "-o", os.path.join("edsr-samples", "stdout.png"), "--json")
    record = json.loads(out)
    assert code == 0 and record["input"] == name and record["output"] == os.path.join("edsr-samples", "stdout.png")


@pytest.mark.parametrize("stdin", [b"", b"no image", None])
def test_a_bad_pipe_is_one_line_and_no_output(home, stdin):
    whole = encoded("jpeg", pillow(smooth(80, 70)))
    done = process("-", stdin=whole[: len(whole) // 2] if stdin is None else stdin)
    assert done.returncode == 1 and done.stdout == b""
    assert done.stderr.startswith(b"error: standard input: ") and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-", "photo.png"), b"one image"),
        (("-", "--json"), b"--json"),
        (("photo.png", "m.safetensors", "-o", "-"), b"one image"),
    ],
)
def test_pipes_misused(home, arguments, says):
    done = process(*arguments)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count(b"\n") == 1 and done.stdout == b""


# --- devices and machines


def test_several_devices(home, upscale):
    code, out, _ = upscale("photo.png", "--device", "cpu,cpu", "--json")
    assert code == 0 and json.loads(out)["device"] == "cpu,cpu"
    np.testing.assert_array_equal(read_image("photo_x2.png"), ours()(make_image(30, 40)))


def test_torchrun_shares_a_batch(home):
    """Two processes: each image once, one list of failures, told after all have ended."""
    (home / "in").mkdir()
    for i in range(7):
        pillow(smooth(9, 9 + i)).save(home / "in" / f"{i}.png")
    (home / "in" / "3.png").write_bytes(b"broken")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
        ROOT / "cli.py",
        "upscale",
        "in",
        "-o",
        "out/",
    ]
    command += ["--model", "m.safetensors", "--json", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    done = run_process(command, capture_output=True, text=True, env=environment)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode != 0  # torchrun's own, because one file failed
    assert sorted(record["input"] for record in records) == [f"in/{i}.png" for i in range(7)]
    assert names("out") == [f"{i}_x2.png" for i in range(7) if i != 3]
    assert done.stderr.count("6 of 7 images done, 1 failed:") == 1


class Writes(io.StringIO):
    """A stream that keeps what each call wrote."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def write(self, text):
        self.calls.append(text)
        return super().write(text)


@pytest.mark.parametrize("json_flag", [["--json"], []])
def test_each_line_is_one_write(home, upscale, monkeypatch, json_flag):
    """Processes that share a stream cannot tear each other's lines apart."""
    (home / "broken.png").write_bytes(b"broken")
    save("alpha.png", smooth(9, 9, 4))
    out, err = Writes(), Writes()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    upscale("photo.png", "broken.png", "alpha.png", "--format", "jpg", *json_flag)
    assert len(out.calls) == (3 if json_flag else 2) and len(err.calls) == 3  # an error, a note, the summary
    assert all(text.endswith("\n") for text in out.calls + err.calls)


# --- nothing lost


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's files")
@pytest.mark.parametrize(
    "name", ["b.png", *(pytest.param(f"b.{kind}", marks=pytest.mark.slow) for kind in ("jpg", "webp", "tif", "avif"))]
)
def test_a_full_disk_leaves_nothing(home, name):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (200, 200, 3), np.uint8)).save("noise.png")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    before = names(home)
    done = process("noise.png", "-o", name, preexec_fn=limit)
    assert done.returncode == 1 and done.stdout == b""
    assert done.stderr.startswith(f"error: {name}: cannot be written".encode()) and done.stderr.count(b"\n") == 1
    assert names(home) == before


@pytest.mark.slow
def test_an_existing_file_survives_a_full_disk(home):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save("noise.png")
    (home / "b.png").write_bytes(b"precious")
    code = "import resource, sys; sys.path.insert(0, sys.argv.pop(1)); import cli\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, ROOT, "upscale", "noise.png", "-o", "b.png", "--overwrite"]
    done = run_process([*command, "--model", "m.safetensors"], capture_output=True)
    assert done.returncode == 1 and (home / "b.png").read_bytes() == b"precious"
    assert names(home) == ["b.png", "m.safetensors", "noise.png", "photo.png"]

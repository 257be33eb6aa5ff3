"""What becomes of floating-point images from file to file, by a network that repeats every pixel; files by tifffile."""

import numpy as np
import pytest
import pyvips
import tifffile
import torch
from PIL import Image

from edsr.images import ImageReader, ImageWriter, ValueRange, read_image
from edsr.models import EDSR, EDSRConfig
from edsr.weights import save_model
from tests.support.image_files import make_image, refused

BASE = make_image(20, 24, 3, dtype="float32").clip(0.1, 0.9)


@pytest.fixture
def repeat(run, tmp_path, monkeypatch):
    """`upscale` of an image of floats, twice as large: (code, the result or None, what is said)."""
    model = EDSR(EDSRConfig(blocks=1, features=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for layer, r in (model.head, 1), (model.upsampler[0], 2), (model.tail, 1):
            for i in range(3):
                layer.weight[i * r * r : (i + 1) * r * r, i, 1, 1] = 1
    monkeypatch.chdir(tmp_path)
    save_model(model, tmp_path / "repeat.safetensors")

    def call(pixels, suffix="tif", *options):
        alpha = ("unassalpha",) if pixels.shape[2] in (2, 4) else None
        photometric = "rgb" if pixels.shape[2] > 2 else "minisblack"
        pixels = pixels if pixels.shape[2] > 1 else pixels[:, :, 0]
        tifffile.imwrite("a.tif", pixels, photometric=photometric, planarconfig="contig", extrasamples=alpha)
        (tmp_path / f"b.{suffix}").unlink(missing_ok=True)
        code, _, said = run("upscale", "a.tif", "-o", f"b.{suffix}", "--model", "repeat.safetensors", *options)
        assert code == 0 or not (tmp_path / f"b.{suffix}").exists()
        path = tmp_path / f"b.{suffix}"
        unreadable = code or (suffix == "tif" and options)  # of another range
        result = None if unreadable else read_image(path, full=True)
        return code, result, said

    return call


def raw(path):
    """The samples as they stand in a TIFF of floats."""
    return pyvips.Image.tiffload(str(path)).numpy()


def twice(pixels):
    return pixels.repeat(2, 0).repeat(2, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("top", [0.9, 1.7, 3.9])
def test_highlights_are_kept_in_floats(repeat, channels, top):
    pixels = BASE[:, :, :channels] * np.float32(top / 0.9) - np.float32(0.2)
    code, result, said = repeat(pixels)
    assert (code, said) == (0, "") and np.allclose(result, twice(pixels), rtol=0, atol=1e-5)


def test_highlights_are_cut_off_in_whole_numbers(repeat):
    pixels = BASE * np.float32(2)
    for suffix, white in ("png", 65535), ("webp", 255), ("jpg", 255):
        code, result, said = repeat(pixels, suffix)
        assert code == 0 and f"samples of {pixels.min():.6g}..{pixels.max():.6g} are cut off at 0 and 1" in said
        if suffix == "png":
            assert np.array_equal(result, np.rint(twice(pixels).clip(0, 1) * white))
    code, _, said = repeat(BASE, "png")
    assert code == 0 and "cut off" not in said


@pytest.mark.parametrize("where", ["first row", "last row"])
@pytest.mark.parametrize(
    ("scale", "shift", "example"),
    [(255, 0, "--range=0,255"), (2000, -300, "--range=-300,1700"), (65535, 0, "--range="), (2, -1, "--range=-1,1")],
)
def test_other_ranges_are_refused(repeat, scale, shift, example, where):
    pixels = np.full_like(BASE, 0.5)
    pixels[0 if where == "first row" else -1] = np.linspace(0, 1, 24)[:, None] * scale + shift
    code, _, said = repeat(pixels)
    assert code == 1 and example in said
    assert f"{pixels.min():.6g}..{pixels.max():.6g}" in said.replace(" ", "").split("samplesof")[1]
    code, _, said = repeat(pixels, "png")
    assert code == 1 and example in said and "rounded" not in said  # which is of a result, and there is none


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (-300, 1700), (1, 0), (-1, 1)])
def test_a_named_range(repeat, channels, low, high):
    """Back in the same range in floats; black to white in whole numbers, which is said. Alpha stays as it is."""
    colors = channels - (channels in (2, 4))
    unit = make_image(20, 24, channels, dtype="float32").clip(0, 1)
    unit[:, :, colors:] = 1
    pixels = unit.copy()
    pixels[:, :, :colors] = low + unit[:, :, :colors] * (high - low)
    option = f"--range={low},{high}"
    code, _, said = repeat(pixels, "tif", option)
    assert (code, said) == (0, "")
    result = raw("b.tif").reshape(40, 48, channels)
    assert np.allclose(result, twice(pixels), rtol=0, atol=1e-6 * abs(high - low) + 1e-4 * (abs(low) > 1))
    code, result, said = repeat(pixels, "png", option)
    assert code == 0 and f"{low} and {high} become black and white" in said
    assert np.abs(result - twice(unit) * 65535.0).max() <= 1


def test_a_named_range_and_another_size(repeat):
    pixels = np.full_like(BASE, 200)
    assert repeat(pixels, "tif", "--range=0,255", "--outscale", "1.5")[0] == 0
    assert np.allclose(raw("b.tif"), 200, atol=1e-3)


def test_crops_of_a_named_range(repeat):
    """The map is fixed, whatever an image holds."""
    pixels = BASE * 1000
    repeat(pixels, "tif", "--range=0,1000")
    whole = raw("b.tif")
    repeat(pixels[5:15], "tif", "--range=0,1000")
    assert np.array_equal(raw("b.tif"), whole[10:30])


def test_a_range_for_whole_numbers(run, home):
    code, _, said = run("upscale", "photo.png", "-o", "b.png", "--model", "m.safetensors", "--range=0,4095")
    assert code == 0 and "range given is not applied" in said
    run("upscale", "photo.png", "-o", "c.png", "--model", "m.safetensors")
    assert (home / "b.png").read_bytes() == (home / "c.png").read_bytes()


@pytest.mark.parametrize("text", ["0", "0,0", "a,b", "0,inf", "nan,1", "0,1,2"])
def test_wrong_ranges(upscale, home, text, capsys):
    with pytest.raises(SystemExit) as error:
        upscale("photo.png", f"--range={text}")
    assert error.value.code == 2 and "LOW,HIGH" in capsys.readouterr().err


def test_alpha_is_in_0_to_1(repeat):
    pixels = np.dstack([BASE, np.full((20, 24), 255, np.float32)])
    code, _, said = repeat(pixels)
    assert code == 1 and "alpha" in said
    assert repeat(pixels, "tif", "--range=0,255")[0] == 1
    pixels[:, :, 3] = np.linspace(-0.1, 1.1, 24)  # as filters overshoot
    code, result, _ = repeat(pixels)
    assert code == 0 and np.allclose(result[:, :, 3], twice(pixels[:, :, 3:].clip(0, 1))[:, :, 0], atol=1e-6)


def test_other_commands_name_the_range(run, repeat, tmp_path):
    repeat(BASE * 255)
    for command in ("compare", "a.tif"), ("compare", "--hr", "a.tif"):
        code, _, said = run(*command, "--model", "repeat.safetensors")
        assert code == 1 and "--range" in said
    (tmp_path / "hr").mkdir()
    (tmp_path / "a.tif").rename(tmp_path / "hr/a.tif")
    for command in (
        ("evaluate", "--hr", "hr", "--model", "repeat.safetensors"),
        ("train", "--data", "hr", "--out", "run"),
    ):
        code, out, said = run(*command)
        assert code == 1 and "floating-point samples are not supported" in out + said


@pytest.mark.parametrize("value_range", [ValueRange(0, 1000), (0, 1000)])
def test_in_python(tmp_path, value_range):
    tifffile.imwrite(tmp_path / "a.tif", BASE * 1000, photometric="rgb")
    refused("such as value_range=ValueRange(", read_image, tmp_path / "a.tif", full=True)
    with ImageReader(tmp_path / "a.tif", full=True, value_range=value_range) as reader:
        rows = np.concatenate(list(reader.rows(7)))
        assert np.allclose(rows, BASE, atol=1e-6)
        assert (reader.found.low, reader.found.high) == ((BASE * 1000).min(), (BASE * 1000).max())
        with ImageWriter(tmp_path / "b.tif", 24, 20, 3, like=reader, dtype=reader.dtype) as writer:
            writer.write(rows)
    assert np.allclose(raw(tmp_path / "b.tif"), BASE * 1000, atol=1e-3)


def test_no_nan_in_whole_numbers(tmp_path):
    with pytest.raises(ValueError, match="NaN"), ImageWriter(tmp_path / "a.png", 4, 4, 1, dtype=np.float32) as writer:
        writer.write(np.full((4, 4, 1), np.nan, np.float32))
    assert not (tmp_path / "a.png").exists()


def test_pillow_agrees_on_gray(repeat):
    pixels = BASE[:, :, :1] * np.float32(1.5)
    repeat(pixels)
    with Image.open("b.tif") as image:
        assert np.allclose(np.asarray(image), twice(pixels)[:, :, 0], atol=1e-5)


@pytest.mark.parametrize("nodata", [-3.4028235e38, 1e30, np.nan, np.inf])
def test_a_named_range_and_samples_without_data(repeat, nodata):
    """They come back as they were, to the bit, though all others go through the range."""
    pixels = BASE[:, :, :1] * 2000 - np.float32(300)
    pixels[7, 9] = nodata
    assert repeat(pixels, "tif", "--range=-300,1700")[0] == 0
    result, expected = raw("b.tif").reshape(40, 48), twice(pixels)[:, :, 0]
    hole = np.zeros((40, 48), bool)
    hole[14:16, 18:20] = True
    assert np.array_equal(result[hole], expected[hole], equal_nan=True)
    assert np.allclose(result[~hole], expected[~hole], rtol=0, atol=1e-3)
    assert repeat(pixels)[0] == 1  # which range has the rest?

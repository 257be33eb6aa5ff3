"""What a checkpoint does not say: found from its weights, asked for, or assumed and said."""

import json
import logging
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from edsr.errors import WeightsError
from edsr.weights import load_model, load_with_notes, read_info, save_model
from edsr.weights.edsr import LAYOUTS
from tests.support.checkpoints import refusal
from tests.support.repeating import in_layout, repeating

PROJECTS = [name for name in LAYOUTS if name != "super-image"]


def stored(path, layout="basicsr", **options):
    torch.save(in_layout(repeating(**options), layout), path)
    return path


def assert_repeats(model):
    x, model = torch.rand(1, 3, 9, 8, dtype=torch.float64), model.double()
    with torch.no_grad():
        repeated = x.repeat_interleave(model.config.scale, 2).repeat_interleave(model.config.scale, 3)
        assert (model(x) - repeated).abs().max() < 1e-4


@pytest.mark.parametrize("layout", PROJECTS)
@pytest.mark.parametrize("residual_scale", [1.0, 0.1])
@pytest.mark.parametrize("gain", [1.0, 5.0])
@pytest.mark.parametrize("scale", [2, 4])
def test_published_residual_scales_are_found(layout, residual_scale, gain, scale, tmp_path):
    path = stored(tmp_path / "x.pt", layout, scale=scale, gain=gain, residual_scale=residual_scale)
    info = read_info(path)
    assert (info["residual_scale"], info["residual_scale_source"]) == (residual_scale, "found")
    assert_repeats(load_model(path))
    assert [("0.1" in note and "residual_scale sets another" in note) for note in info["notes"]] == [True] * (
        residual_scale < 1
    )


@pytest.mark.parametrize("residual_scale", [0.04, 0.2, 0.33, 0.5, 0.75])
@pytest.mark.parametrize("layout", PROJECTS)
def test_others_are_asked_for_by_name(layout, residual_scale, tmp_path):
    path = stored(tmp_path / "x.pt", layout, blocks=3, gain=4.0, residual_scale=residual_scale)
    message = refusal(path)
    suggested = float(message.split("give residual_scale=")[1])
    assert suggested == pytest.approx(residual_scale, rel=0.06)
    model = load_model(path, residual_scale=residual_scale)
    assert_repeats(model)
    assert read_info(path, residual_scale=residual_scale)["residual_scale_source"] == "given"


def test_where_it_makes_no_difference_nothing_is_said(tmp_path, caplog):
    path = stored(tmp_path / "x.pt", gain=0.0)
    assert read_info(path)["residual_scale_source"] == "any"
    assert load_with_notes(path)[1] == () and not caplog.records
    assert load_model(path).config.residual_scale == 1


def test_untrained_weights_are_read_as_usual_and_that_is_said(tmp_path, caplog):
    model = repeating(blocks=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    torch.save(in_layout(model, "mmagic"), tmp_path / "x.pt")
    caplog.set_level(logging.WARNING, "edsr")
    assert load_model(tmp_path / "x.pt").config.residual_scale == 1
    (line,) = caplog.messages
    assert "residual scale 1 assumed" in line and "give residual_scale" in line
    caplog.clear()
    load_model(tmp_path / "x.pt", residual_scale=0.5)
    assert not caplog.messages


def test_real_networks_tell_their_residual_scale(tmp_path):
    """The packaged networks without their header: none is misread. Those that keep what they are given do not prove it,
    since they nearly do so with a tenth of their blocks as well."""
    for name, scale in product(("edsr-baseline", "edsr-photo"), (2, 3, 4)):
        torch.save(in_layout(load_model(name, scale), "basicsr"), tmp_path / "x.pth")
        info = read_info(tmp_path / "x.pth")
        assert info["residual_scale"] == 1
        if name == "edsr-baseline":
            assert info["residual_scale_source"] == "assumed"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
def test_residual_scale_that_is_no_number_is_refused(value, tmp_path):
    assert "residual scale is a number" in refusal(stored(tmp_path / "x.pt"), residual_scale=value)


def test_our_files_state_it(tmp_path):
    save_model(repeating(gain=4.0, residual_scale=0.33), tmp_path / "x.safetensors")
    info = read_info(tmp_path / "x.safetensors")
    assert (info["residual_scale"], info["residual_scale_source"], info["notes"]) == (0.33, "file", [])
    with pytest.raises(WeightsError, match=r"says residual scale 0\.33, not 0\.5"):
        load_model(tmp_path / "x.safetensors", residual_scale=0.5)


# The command line


@pytest.fixture
def odd(home):
    """A checkpoint of residual scale 0.3, which must be told, and an original to score it with."""
    stored(home / "odd.pt", blocks=3, gain=4.0, residual_scale=0.3)
    (home / "hr").mkdir()
    Image.open(home / "photo.png").resize((80, 60), 0).save(home / "hr" / "0.png")
    return home


@pytest.mark.parametrize(
    "command",
    [
        ("upscale", "photo.png", "--model", "odd.pt"),
        ("compare", "photo.png", "--model", "odd.pt"),
        ("evaluate", "--hr", "hr", "--model", "odd.pt"),
        ("info", "odd.pt"),
        ("convert", "odd.pt", "odd.safetensors"),
    ],
    ids=lambda command: command[0],
)
def test_every_command_asks_for_it_and_takes_it(command, odd, run):
    code, out, err = run(*command)
    assert code == 1 and err.count("\n") == 1 and "give --residual-scale" in err and not out.count("0.3 ")
    assert run(*command, "--residual-scale", "0.3")[0] == 0
    for bad in "0", "-1", "nan", "x":
        with pytest.raises(SystemExit, match="2"):
            run(*command, "--residual-scale", bad)


def test_upscale_and_info_say_what_was_found(home, run, upscale):
    stored(home / "found.pt", gain=5.0, blocks=2, residual_scale=0.1)
    code, out, err = upscale("photo.png", "--json", model="found.pt")
    record = json.loads(out)
    assert code == 0 and ["residual scale 0.1, found" in line for line in record["warnings"]] == [True]
    assert "note: photo.png: found.pt: residual scale 0.1" in err
    before = np.asarray(Image.open("photo.png").convert("RGB"))
    assert (np.asarray(Image.open("photo_x2.png")) == before.repeat(2, 0).repeat(2, 1)).all()
    code, out, _ = run("info", "found.pt")
    assert "0.1 (found from the weights)" in out and "note: residual scale 0.1" in out
    assert json.loads(run("info", "found.pt", "--json")[1])["residual_scale_source"] == "found"

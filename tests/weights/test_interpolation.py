"""Mixtures of networks: names, the mean of tensors to the bit, networks that do not fit, files of mixtures."""

import json

import pytest
import torch

from edsr import cli
from edsr.errors import WeightsError
from edsr.weights import files as weights
from edsr.weights import interpolation, load_model, read_info, save_model
from edsr.weights.interpolation import parse_mixture
from tests.conftest import network


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Small networks in the place of the packaged ones, of two scales; the current folder."""
    (tmp_path / "packaged").mkdir()
    for name in "edsr-baseline", "edsr-photo":
        for scale in 2, 3:
            save_model(network(scale), tmp_path / "packaged" / f"{name}-x{scale}.safetensors", dtype=torch.float32)
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "packaged")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("edsr-baseline:0.3+edsr-photo:0.7", {"edsr-baseline": 0.3, "edsr-photo": 0.7}),
        ("a:3+b:1", {"a": 0.75, "b": 0.25}),
        ("a:1", {"a": 1}),
        ("a:.5+b:5e-1+a:1e0", {"a": 0.75, "b": 0.25}),
        ("a:1e+3+b:1000", {"a": 0.5, "b": 0.5}),
        ("a:2+b:-1", {"a": 2, "b": -1}),
        (r"C:\my+net.pt:1+/a:b/c.pt:1", {r"C:\my+net.pt": 0.5, "/a:b/c.pt": 0.5}),
        ("a b\n:1+ü:3", {"a b\n": 0.25, "ü": 0.75}),
    ],
)
def test_names(text, parts):
    assert parse_mixture(text) == parts
    assert parse_mixture(interpolation.mixture_name(parts)) == pytest.approx(parts, abs=1e-12)


@pytest.mark.parametrize("text", ["", "a", "a:", "a:x", "a:1+", "a:1+b", "+", ":", ":1", "a.safetensors", r"C:\a.pt"])
def test_names_that_are_no_mixtures(text):
    assert parse_mixture(text) is None


@pytest.mark.parametrize("text", ["a:0", "a:1+b:-1", "a:-1", "a:nan", "a:inf", "a:inf+b:-inf", "a:1e999"])
def test_shares_that_sum_to_nothing(folder, text):
    with pytest.raises(ValueError, match="sum to"):
        parse_mixture(text)
    with pytest.raises(WeightsError, match="sum to") as caught:
        load_model(text)
    assert text in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("shares", [(0.3, 0.7), (1, 3), (0, 1), (1, 0), (1.5, -0.5), (1, 1, 1)])
def test_tensors_are_the_mean_exactly(folder, shares):
    """In fp64, rounded once."""
    save_model(network(2), "third.safetensors", dtype=torch.float32)
    names = ["edsr-baseline", "edsr-photo", "third.safetensors"][: len(shares)]
    text = "+".join(f"{name}:{share}" for name, share in zip(names, shares, strict=True))
    got, parts = load_model(text), [load_model(name).state_dict() for name in names]
    assert got.config == load_model("edsr-baseline").config and not got.training
    for key, tensor in got.state_dict().items():
        scaled = [share / sum(shares) * part[key].double() for share, part in zip(shares, parts, strict=True)]
        want = sum(scaled, torch.zeros_like(scaled[0]))
        assert tensor.dtype == torch.float32 and torch.equal(tensor, want.float())
    x = torch.rand(1, 3, 6, 5)
    assert torch.isfinite(got(x)).all()


def test_a_network_mixed_with_itself_is_itself(folder):
    for text in "edsr-photo:7", "edsr-photo:1+edsr-photo:3", "edsr-photo:1+edsr-baseline:0":
        for key, tensor in load_model(text).state_dict().items():
            assert torch.equal(tensor, load_model("edsr-photo").state_dict()[key])


def test_scales(folder):
    assert load_model("edsr-baseline:1+edsr-photo:1", 3).config.scale == 3
    save_model(network(3), "x3.safetensors")
    assert load_model("edsr-baseline:1+x3.safetensors:1").config.scale == 3  # the file has one only
    with pytest.raises(WeightsError, match=r"x3\.safetensors.* x3, not x2"):
        load_model("edsr-baseline:1+x3.safetensors:1", 2)
    with pytest.raises(WeightsError, match="edsr-photo x4 is not packaged"):
        load_model("edsr-photo:1", 4)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"scale": 3}, "x2 against x3"),
        ({"blocks": 3}, "2 blocks against 3 blocks"),
        ({"features": 16}, "8 features against 16 features"),
        ({"residual_scale": 0.1}, "residual scale 1 against residual scale 0.1"),
        ({"mean": (0.0, 0.0, 0.0)}, "mean 0.4488"),
    ],
)
def test_networks_that_do_not_fit(folder, other, says):
    save_model(network(), "a.safetensors")
    save_model(network(**other), "b.safetensors")
    text = "a.safetensors:1+a.safetensors:2+b.safetensors:1"
    with pytest.raises(WeightsError) as caught:
        load_model(text)
    line = str(caught.value)
    assert "a.safetensors and b.safetensors do not mix" in line and says in line and "\n" not in line


def test_parts_that_are_missing(folder, monkeypatch):
    for text in "edsr-baseline:1+none.pt:1", "edsr-baseline:x+edsr-photo:1", "edsr-baseline+edsr-photo:1":
        with pytest.raises(WeightsError, match=r"no such file, and not a preset .* or a mixture"):
            load_model(text)


def test_shares_that_are_scaled_are_told(folder):
    a, b = "edsr-baseline", "edsr-photo"
    for shares, says in ((0.3, 0.7), []), ((1, 3), ["the shares sum to 4 and are scaled to sum to 1"]):
        assert read_info(f"{a}:{shares[0]}+{b}:{shares[1]}")["notes"] == says


def test_sums_that_overflow(folder):
    save_model(network(), "third.safetensors")
    with pytest.raises(WeightsError, match="not finite"):
        load_model("edsr-baseline:1e300+edsr-photo:-1e300+third.safetensors:1")


@pytest.mark.parametrize("name", ["a:0.3+b:0.7", "edsr-baseline:1", "x+y:2.safetensors"])
def test_a_file_that_exists_is_a_file(folder, name):
    save_model(network(), "a.safetensors", dtype=torch.float32)
    (folder / "a.safetensors").rename(folder / name)
    if not name.endswith(".safetensors"):  # torch.load reads those
        torch.save(network().state_dict(), name)
    assert read_info(name)["training"] is None and read_info(name)["file"] == name


def test_convert_writes_a_mixture_and_info_shows_its_parts(folder, capsys):
    text = "edsr-baseline:1+edsr-photo:3"
    assert cli.main(["convert", text, "m.safetensors", "--scale", "3"]) == 0
    for name in text, "m.safetensors":
        capsys.readouterr()
        assert cli.main(["info", name, "--json", "--scale", "3"]) == 0
        info = json.loads(capsys.readouterr().out)
        assert info["training"] == {"mixture": {"edsr-baseline": 0.25, "edsr-photo": 0.75}}
        assert (info["file"], info["scale"], info["dtype"]) == (name, 3, "float32")
    assert cli.main(["info", text]) == 0
    assert "mixture" in capsys.readouterr().out
    want = load_model(text, 3).state_dict()
    assert all(torch.equal(tensor, want[key]) for key, tensor in load_model("m.safetensors").state_dict().items())
    assert cli.main(["convert", "edsr-baseline:1+edsr-photo:-1", "n.safetensors"]) == 1
    assert "sum to 0" in capsys.readouterr().err and not (folder / "n.safetensors").exists()

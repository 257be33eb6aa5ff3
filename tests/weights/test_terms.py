"""License, training data and what was assumed: shown by `info`, and gone along with the weights."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from edsr.models import PRESETS, EDSRConfig, SRCNNConfig, build_network
from edsr.training import train
from edsr.weights import load_model, read_info, save_model
from edsr.weights.terms import KEYS
from tests.conftest import network, training
from tests.support import checkpoints

RECORD = {"data": ["mine"], "licenses": ["CC0 1.0"], "steps": 7}
TERMS = {"license": "CC BY 4.0", "data": ["mine"], "data_licenses": ["CC0 1.0"], "origin": None, "assumed": []}


@pytest.fixture
def own(tmp_path):
    save_model(network(2).float(), tmp_path / "own.safetensors", training=RECORD, terms={"license": "CC BY 4.0"})
    return tmp_path / "own.safetensors"


def test_of_our_files(own, tmp_path, run):
    assert read_info(own)["terms"] == TERMS and tuple(TERMS) == KEYS
    code, out, _ = run("info", own)
    assert code == 0
    assert "\nlicense         CC BY 4.0\ntraining data   mine, under CC0 1.0\n" in out
    assert "\nassumed         nothing, all is stated\n" in out
    save_model(network(2).float(), tmp_path / "bare.safetensors")
    out = run("info", tmp_path / "bare.safetensors")[1]
    assert "\nlicense         not stated; ask whoever published the weights\ntraining data   not stated\n" in out


def test_of_packaged_weights_and_mixtures(run):
    terms = read_info("edsr-baseline")["terms"]
    assert terms["license"] == "MIT" and "CC BY-SA 4.0" in terms["data_licenses"] and not terms["assumed"]
    assert read_info("edsr-baseline:0.5+edsr-photo:0.5")["terms"] == terms
    assert json.loads(run("info", "edsr-baseline", "--json")[1])["terms"] == terms


def test_of_mixtures_those_of_all(own, tmp_path):
    other = tmp_path / "other.safetensors"
    for terms, license in (({"license": "MIT", "data": ["yours"]}, "CC BY 4.0 and MIT"), ({}, None)):
        save_model(network(2).float(), other, terms=terms)
        mixed = read_info(f"{own}:0.5+{other}:0.5")["terms"]
        assert (mixed["license"], mixed["data"]) == (license, ["mine", *terms.get("data", [])])


@pytest.mark.parametrize(
    ("make", "lines"),
    [
        (checkpoints.edsr_pytorch, ["residual scale 1: neither"]),  # sub_mean says the rest
        (checkpoints.basicsr, ["pixels of 0..255, as basicsr's", "mean of DIV2K, as in basicsr", "residual scale 1:"]),
        (checkpoints.mmagic, ["pixels of 0..1, as mmagic's", "mean of DIV2K, as in mmagic", "residual scale 1:"]),
        (checkpoints.mlcommons, ["pixels of 0..255, as mlcommons's", "mean 0, as in mlcommons", "residual scale 1:"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_of_other_projects_files(make, lines, tmp_path, run):
    torch.save(make(2)[0], tmp_path / "x.pth")
    terms = read_info(tmp_path / "x.pth")["terms"]
    assert terms["license"] is None and terms["origin"] == read_info(tmp_path / "x.pth")["layout"]
    assert len(terms["assumed"]) == len(lines)
    assert all(found.startswith(line) for found, line in zip(terms["assumed"], lines, strict=True))
    out = run("info", tmp_path / "x.pth")[1]
    assert f"\nassumed         {'; '.join(terms['assumed'])}\n" in out and f"a file of {terms['origin']}\n" in out
    given = read_info(tmp_path / "x.pth", residual_scale=1.0)["terms"]["assumed"]
    assert not any("residual" in line for line in given), "what is given is not assumed"


def test_of_other_networks_files(tmp_path):
    tensors = build_network(SRCNNConfig()).state_dict()
    save_file({key.replace("convs.0", "conv1").replace("convs.1", "conv2").replace("convs.2", "conv3"): value
               for key, value in tensors.items()}, tmp_path / "x.safetensors")  # fmt: skip
    kind, scale = read_info(tmp_path / "x.safetensors")["terms"]["assumed"]
    assert kind == "range and kind of pixels as in srcnn-pytorch" and scale.startswith("x2 assumed")


def test_of_our_tensors_without_a_header(tmp_path):
    save_file({key: value.float() for key, value in network(2).state_dict().items()}, tmp_path / "x.safetensors")
    first, second = read_info(tmp_path / "x.safetensors")["terms"]["assumed"]
    assert first == "mean of DIV2K" and second.startswith("residual scale 1")


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
def test_convert_carries_them(own, ending, tmp_path, run):
    path = tmp_path / f"new.{ending}"
    assert run("convert", own, path)[0] == 0
    terms = read_info(path, residual_scale=1.0)["terms"]
    assumed = ["pixels of 0..255, as basicsr's networks take them", "mean of DIV2K, as in basicsr"]
    assert terms == TERMS | {"assumed": assumed if ending == "pth" else []}


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
def test_convert_carries_what_was_assumed_of_another_projects_file(ending, tmp_path, run):
    torch.save(checkpoints.mmagic(2)[0], tmp_path / "x.pth")
    before = read_info(tmp_path / "x.pth")["terms"]
    assert run("convert", tmp_path / "x.pth", tmp_path / f"new.{ending}", "--residual-scale", "1")[0] == 0
    terms = read_info(tmp_path / f"new.{ending}", residual_scale=1.0)["terms"]
    assert terms["origin"] == "mmagic" and set(before["assumed"][:2]) <= set(terms["assumed"])


def test_what_other_projects_load_is_as_before(own, tmp_path, run):
    """The terms are no key of theirs: strict loading finds the tensors alone."""
    assert run("convert", own, tmp_path / "x.pt")[0] == run("convert", own, tmp_path / "x.pth")[0] == 0
    for content in torch.load(tmp_path / "x.pt"), torch.load(tmp_path / "x.pth")["params"]:
        assert all(isinstance(value, torch.Tensor) for value in content.values())
    module = torch.nn.Module()
    for key, value in torch.load(tmp_path / "x.pth")["params"].items():
        parent = module
        for name in key.split(".")[:-1]:
            if not hasattr(parent, name):
                parent.add_module(name, torch.nn.Module())
            parent = parent.get_submodule(name)
        parent.register_buffer(key.split(".")[-1], value)
    module.load_state_dict(torch.load(tmp_path / "x.pth")["params"], strict=True)


@pytest.mark.parametrize("layout", ["file", "folder"])
def test_trained_weights_have_those_of_what_they_started_from(layout, own, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "edsr-baseline", EDSRConfig(blocks=2, features=8))
    if layout == "folder":
        (tmp_path / "net").mkdir()
        own = own.rename(tmp_path / "net" / "model.safetensors").parent
    list(train(training(folder, tmp_path / "run", init=str(own), schedule="wsd")))
    for name in "last", "best":
        info = read_info(tmp_path / "run" / f"{name}.safetensors")
        assert info["terms"] == TERMS | {"license": None, "data": ["mine", "images"]}
        assert info["training"]["init"] == own.name
    own.rename(tmp_path / "gone")
    list(train(training(folder, tmp_path / "run", schedule="wsd", resume=True, steps=14)))
    info = read_info(tmp_path / "run" / "last.safetensors")
    assert info["training"]["steps"] == 14 and info["terms"]["data"] == ["mine", "images"]
    list(train(training(folder, tmp_path / "alone", init="none")))
    assert read_info(tmp_path / "alone" / "last.safetensors")["terms"]["data"] == ["images"]


@pytest.mark.parametrize("broken", ["[]", "{", '{"license": 3, "data": "x", "data_licenses": [1], "assumed": {}}'])
def test_damaged_terms(broken, own, tmp_path):
    with safe_open(own, "pt") as file:
        metadata = file.metadata() | {"terms": broken}
    tensors = {key: value.float() for key, value in load_model(own).state_dict().items()}
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    if broken.endswith("}"):
        terms = read_info(tmp_path / "x.safetensors")["terms"]
        assert terms == {"license": None, "data": ["mine"], "data_licenses": ["CC0 1.0"], "origin": None, "assumed": []}
    else:
        assert "its header is damaged (terms" in checkpoints.refusal(tmp_path / "x.safetensors")


def test_onnx_files_carry_them(own, tmp_path, run):
    onnx = pytest.importorskip("onnx")
    assert run("export", own, "-o", tmp_path / "x.onnx")[0] == 0
    properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "x.onnx").metadata_props}
    assert properties["license"] == "CC BY 4.0" and json.loads(properties["terms"]) == TERMS
    torch.save(checkpoints.basicsr(2)[0], tmp_path / "x.pth")
    assert run("export", tmp_path / "x.pth", "-o", tmp_path / "y.onnx")[0] == 0
    properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "y.onnx").metadata_props}
    assert properties["license"] == "not stated"
    assert json.loads(properties["terms"])["assumed"] == read_info(tmp_path / "x.pth")["terms"]["assumed"]

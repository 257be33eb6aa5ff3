"""ncnn's files: run by ncnn, where there is one, and by the few lines of an interpreter, from one pixel up."""

import builtins
import copy
import json
import os
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edsr.cli import main
from edsr.errors import ExportError
from edsr.export import build_ncnn, ncnn_file, write_ncnn
from edsr.weights import save_model
from tests.conftest import ROOT, network
from tests.export.cases import EVERY, images, networks, right, scales

FP16 = bytes.fromhex("476b3001")  # as ncnn's modelbin.cpp has it


def interpret(text: str, weights: bytes, x: torch.Tensor) -> torch.Tensor:
    """What the layers make of x, [3, H, W], in fp32; each blob is read once."""
    magic, counts, *lines = text.splitlines()
    assert magic == "7767517"
    blobs: dict[str, torch.Tensor] = {}
    made = 0

    def take(count: int, kind=np.float32) -> torch.Tensor:
        nonlocal weights
        size = count * np.dtype(kind).itemsize
        taken, weights = weights[:size], weights[size:]
        return torch.from_numpy(np.frombuffer(taken, kind).astype(np.float32))

    def convolution(x, options):
        kind = np.float16 if weights[:4] == FP16 else np.float32
        assert take(4, np.uint8) is not None and (kind == np.float32 or options[6] % 2 == 0)
        weight = take(options[6], kind).view(options[0], -1, options[1], options[1])
        y = F.conv2d(x[None], weight, take(options[0]), padding=options[4])[0]
        return y.relu() if options[9] else y

    layers = {
        "Input": lambda o: x,
        "Convolution": lambda o, x: convolution(x, o),
        "PReLU": lambda o, x: F.prelu(x[None], take(o[0]))[0],
        "BinaryOp": lambda o, x, y: {0: x + y}[o[0]],
        "PixelShuffle": lambda o, x: F.pixel_shuffle(x[None], o[0])[0],
        "Padding": lambda o, x: F.pad(x[None], (o[2], o[3], o[0], o[1]), {1: "replicate"}[o[4]])[0],
        "TanH": lambda o, x: x.tanh(),
    }
    for line in lines:
        kind, _, inputs, outputs, *words = line.split()
        names = words[: int(inputs) + int(outputs)]
        options = dict(map(int, word.split("=")) for word in words[len(names) :])
        sources, targets = [blobs.pop(name) for name in names[: int(inputs)]], names[int(inputs) :]
        results = sources * len(targets) if kind == "Split" else [layers[kind](options, *sources)]
        blobs |= zip(targets, results, strict=True)
        made += len(targets)
    assert counts == f"{len(lines)} {made}" and weights == b"" and list(blobs) == ["output"]
    return blobs["output"]


@networks
@scales
@pytest.mark.parametrize(("half", "span", "least"), [(False, 1, 1e-5), (False, 255, 1e-5), (True, 1, 2e-2)])
def test_files_are_the_network(make, scale, half, span, least):
    model = make(scale)
    text, weights = build_ncnn(copy.deepcopy(model).float().folded(), half, span)
    for x in images(1):
        y = interpret(text, weights, torch.from_numpy(x[0] * np.float32(span))).numpy() / span
        want = right(model, x)[0]
        assert y.shape == want.shape and abs(y - want).max() <= least * max(1, abs(want).max())


@networks
@scales
@pytest.mark.parametrize(("precision", "span", "least"), [("fp32", 255, 1e-5), ("fp16", 1, 2e-2)])
def test_ncnn_agrees(tmp_path, make, scale, precision, span, least):
    ncnn = pytest.importorskip("ncnn")
    model = make(scale)
    found = write_ncnn(copy.deepcopy(model).float(), tmp_path / "a.param", precision=precision, span=span)
    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert net.load_param(str(tmp_path / "a.param")) == net.load_model(str(tmp_path / "a.bin")) == 0
    for x in images(1):
        extractor = net.create_extractor()
        image = x[0] * np.float32(span)
        extractor.input("data", ncnn.Mat(image))
        y = np.array(extractor.extract("output")[1]) / span
        want = right(model, x)[0]
        assert y.shape == want.shape and abs(y - want).max() <= least * max(1, abs(want).max())
    assert found.path == tmp_path / "a.param" and found.error <= least * 10 and found.ring is None


@scales
@pytest.mark.parametrize("kind", ["edsr", "mdsr"])
def test_collapsed_is_exact_but_for_the_ring_which_is_told(tmp_path, kind, scale):
    pytest.importorskip("ncnn")
    found = write_ncnn(dict(EVERY)[kind](scale).float(), tmp_path / "a.param", collapsed=True)
    assert found.error < 1e-5 < found.ring
    assert (tmp_path / "a.param").read_text().count("PixelShuffle") == 1


@networks
@scales
def test_what_tools_go_by(make, scale):
    """Names that upscayl knows; what chaiNNer's reader tells scale and channels by, which knows these layers alone."""
    text, _ = build_ncnn(make(scale).float().folded())
    lines = [line.split() for line in text.splitlines()[2:]]
    known = {"Input", "Split", "Convolution", "PReLU", "BinaryOp", "PixelShuffle", "Padding", "TanH"}
    assert {line[0] for line in lines} <= known
    assert lines[0][4] == "data" and lines[-1][4 + int(lines[-1][2])] == "output"
    shuffled = [int(line[6].removeprefix("0=")) for line in lines if line[0] == "PixelShuffle"]
    assert np.prod(shuffled) == scale
    first = next(line for line in lines if line[0] == "Convolution")
    options = dict(map(int, word.split("=")) for word in first[6:])
    assert options[6] // options[0] // options[1] ** 2 == 3  # channels of the image


def test_the_files_say_what_they_are(tmp_path):
    write_ncnn(network(3), tmp_path / "a.param", precision="fp16", training={"licenses": "CC0 1.0"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.json", "a.param"]
    told = json.loads((tmp_path / "a.json").read_text())
    assert told.pop("training") == {"licenses": "CC0 1.0"}
    assert told == {
        "architecture": "edsr", "scale": 3, "color": "RGB", "range": 1, "precision": "fp16",
        "input": "data", "output": "output",
    }  # fmt: skip


# --- refusals


@pytest.fixture
def before(tmp_path):
    for ending in "bin", "json", "param":
        (tmp_path / f"a.{ending}").write_text(f"before {ending}")

    def unchanged(folder):
        return {path.name: path.read_text() for path in folder.iterdir()} == {
            f"a.{ending}": f"before {ending}" for ending in ("bin", "json", "param")
        }

    return lambda: unchanged(tmp_path)


def test_wrong_files_are_not_left(tmp_path, monkeypatch, before):
    monkeypatch.setattr(ncnn_file, "_runtime", lambda *files: lambda x: np.repeat(np.repeat(x, 2, 2), 2, 3) + 1)
    with pytest.raises(ExportError, match=r"not written, ncnn's result is off by .* of white"):
        write_ncnn(network(2), tmp_path / "a.param")
    assert before()


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("interrupt", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(("name", "nth"), [("replace", 1), ("replace", 2), ("replace", 3), ("fsync", 1), ("fsync", 3)])
def test_all_files_or_none(tmp_path, monkeypatch, request, there, interrupt, name, nth):
    before = request.getfixturevalue("before") if there else lambda: not [*tmp_path.iterdir()]
    real, calls = getattr(os, name), []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            raise interrupt
        return real(*arguments)

    monkeypatch.setattr(os, name, failing)
    with pytest.raises(ExportError if isinstance(interrupt, OSError) else KeyboardInterrupt) as caught:
        write_ncnn(network(2), tmp_path / "a.param")
    assert before() and (there or len(calls) >= nth)
    assert isinstance(interrupt, KeyboardInterrupt) or "cannot be written (No space left" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_gives_no_numbers(tmp_path, value):
    model = network(2)
    model.tail.weight.data[0, 0, 0, 0] = value
    with pytest.raises(ExportError, match=r"the network's own result is no number"):
        write_ncnn(model, tmp_path / "a.param")
    assert not [*tmp_path.iterdir()]


def test_a_weight_beyond_fp16(tmp_path, monkeypatch):
    model = network(2)
    model.tail.weight.data[0, 0, 0, 0] = 1e5
    with pytest.raises(ExportError, match="a weight is too large for fp16; write fp32"):
        write_ncnn(model, tmp_path / "a.param", precision="fp16")
    assert not [*tmp_path.iterdir()]


def test_without_the_package(tmp_path, monkeypatch, capsys):
    """The files are written, and it is said that they were not tried."""
    save_model(network(2), tmp_path / "a.safetensors")
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "ncnn":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert main(["export", str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "a.param")]) == 0
    assert "not tried: pip install 'edsr-triton[ncnn]'" in capsys.readouterr().out
    assert (tmp_path / "a.bin").stat().st_size > 0


def test_from_the_command_line(tmp_path, capsys):
    pytest.importorskip("ncnn")
    save_model(network(2), tmp_path / "w.safetensors", training={"licenses": "CC0 1.0"})
    arguments = ["export", str(tmp_path / "w.safetensors"), "-o", str(tmp_path / "a_x2.param")]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "ncnn's result is ours to" in shown.out and not shown.err
    assert json.loads((tmp_path / "a_x2.json").read_text())["training"]["licenses"] == "CC0 1.0"
    for ending in "param", "bin", "json":  # each of them is somebody's
        (tmp_path / "b.json").write_text("mine")
        (tmp_path / "b.json").rename(tmp_path / f"b.{ending}")
        assert main([*arguments[:-1], str(tmp_path / "b.param")]) == 1
        assert f"b.{ending} exists; add --overwrite" in capsys.readouterr().err
        (tmp_path / f"b.{ending}").unlink()
    assert main([*arguments, "--overwrite", "--precision", "fp16", "--collapsed", "--range", "255"]) == 0
    assert "in the outermost ring of pixels noise is off by up to" in capsys.readouterr().out
    assert main([*arguments[:-1], str(tmp_path / "a_x4.param")]) == 0
    assert "take this for x4, and it is x2; rename it" in capsys.readouterr().err
    os.rename(tmp_path / "w.safetensors", tmp_path / "w.bin")
    assert main(["export", str(tmp_path / "w.bin"), "-o", str(tmp_path / "w.param"), "--overwrite"]) == 2
    assert "w.bin is the network itself" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "w.bin"), "-o", str(tmp_path / "a.bin")]) == 2
    assert "name a file that ends in .onnx or .param" in capsys.readouterr().err


def test_examples_need_no_folder_that_may_not_be_there(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    shown = capsys.readouterr().out + (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    named = re.findall(r"export \S+ -o (\S+)", shown)
    assert len(named) >= 8 and not any("/" in name for name in named)

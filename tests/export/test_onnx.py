"""ONNX files: run by ONNX Runtime, and by OpenVINO where there is one, from one pixel up; what they say; refusals."""

import builtins
import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from edsr.cli import main
from edsr.errors import ExportError
from edsr.export import onnx_file, write_onnx
from edsr.models import fold
from edsr.weights import save_model
from tests.conftest import network
from tests.export.cases import EVERY, images, networks, right, scales
from tests.models.test_family import SMALL, small

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def session(path):
    made = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: made.run(None, {"input": x})[0]


@networks
@scales
@pytest.mark.parametrize(("precision", "span", "least"), [("fp32", 1, 1e-5), ("fp32", 255, 1e-5), ("fp16", 1, 2e-2)])
def test_it_is_the_networks_function(tmp_path, make, scale, precision, span, least):
    path = tmp_path / "a.onnx"
    model = make(scale)
    found = write_onnx(copy.deepcopy(model).float(), path, precision=precision, span=span)
    run = session(path)
    for x in images():
        y = run(x * np.float32(span)) / span
        want = right(model, x)
        assert y.shape == want.shape and abs(y - want).max() <= least * max(1, abs(want).max())
    assert found.path == path and found.error <= least * 10 and found.ring is None


@networks
def test_openvino_agrees(tmp_path, make):
    openvino = pytest.importorskip("openvino")
    model = make(2)
    write_onnx(copy.deepcopy(model).float(), tmp_path / "a.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "a.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for x in images():
        want = right(model, x)
        y = compiled(x)[0]
        assert y.shape == want.shape and abs(y - want).max() <= 2e-5 * max(1, abs(want).max())


@scales
@pytest.mark.parametrize("kind", ["edsr", "mdsr"])
def test_collapsed_is_exact_but_for_the_ring_which_is_told(tmp_path, kind, scale):
    model = dict(EVERY)[kind](scale)
    found = write_onnx(copy.deepcopy(model).float(), tmp_path / "a.onnx", collapsed=True)
    run = session(tmp_path / "a.onnx")
    for x in images():
        difference = abs(run(x) - right(model, x))
        assert difference[:, :, scale:-scale, scale:-scale].max(initial=0) < 1e-5
    assert difference.max() > 1e-4 and found.error < 1e-5 < found.ring


@networks
def test_shapes_follow_from_sizes(tmp_path, make):
    """As chaiNNer finds the scale, and vs-mlrt sets the size of its tiles: numbers over the free axes of the input."""
    write_onnx(make(3).float(), tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    for axis, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, 16, 24), strict=True):
        axis.dim_value = size
    onnx.checker.check_model(model)
    output = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output[0]
    assert [axis.dim_value for axis in output.type.tensor_type.shape.dim] == [1, 3, 48, 72]


def test_the_file_says_what_it_is(tmp_path):
    terms = {"steps": 7, "licenses": "CC0 1.0"}
    write_onnx(network(3), tmp_path / "a.onnx", span=255, training=terms)
    model = onnx.load(tmp_path / "a.onnx")
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert (told["architecture"], told["scale"], told["range"], told["color"]) == ("edsr", "3", "255", "RGB")
    assert json.loads(told["training"]) == terms
    assert model.opset_import[0].version >= 17
    ends = [*model.graph.input, *model.graph.output]
    assert [end.name for end in ends] == ["input", "output"]
    for end in ends:
        axes = [axis.dim_param or axis.dim_value for axis in end.type.tensor_type.shape.dim]
        assert axes[1] == 3 and all(isinstance(axis, str) for axis in (axes[0], *axes[2:]))


def test_half_the_size(tmp_path):
    model = network(2, blocks=4, features=32)
    for precision in "fp32", "fp16":
        write_onnx(model, tmp_path / f"{precision}.onnx", precision=precision)
    sizes = [(tmp_path / f"{precision}.onnx").stat().st_size for precision in ("fp16", "fp32")]
    assert 0.45 < sizes[0] / sizes[1] < 0.6


def test_a_network_in_training_is_written_as_it_infers(tmp_path):
    model = small(SMALL[4], 2).train()  # with batch normalizations
    before = copy.deepcopy(model.state_dict())
    write_onnx(model, tmp_path / "a.onnx")
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    x = images()[-1]
    assert abs(session(tmp_path / "a.onnx")(x) - right(model.eval(), x)).max() < 1e-5


# --- refusals


def test_a_wrong_file_is_not_left(tmp_path, monkeypatch):
    (tmp_path / "a.onnx").write_text("before")
    monkeypatch.setattr(onnx_file, "_runtime", lambda data: lambda x: np.repeat(np.repeat(x, 2, 2), 2, 3) + 1)
    with pytest.raises(ExportError, match=r"not written, ONNX Runtime's result is off by .* of white"):
        write_onnx(network(2), tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"] and (tmp_path / "a.onnx").read_text() == "before"


@pytest.mark.parametrize("faulty", [np.nan, np.inf])
def test_a_result_that_is_no_number(tmp_path, monkeypatch, faulty):
    shape = lambda x: (*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])  # noqa: E731
    monkeypatch.setattr(onnx_file, "_runtime", lambda data: lambda x: np.full(shape(x), faulty, np.float32))
    with pytest.raises(ExportError, match="off by inf"):
        write_onnx(network(2), tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (SMALL[1], {"collapsed": True}, "collapsed=True: srcnn has no linear end"),
        (SMALL[4], {"collapsed": True}, "collapsed=True: srresnet has no linear end"),
        (SMALL[1], {"precision": "bf16"}, "precision is fp32 or fp16"),
        (SMALL[1], {"span": 65535}, "the range 1 or 255"),
    ],
)
def test_what_cannot_be(tmp_path, config, options, message):
    with pytest.raises(ExportError, match=message):
        write_onnx(small(replace(config), 2).float(), tmp_path / "a.onnx", **options)
    with pytest.raises(ExportError, match=r"name a file that ends in \.onnx"):
        write_onnx(small(config, 2).float(), tmp_path / "a.bin")
    with pytest.raises(TypeError, match="the model is a network"):
        write_onnx(None, tmp_path / "a.onnx")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ExportError, match="the network is folded for inference"):
        write_onnx(fold(network(2)), tmp_path / "a.onnx")
    assert not [*tmp_path.iterdir()]


def test_without_the_package(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.partition(".")[0] in ("onnx", "onnxruntime") or name == "onnx_graph":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ExportError, match=r"pip install 'edsr-triton\[onnx\]'"):
        write_onnx(network(2), tmp_path / "a.onnx")
    assert not [*tmp_path.iterdir()]


def test_from_the_command_line(tmp_path, capsys):
    save_model(network(2), tmp_path / "a.safetensors", training={"licenses": "CC0 1.0"})
    arguments = ["export", str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "a.onnx")]
    assert main(arguments) == 0
    assert "ONNX Runtime's result is ours to" in capsys.readouterr().out
    assert "CC0 1.0" in {entry.key: entry.value for entry in onnx.load(tmp_path / "a.onnx").metadata_props}["training"]
    assert main(arguments) == 1 and "exists; add --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--collapsed", "--range", "255"]) == 0
    assert "in the outermost ring of pixels noise is off by up to" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "b.safetensors"), "-o", str(tmp_path / "b.onnx")]) == 1
    assert "no such file" in capsys.readouterr().err and not (tmp_path / "b.onnx").exists()
    assert main([*arguments[:3], str(tmp_path / "none" / "a.onnx")]) == 1 and capsys.readouterr().err.count("\n") == 1

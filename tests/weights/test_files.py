"""Weight files: found, unwrapped, written whole; every bad file gives one clear line."""

import json
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from edsr import cli
from edsr.errors import WeightsError
from edsr.models.edsr import DIV2K_MEAN, EDSR, PRESETS, EDSRConfig
from edsr.weights import files, list_packaged, load_model, read_info, save_checkpoint, save_model
from tests.support.checkpoints import (
    BLOCKS,
    FEATURES,
    assert_same_image,
    assert_same_state,
    basicsr,
    edsr_pytorch,
    mmagic,
    official,
    refusal,
)

# Wrappers


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"params": t},
        lambda t: {"params_ema": t, "params": {k: v + 1 for k, v in t.items()}},
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": t, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}},
        lambda t: {"state_dict": {f"generator.{k}": v for k, v in t.items()} | {"step_counter": torch.zeros(1)}},
        lambda t: {f"module.{k}": v for k, v in t.items()} | {"n_averaged": torch.tensor(5)},
        lambda t: {"model": {f"_orig_mod.module.{k}": v for k, v in t.items()}},
        lambda t: {"model": {"state_dict": t, "config": None}},
        lambda t: {k: torch.nn.Parameter(v) for k, v in t.items()},
    ],
    ids=[
        "params",
        "ema",
        "state_dict",
        "checkpoint",
        "generator",
        "averaged",
        "compiled",
        "nested",
        "parameters",
    ],
)
@pytest.mark.parametrize("make", [basicsr, mmagic, edsr_pytorch])
def test_wrapped_checkpoints(make, wrap, tmp_path):
    tensors, forward = make(2)
    torch.save(wrap(tensors), tmp_path / "x.ckpt")
    assert_same_image(load_model(tmp_path / "x.ckpt"), forward, 1e-7)


def test_old_torch_format(tmp_path):
    tensors, forward = edsr_pytorch(2)
    torch.save(tensors, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert_same_image(load_model(tmp_path / "x.pt"), forward, 1e-7)


# Our own files


@pytest.fixture
def model() -> EDSR:
    torch.manual_seed(0)
    return EDSR(EDSRConfig(3, BLOCKS, FEATURES, 0.3, (0.1, 0.2, 0.3))).eval()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("blocks", [0, 1, 11])
def test_round_trip(scale, blocks, tmp_path):
    model = EDSR(EDSRConfig(scale, blocks, 3, 0.7))
    save_model(model, tmp_path / "x.safetensors")
    again = load_model(str(tmp_path / "x.safetensors"), scale)
    assert again.config == model.config
    assert_same_state(again, model)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_round_trip_of_other_dtypes(model, dtype, tmp_path):
    save_model(model, tmp_path / "x.safetensors", dtype=dtype)
    again = load_model(tmp_path / "x.safetensors")
    assert read_info(tmp_path / "x.safetensors")["dtype"] == str(dtype).removeprefix("torch.")
    for key, value in model.state_dict().items():
        assert again.state_dict()[key].dtype == torch.float32
        assert torch.equal(again.state_dict()[key], value.to(dtype).float())


def test_info(model, tmp_path):
    training = {"data": ["a", "b"], "steps": 7, "scores": {"Set5": 33.5}}
    save_model(model, tmp_path / "x.safetensors", training=training)
    assert read_info(tmp_path / "x.safetensors") == {
        "file": str(tmp_path / "x.safetensors"),
        "layout": "edsr-triton",
        "architecture": "edsr",
        "scale": 3,
        "blocks": BLOCKS,
        "features": FEATURES,
        "residual_scale": 0.3,
        "mean": (0.1, 0.2, 0.3),
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": "float32",
        "training": training,
        "terms": {"license": None, "data": ["a", "b"], "data_licenses": [], "origin": None, "assumed": []},
        "residual_scale_source": "file",
        "notes": [],
    }
    save_model(model, tmp_path / "y.safetensors")
    assert read_info(tmp_path / "y.safetensors")["training"] is None


def test_headers_are_strict_json(model, tmp_path, capsys):
    """Also where a score is infinite; what an older version wrote into its header is shown as null."""
    path = tmp_path / "x.safetensors"
    save_model(model, path, training={"psnr": float("inf"), "history": [{"loss": float("nan")}]})
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["training"]) == {"psnr": None, "history": [{"loss": None}]}
    config = json.dumps(GOOD)
    header = {"format": "edsr-triton", "config": config, "training": '{"pictures": 3, "psnr": Infinity}'}
    save_file(model.state_dict(), path, header)
    assert cli.main(["info", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"] == {"pictures": 3, "psnr": None}


def test_equal_weights_are_equal_files(model, tmp_path):
    """Whatever the order in which safetensors writes what it is told of them."""
    files = []
    for i in range(8):
        save_model(model, tmp_path / f"{i}.safetensors", training={"data": ["Ä"]}, terms={"license": "CC0"})
        files.append((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(set(files)) == 1
    assert torch.equal(load_model(tmp_path / "0.safetensors").head.weight, model.head.weight)
    assert read_info(tmp_path / "0.safetensors")["training"]["data"] == ["Ä"]


def test_loading_leaves_the_file_free(model, tmp_path):
    """What is loaded does not live in the file any more, which may be overwritten."""
    path = tmp_path / "x.safetensors"
    save_model(model, path)
    loaded = load_model(path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert_same_state(loaded, model)


def test_failed_save_leaves_the_old_file_and_nothing_else(model, tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_model(model, path)
    before = path.read_bytes()
    broken = EDSR(replace(model.config, scale=2))
    with torch.no_grad():
        broken.get_parameter("tail.bias")[0] = 1e6
    with pytest.raises(WeightsError, match=r"tail\.bias is not finite in float16"):
        save_model(broken, path, dtype=torch.float16)
    with pytest.raises(TypeError):
        save_model(model, path, training={"x": object()})

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(WeightsError, match="No space left") as error:
        save_model(model, path)
    assert str(path) in str(error.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_interrupted_save_leaves_nothing(model, tmp_path, monkeypatch):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_leftovers_of_killed_processes_are_removed(model, tmp_path):
    (tmp_path / ".edsr-0123456789ab.part").write_bytes(b"half of a network")
    save_model(model, tmp_path / "x.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("name", ["x.pth", "x", "none/x.safetensors", "folder.safetensors"])
def test_unwritable_names(model, name, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(WeightsError) as error:
        save_model(model, tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.safetensors"]


# Presets


def test_presets(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    assert list_packaged() == {}
    assert "(packaged: none)" in refusal("edsr")
    models = {s: EDSR(replace(PRESETS["edsr-baseline"], blocks=1, features=4, scale=s)) for s in (4, 2)}
    for scale, model in models.items():
        save_model(model, tmp_path / f"edsr-baseline-x{scale}.safetensors")
    assert list_packaged() == {"edsr-baseline": (2, 4)}
    assert_same_state(load_model("edsr-baseline"), models[2])
    assert_same_state(load_model("edsr-baseline", 4), models[4])
    for name, scale in (("edsr-baseline", 3), ("edsr", None), ("edsr-baseline", 7)):
        message = refusal(name, scale=scale)
        assert f"{name} x{scale or 2}" in message
        assert "edsr-baseline x2, edsr-baseline x4" in message
        assert message.endswith("; give a file of weights")


def test_packaged_weights_are_what_their_names_say():
    for name, scales in list_packaged().items():
        for scale in scales:
            config = load_model(name, scale).config
            assert config == replace(PRESETS.get(name, PRESETS["edsr-baseline"]), scale=scale)


# Bad files


def test_no_such_file(tmp_path):
    for name in ("edsr-basline", str(tmp_path / "none.pth"), ""):
        message = refusal(name)
        assert "edsr-baseline, edsr" in message
    assert "folder" in refusal(tmp_path)
    assert "no such file" in refusal("x" * 5000)
    with pytest.raises(WeightsError, match=r"a\\x00b: no such file"):
        load_model("a\0b")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".ckpt", ""])
@pytest.mark.parametrize(
    "content", [b"", b"\0", b"PK\x03\x04", b"<html>404</html>", b"version https://git-lfs", b"\x80\x02."]
)
def test_not_a_checkpoint(suffix, content, tmp_path):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    assert "not a file of weights" in refusal(path)


def test_truncated(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(basicsr(2)[0], path)
    path.write_bytes(path.read_bytes()[:-100])
    refusal(path)
    path = tmp_path / "x.safetensors"
    save_file(basicsr(2)[0], path)
    path.write_bytes(path.read_bytes()[:-100])
    refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {},
        {"state_dict": {}},
        {"epoch": 3},
        {1: torch.zeros(3)},
        torch.zeros(3),
        None,
        {"head.0.weight": [0.5]},
        {"head.0.weight": torch.zeros(2, 3, 3, 3, dtype=torch.int64)},
        {"head.0.weight": torch.zeros(1).expand(1 << 20, 3, 3, 3)},
        {"head.0.weight": torch.zeros(2, 3, 3, 3).to_sparse()},
        {"head.0.weight": torch.zeros(2, 3, 3, 3, device="meta")},
        {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(9)},
    ],
    ids=lambda content: str(content)[:30].replace("\n", " "),
)
def test_checkpoint_of_something_else(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    assert "not a" in refusal(tmp_path / "x.pth")


def test_checkpoint_that_contains_itself(tmp_path):
    content = {}
    content["model"] = content
    torch.save(content, tmp_path / "x.pth")
    refusal(tmp_path / "x.pth")


class Bomb:
    def __init__(self, command: Callable, *arguments):
        self.reduced = command, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_unexecuted(zipped, tmp_path):
    target = tmp_path / "executed"
    for bomb in (Bomb(os.mkdir, str(target)), Bomb(eval, f"__import__('os').mkdir({str(target)!r})")):
        torch.save(
            {"state_dict": basicsr(2)[0], "x": bomb},
            tmp_path / "x.pth",
            _use_new_zipfile_serialization=zipped,
        )
        message = refusal(tmp_path / "x.pth")
        assert "holds code" in message
        assert "refused" in message
        assert not target.exists()


def test_torchscript_is_refused(tmp_path):
    torch.jit.script(torch.nn.Conv2d(3, 3, 1)).save(str(tmp_path / "x.pt"))
    assert "holds code (TorchScript)" in refusal(tmp_path / "x.pt")


def test_contradictions(model, tmp_path):
    path = tmp_path / "x.safetensors"
    save_model(model, path)
    assert "upscales x3, not x2" in refusal(path, scale=2)
    assert "residual scale 0.3, not 0.5" in refusal(path, residual_scale=0.5)
    assert load_model(path, 3, 0.3).config == model.config
    assert "unknown layout basic" in refusal(path, layout="basic")
    assert "conv_first.weight is missing" in refusal(path, layout="basicsr")


GOOD = {"scale": 3, "blocks": BLOCKS, "features": FEATURES, "residual_scale": 0.3, "mean": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize(
    "config",
    [
        json.dumps(GOOD | {"scale": 2}),
        json.dumps(GOOD | {"blocks": BLOCKS + 1}),
        json.dumps(GOOD | {"features": 64}),
        json.dumps(GOOD | {"scale": 8}),
        json.dumps(GOOD | {"scale": "three"}),
        json.dumps(GOOD | {"residual_scale": None}),
        json.dumps(GOOD | {"residual_scale": float("nan")}),
        json.dumps(GOOD | {"residual_scale": 10**400}),
        json.dumps(GOOD | {"mean": [0.1, 0.2]}),
        json.dumps(GOOD | {"mean": 0.1}),
        json.dumps({k: v for k, v in GOOD.items() if k != "residual_scale"}),
        "[]",
        "{",
        "[" * 100_000,
        None,
    ],
    ids=lambda config: str(config)[:70],
)
def test_damaged_header(model, config, tmp_path):
    path = tmp_path / "x.safetensors"
    metadata = {"format": "edsr-triton"} | ({"config": config} if config is not None else {})
    save_file(model.state_dict(), path, metadata)
    assert "damaged" in refusal(path)


def test_good_header_by_hand_and_none(model, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(model.state_dict(), path, {"format": "edsr-triton", "config": json.dumps(GOOD)})
    assert load_model(path).config == model.config
    save_file(model.state_dict(), path, {"format": "pt"})
    assert load_model(path).config == replace(model.config, residual_scale=1.0, mean=DIV2K_MEAN)
    assert load_model(path, residual_scale=0.3).config.residual_scale == 0.3


# Any bytes at all


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("intact")
    torch.manual_seed(0)
    model = EDSR(EDSRConfig(2, 1, 3))
    save_model(model, folder / "x.safetensors", training={"steps": 1})
    torch.save({"params": {k: v.clone() for k, v in basicsr(2)[0].items()}}, folder / "x.pth")
    torch.save(official(255, 4)[0], folder / "old.pth", _use_new_zipfile_serialization=False)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "old.pth"])
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_bytes_give_weights_error_or_success(intact, name, tmp_path, data):
    content = bytearray(intact[name])
    if data.draw(st.booleans(), "truncate"):
        del content[data.draw(st.integers(0, len(content) - 1), "length") :]
    # Most of a file is numbers, where a flip does little: aim at its ends, where the structure is.
    near = st.integers(0, 700) | st.integers(-900, -1) | st.integers(0, len(content))
    for _ in range(data.draw(st.integers(0, 6), "flips")):
        if content:
            content[data.draw(near, "where") % len(content)] ^= data.draw(st.integers(1, 255), "mask")
    path = tmp_path / name
    path.write_bytes(content)
    try:
        model = load_model(path)
    except WeightsError as error:
        assert str(error).isprintable()
        assert str(path) in str(error)
    else:
        assert model.config.scale in (2, 4)
        assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("wrong", [None, {}, "edsr-baseline"])
def test_what_is_no_network_is_not_saved(tmp_path, wrong):
    with pytest.raises(TypeError, match=r"the model is a network, as edsr\.load_model gives it, not"):
        save_model(wrong, tmp_path / "a.safetensors")
    with pytest.raises(TypeError, match="the model is a network"):
        save_checkpoint(wrong, tmp_path / "a.pt")
    with pytest.raises(TypeError, match="a whole number, 2, 3 or 4, not '2'"):
        load_model("edsr-baseline", "2")
    assert not list(tmp_path.iterdir())

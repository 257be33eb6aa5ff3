"""Weight files: every project's layout gives that project's image; every bad file gives one clear line."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edsr.errors import WeightsError
from edsr.models.edsr import DIV2K_MEAN, EDSR, PRESETS, EDSRConfig
from edsr.weights import edsr as weights
from edsr.weights.edsr import list_packaged, load_model, read_info, save_model

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "weights"
BLOCKS, FEATURES = 2, 5
MEAN = torch.tensor(DIV2K_MEAN, dtype=torch.float64).view(1, 3, 1, 1)


def make_image(seed=0, height=7, width=6):
    return torch.rand(1, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def filled(shapes: dict[str, tuple[int, ...]], seed=0) -> dict[str, torch.Tensor]:
    """Random fp32 tensors. Biases are 255 times a number of few bits: dividing them by 255 loses nothing."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in shapes.items():
        if key.endswith("bias"):
            tensors[key] = 255 * torch.randint(-99, 100, shape, generator=generator) / 1024
        else:
            tensors[key] = torch.randn(shape, generator=generator) / (shape[1] * 9) ** 0.5
    return tensors


def convs(table: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Name -> (channels in, out), as the shapes of its weight and bias."""
    both = (((f"{k}.weight", (o, i, 3, 3)), (f"{k}.bias", (o,))) for k, (i, o) in table.items())
    return dict(pair for pairs in both for pair in pairs)


def upsampler_shapes(names: tuple[str, str], scale: int) -> dict[str, tuple[int, int]]:
    c = FEATURES
    return {names[0]: (c, 4 * c), names[1]: (c, 4 * c)} if scale == 4 else {names[0]: (c, scale * scale * c)}


def chain(t, x, head, body, end, upsampler, tail, scale, residual_scale=1.0):
    """What every project has between its edges, written out here once more, in fp64, over its own keys."""

    def conv(name, x):
        return F.conv2d(x, t[f"{name}.weight"].double(), t[f"{name}.bias"].double(), padding=1)

    x = conv(head, x)
    y = x
    for first, second in body:
        y = y + residual_scale * conv(second, conv(first, y).clamp(min=0))
    y = conv(end, y) + x
    for name, r in zip(upsampler, (2, 2) if scale == 4 else (scale,), strict=False):
        y = F.pixel_shuffle(conv(name, y), r)
    return conv(tail, y)


def official(span: float, scale: int, seed=0):
    c, n = FEATURES, BLOCKS
    body = [(f"body.{i}.body.0", f"body.{i}.body.2") for i in range(n)]
    table = {"head.0": (3, c)} | {name: (c, c) for pair in body for name in pair} | {f"body.{n}": (c, c)}
    ups = ("tail.0.0", "tail.0.2")
    t = filled(convs(table | upsampler_shapes(ups, scale) | {"tail.1": (c, 3)}), seed)
    eye, shift = torch.eye(3).view(3, 3, 1, 1), span * torch.tensor(DIV2K_MEAN)
    t |= {
        "sub_mean.weight": eye,
        "sub_mean.bias": -shift,
        "add_mean.weight": eye.clone(),
        "add_mean.bias": shift,
    }
    return t, ("head.0", body, f"body.{n}", ups, "tail.1", scale)


def edsr_pytorch(scale, span=255):
    t, names = official(span, scale)

    def forward(x):  # x in 0..span
        x = F.conv2d(x, t["sub_mean.weight"].double(), t["sub_mean.bias"].double())
        x = chain(t, x, *names)
        return F.conv2d(x, t["add_mean.weight"].double(), t["add_mean.bias"].double())

    return t, lambda x: forward(x * span) / span


def torchsr(scale):
    t, forward = edsr_pytorch(scale)  # the same tensors; it multiplies and divides by 255 itself
    return t, forward


def edsr_pytorch_of_range_1(scale):
    return edsr_pytorch(scale, span=1)


def super_image(scale):
    t, names = official(255, scale)
    return t, lambda x: chain(t, x, *names)


def basicsr(scale):
    c = FEATURES
    body = [(f"body.{i}.conv1", f"body.{i}.conv2") for i in range(BLOCKS)]
    table = {"conv_first": (3, c)} | {name: (c, c) for pair in body for name in pair} | {"conv_after_body": (c, c)}
    ups = ("upsample.0", "upsample.2")
    t = filled(convs(table | upsampler_shapes(ups, scale) | {"conv_last": (c, 3)}))
    names = ("conv_first", body, "conv_after_body", ups, "conv_last", scale)
    return t, lambda x: chain(t, (x - MEAN) * 255, *names) / 255 + MEAN


def mmagic(scale):
    c = FEATURES
    body = [(f"body.{i}.conv1", f"body.{i}.conv2") for i in range(BLOCKS)]
    table = {"conv_first": (3, c)} | {name: (c, c) for pair in body for name in pair} | {"conv_after_body": (c, c)}
    ups = ("upsample.0.upsample_conv", "upsample.1.upsample_conv")
    t = filled(convs(table | upsampler_shapes(ups, scale) | {"conv_last": (c, 3)}))
    names = ("conv_first", body, "conv_after_body", ups, "conv_last", scale)
    return t, lambda x: chain(t, x - MEAN, *names) + MEAN


def mlcommons(scale):
    c = FEATURES
    body = [(f"body.{i}.conv1", f"body.{i}.conv2") for i in range(BLOCKS)]
    table = {"head": (3, c)} | {name: (c, c) for pair in body for name in pair} | {"body_tail": (c, c)}
    ups = ("upsample.0", "upsample.1")
    t = filled(convs(table | upsampler_shapes(ups, scale) | {"tail": (c, 3)}))
    return t, lambda x: chain(t, x * 255, "head", body, "body_tail", ups, "tail", scale) / 255


def mlcommons_collapsed(scale):
    t, _ = mlcommons(scale)
    t = {k: v for k, v in t.items() if not k.startswith(("upsample.", "tail."))}
    t |= filled(convs({"upsample_out": (FEATURES, 3 * scale * scale)}), seed=1)

    def forward(x):
        def conv(name, x):
            return F.conv2d(x, t[f"{name}.weight"].double(), t[f"{name}.bias"].double(), padding=1)

        x = y = conv("head", 255 * x)
        for i in range(BLOCKS):
            y = y + conv(f"body.{i}.conv2", conv(f"body.{i}.conv1", y).relu())
        return F.pixel_shuffle(conv("upsample_out", conv("body_tail", y) + x), scale) / 255

    return t, forward


# What fp64 leaves: its own rounding; where the file stores the mean, also the mean's rounding to fp32.
FOREIGN: list[tuple[Callable, str, float]] = [
    (edsr_pytorch, "edsr-pytorch", 1e-7),
    (edsr_pytorch_of_range_1, "edsr-pytorch", 1e-7),
    (torchsr, "edsr-pytorch", 1e-7),
    (super_image, "super-image", 1e-12),
    (basicsr, "basicsr", 1e-12),
    (mmagic, "mmagic", 1e-12),
    (mlcommons, "mlcommons", 1e-12),
    (mlcommons_collapsed, "mlcommons", 1e-12),
]
EVERY_FOREIGN = [
    pytest.param(make, layout, tolerance, scale, id=f"{make.__name__}-x{scale}")
    for make, layout, tolerance in FOREIGN
    for scale in ((2, 3) if make is mlcommons_collapsed else (2, 3, 4))
]


def assert_same_image(model: EDSR, forward: Callable, tolerance: float):
    """Relative to the largest value, in fp64, on two images, the second one pixel high."""
    for x in (make_image(1), make_image(2, 1, 9)):
        with torch.no_grad():
            ours, theirs = model.double()(x), forward(x)
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(("make", "layout", "tolerance", "scale"), EVERY_FOREIGN)
def test_foreign_layout_gives_its_projects_image(make, layout, tolerance, scale, suffix, tmp_path):
    tensors, forward = make(scale)
    path = tmp_path / f"x.{suffix}"
    save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    # Random weights upscale nothing: only the word of the caller tells super-image from EDSR-PyTorch.
    told = layout if layout == "super-image" else None
    model = load_model(path, scale, layout=told)
    info = read_info(path, layout=told)
    assert (info["layout"], info["scale"], info["blocks"], info["features"]) == (
        layout,
        scale,
        BLOCKS,
        FEATURES,
    )
    assert (
        info["mean"] == model.config.mean == (DIV2K_MEAN if layout not in ("super-image", "mlcommons") else (0, 0, 0))
    )
    assert not model.training
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert_same_image(model, forward, tolerance)


@pytest.mark.parametrize(("make", "layout", "tolerance", "scale"), EVERY_FOREIGN)
def test_converting_loses_nothing(make, layout, tolerance, scale, tmp_path):
    save_file(make(scale)[0], tmp_path / "theirs.safetensors")
    model = load_model(tmp_path / "theirs.safetensors", residual_scale=0.5, layout=layout)
    save_model(model, tmp_path / "ours.safetensors")
    again = load_model(tmp_path / "ours.safetensors")
    assert again.config == model.config
    assert again.config.residual_scale == 0.5
    assert_same_state(again, model)


def assert_same_state(a: EDSR, b: EDSR):
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_biases_that_do_not_divide_exactly_are_rounded_once(tmp_path):
    tensors, _ = mlcommons(2)
    tensors = {k: torch.randn_like(v) for k, v in tensors.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    model = load_model(tmp_path / "x.safetensors")
    assert torch.equal(model.get_parameter("head.bias"), (tensors["head.bias"].double() / 255).float())
    assert torch.equal(model.head.weight, tensors["head.weight"])


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


def test_basicsr_with_a_mean_of_its_own(tmp_path):
    tensors, _ = basicsr(2)
    save_file(tensors | {"mean": torch.tensor([0.5, 0.25, 0.125]).view(1, 3, 1, 1)}, tmp_path / "x.safetensors")
    assert load_model(tmp_path / "x.safetensors").config.mean == (0.5, 0.25, 0.125)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_foreign_file_in_another_dtype(dtype, tmp_path):
    tensors = {k: v.to(dtype) for k, v in edsr_pytorch(2)[0].items()}
    save_file(tensors, tmp_path / "x.safetensors")
    model = load_model(tmp_path / "x.safetensors")
    assert read_info(tmp_path / "x.safetensors")["dtype"] == str(dtype).removeprefix("torch.")
    assert torch.equal(model.head.weight, tensors["head.0.weight"].float())
    assert torch.equal(model.get_parameter("tail.bias"), (tensors["tail.1.bias"].double() / 255).float())
    stored = (tensors["add_mean.bias"].double() / 255).tolist()
    assert model.config.mean == pytest.approx(stored, rel=1e-6)


# EDSR-PyTorch or super-image


def upscaler(error: float) -> dict[str, torch.Tensor]:
    """A network in the official layout that repeats pixels, and whose head adds an error to all of them."""
    t, _ = official(255, 2)
    t |= {k: torch.zeros_like(v) for k, v in t.items() if "mean" not in k}
    t["head.0.weight"][range(3), range(3), 1, 1] = 1
    t["head.0.bias"][:3] = error
    for color in range(3):
        t["tail.0.0.weight"][4 * color : 4 * color + 4, color, 1, 1] = 1
    t["tail.1.weight"][range(3), range(3), 1, 1] = 1
    return t


def test_trained_network_tells_super_image_from_edsr_pytorch(tmp_path):
    # Half a gray level of 255 off: right in 0..255 (0.002), useless in 0..1.
    torch.save(upscaler(0.5), tmp_path / "official.pt")
    assert read_info(tmp_path / "official.pt")["layout"] == "edsr-pytorch"
    # Made for 0..1 without a shift: a block that does nothing above 0 and loses what is below.
    t = upscaler(0.0)
    for color in range(3):
        t["body.0.body.0.weight"][color, color, 1, 1] = -1
        t["body.0.body.2.weight"][color, color, 1, 1] = 1
    t["body.2.weight"][range(3), range(3), 1, 1] = 1
    t["head.0.weight"] /= 2  # the long skip doubles
    torch.save(t, tmp_path / "super.pt")
    assert read_info(tmp_path / "super.pt")["layout"] == "super-image"
    assert load_model(tmp_path / "super.pt").config.mean == (0, 0, 0)
    assert read_info(tmp_path / "super.pt", layout="edsr-pytorch")["mean"] == DIV2K_MEAN
    assert read_info(tmp_path / "official.pt", layout="super-image")["mean"] == (0, 0, 0)
    # Without the tensors of the shift the network still tells.
    for name in ("official", "super"):
        bare = {k: v for k, v in torch.load(tmp_path / f"{name}.pt").items() if "mean" not in k}
        torch.save(bare, tmp_path / f"{name}-bare.pt")
        assert read_info(tmp_path / f"{name}-bare.pt")["layout"] == read_info(tmp_path / f"{name}.pt")["layout"]


@pytest.mark.parametrize("tensors", [official(255, 2)[0], upscaler(0.0)], ids=["untrained", "right in both"])
def test_network_that_does_not_tell_is_what_its_tensors_say(tensors, tmp_path):
    torch.save(tensors, tmp_path / "shift.pt")
    torch.save({k: v for k, v in tensors.items() if "mean" not in k}, tmp_path / "bare.pt")
    assert read_info(tmp_path / "shift.pt")["layout"] == "edsr-pytorch"
    assert read_info(tmp_path / "bare.pt")["layout"] == "super-image"


@pytest.mark.parametrize("bad", ["std", "not opposite", "mean above 1", "nan"])
def test_mean_shift_that_is_none_is_refused(bad, tmp_path):
    t, _ = official(255, 2)
    if bad == "std":
        t["sub_mean.weight"] = t["sub_mean.weight"] / 0.5
    elif bad == "not opposite":
        t["add_mean.bias"] = t["add_mean.bias"] + 1
    elif bad == "mean above 1":
        t["sub_mean.bias"], t["add_mean.bias"] = -torch.full((3,), 300.0), torch.full((3,), 300.0)
    else:
        t["sub_mean.bias"] = torch.full((3,), torch.nan)
    torch.save(t, tmp_path / "x.pt")
    assert "mean" in refusal(tmp_path / "x.pt")


# Residual scale


@pytest.mark.parametrize(
    ("layout", "blocks", "features", "expected"),
    [
        ("edsr-triton", 32, 256, 0.1),
        ("basicsr", 32, 256, 0.1),
        ("super-image", 32, 256, 1.0),
        ("basicsr", 16, 64, 1.0),
        ("basicsr", 2, 5, 1.0),
    ],
)
def test_published_residual_scale(layout, blocks, features, expected):
    names = weights.LAYOUTS[layout].names(blocks, 1)
    with torch.device("meta"):
        model = EDSR(EDSRConfig(blocks=blocks, features=features))
    shapes = {k: model.get_parameter(f"{ours}.weight") for k, ours in names.items()}
    tensors = {f"{k}.weight": v for k, v in shapes.items()} | {f"{k}.bias": v[:, 0, 0, 0] for k, v in shapes.items()}
    assert weights._config(tensors, layout, None, None).residual_scale == expected
    assert weights._config(tensors, layout, 0.25, None).residual_scale == 0.25


# MLCommons


@pytest.fixture
def mlcommons_files():
    files = [SHARED / f"mlcommons_edsr_f64b5_x2{kind}.safetensors" for kind in ("", "_stdtopology")]
    if not all(file.is_file() for file in files):
        pytest.skip(f"no MLCommons weights in {SHARED}")
    return files


def test_mlcommons_files(mlcommons_files):
    collapsed, plain = map(load_model, mlcommons_files)
    assert collapsed.config == plain.config == EDSRConfig(2, 5, 64, 1.0, (0.0, 0.0, 0.0))
    t = load_file(mlcommons_files[0])
    x = make_image(3, 12, 10)

    def conv(name, x):
        return F.conv2d(x, t[f"{name}.weight"].double(), t[f"{name}.bias"].double(), padding=1)

    y = skip = conv("head", 255 * x)
    for i in range(5):
        y = y + conv(f"body.{i}.conv2", conv(f"body.{i}.conv1", y).relu())
    theirs = F.pixel_shuffle(conv("upsample_out", conv("body_tail", y) + skip), 2) / 255
    with torch.no_grad():
        first, second = collapsed.double()(x), plain.double()(x)
    assert (first - theirs).abs().max() < 1e-6  # biases / 255 are rounded to fp32
    assert (first - second).abs().max() < 1e-6


def test_real_weights_tell_super_image_from_edsr_pytorch(mlcommons_files, tmp_path):
    """The same trained network, dressed as either project's: each is read as what it is."""
    rename = {"head": "head.0", "body_tail": "body.5", "upsample.0": "tail.0.0", "tail": "tail.1"}
    rename |= {f"body.{i}.conv{n}": f"body.{i}.body.{2 * n - 2}" for i in range(5) for n in (1, 2)}
    t = {f"{rename[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": v for k, v in load_file(mlcommons_files[1]).items()}
    mean = 255 * torch.tensor(DIV2K_MEAN)
    eye = torch.eye(3).view(3, 3, 1, 1)
    shift = {
        "sub_mean.weight": eye,
        "sub_mean.bias": -mean,
        "add_mean.weight": eye.clone(),
        "add_mean.bias": mean,
    }
    super_image = {k: v / 255 if k.endswith("bias") else v for k, v in t.items()}
    moved = {  # the same function on pixels with the mean subtracted, but for the border
        "head.0.bias": t["head.0.bias"] + t["head.0.weight"].sum((2, 3)) @ mean,
        "tail.1.bias": t["tail.1.bias"] - mean,
    }
    for name, tensors in (("super-image", super_image), ("edsr-pytorch", t | moved)):
        for kind, extra in (("whole", shift), ("bare", {})):
            path = tmp_path / f"{name}-{kind}.safetensors"
            save_file({k: v.clone() for k, v in (tensors | extra).items()}, path)
            assert read_info(path)["layout"] == name


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
        "scale": 3,
        "blocks": BLOCKS,
        "features": FEATURES,
        "residual_scale": 0.3,
        "mean": (0.1, 0.2, 0.3),
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": "float32",
        "training": training,
    }
    save_model(model, tmp_path / "y.safetensors")
    assert read_info(tmp_path / "y.safetensors")["training"] is None


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

    def disk_full(file, data):
        file.open("wb").write(data[:4])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(WeightsError, match="No space left") as error:
        save_model(model, path)
    assert str(path) in str(error.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_interrupted_save_leaves_nothing(model, tmp_path, monkeypatch):
    def interrupted(file, data):
        file.open("wb").write(data[:4])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.pth", "x", "none/x.safetensors", "folder.safetensors"])
def test_unwritable_names(model, name, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(WeightsError) as error:
        save_model(model, tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.safetensors"]


# Presets


def test_presets(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
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
        assert "--model FILE" in message


def test_packaged_weights_are_what_their_names_say():
    for name, scales in list_packaged().items():
        for scale in scales:
            config = load_model(name, scale).config
            assert config == replace(PRESETS.get(name, PRESETS["edsr-baseline"]), scale=scale)


# Bad files


def refusal(path, **options) -> str:
    """The message of the WeightsError that loading gives: one line that names the file."""
    with pytest.raises(WeightsError) as error:
        load_model(path, **options)
    message = str(error.value)
    assert message.isprintable()
    assert os.fspath(path) in message
    with pytest.raises(WeightsError):
        read_info(path, **options)
    return message


def test_no_such_file(tmp_path):
    for name in ("edsr-basline", str(tmp_path / "none.pth"), ""):
        message = refusal(name)
        assert "edsr-baseline, edsr" in message
    assert "folder" in refusal(tmp_path)
    assert "no such file" in refusal("x" * 5000)
    with pytest.raises(WeightsError, match=r"a\?b: no such file"):
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


def test_strict_about_keys_and_shapes(tmp_path):
    path = tmp_path / "x.safetensors"

    def message(change: dict, drop=()):
        tensors = {k: v for k, v in basicsr(2)[0].items() if k not in drop}
        save_file(tensors | change, path)
        return refusal(path)

    assert "body.1.conv2.bias is missing, expected [5]" in message({}, ["body.1.conv2.bias"])
    assert "body.0.conv1.weight is missing, expected [5, 5, 3, 3]" in message({}, ["body.0.conv1.weight"])
    assert "conv_last.weight is missing" in message({}, ["conv_last.weight"])
    assert "conv_first.weight is missing" in message({}, ["conv_first.weight"])
    assert "upsample.0.weight" in message({}, ["upsample.0.weight"])
    assert "body.0.norm.weight is unexpected" in message({"body.0.norm.weight": torch.ones(5)})
    assert "upsample.4.weight is unexpected" in message({"upsample.4.weight": torch.ones(20, 5, 3, 3)})
    assert "conv_last.bias is [1], expected [3]" in message({"conv_last.bias": torch.ones(1)})
    assert "conv_first.weight is [5, 1, 3, 3], expected [5, 3, 3, 3]" in message(
        {"conv_first.weight": torch.ones(5, 1, 3, 3)}
    )
    assert "conv_first.weight is missing or not" in message({"conv_first.weight": torch.tensor(1.0)})
    assert "x2, x3 or x4" in message({"upsample.0.weight": torch.ones(80, 5, 3, 3)})
    assert "a?b is unexpected" in message({"a\nb": torch.ones(1)})
    many = {f"extra.{i}": torch.ones(1) for i in range(7)}
    assert "extra.2 is unexpected; and 4 more" in message(many)
    far = {"body.999999.conv1.weight": torch.ones(5, 5, 3, 3), "body.99999999999.conv1.bias": torch.ones(5)}
    assert "body.2.conv1.weight is missing" in message(far)


def test_collapsed_upsampler_of_wrong_shape(tmp_path):
    t, _ = mlcommons_collapsed(2)
    for change in (
        {"upsample_out.weight": torch.ones(48, FEATURES, 3, 3), "upsample_out.bias": torch.ones(48)},
        {"upsample_out.weight": torch.ones(12, FEATURES + 1, 3, 3)},
        {"upsample_out.weight": torch.ones(12)},
        {"upsample_out.bias": torch.ones(3)},
        {"body_tail.weight": torch.ones(FEATURES, 1, 3, 3)},
    ):
        save_file(t | change, tmp_path / "x.safetensors")
        assert "upsample_out must lead" in refusal(tmp_path / "x.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite(value, tmp_path):
    tensors, _ = basicsr(2)
    tensors["body.1.conv1.weight"] = tensors["body.1.conv1.weight"].double()
    tensors["body.1.conv1.weight"][0, 0, 1, 1] = value
    save_file(tensors, tmp_path / "x.safetensors")
    assert "body.1.conv1.weight is not finite" in refusal(tmp_path / "x.safetensors")


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

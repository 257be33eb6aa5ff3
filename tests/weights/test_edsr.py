"""Every project's checkpoints give that project's image; those that are not whole networks give one clear line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from edsr.models.edsr import DIV2K_MEAN, EDSR, EDSRConfig
from edsr.weights import load_model, read_info, save_model
from edsr.weights.edsr import LAYOUTS, checkpoint_config
from tests.support.checkpoints import (
    BLOCKS,
    FEATURES,
    assert_same_image,
    assert_same_state,
    basicsr,
    edsr_pytorch,
    edsr_pytorch_of_range_1,
    make_image,
    mlcommons,
    mlcommons_collapsed,
    mmagic,
    official,
    refusal,
    super_image,
    torchsr,
)

SHARED = Path(__file__).parents[3] / "shared" / "weights"

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


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(("make", "layout", "tolerance", "scale"), EVERY_FOREIGN)
def test_foreign_layout_gives_its_projects_image(make, layout, tolerance, scale, suffix, tmp_path):
    tensors, forward = make(scale)
    path = tmp_path / f"x.{suffix}"
    save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    # Random weights upscale nothing: only the word of the caller tells super-image from EDSR-PyTorch.
    messages = layout if layout == "super-image" else None
    model = load_model(path, scale, layout=messages)
    info = read_info(path, layout=messages)
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


def test_biases_that_do_not_divide_exactly_are_rounded_once(tmp_path):
    tensors, _ = mlcommons(2)
    tensors = {k: torch.randn_like(v) for k, v in tensors.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    model = load_model(tmp_path / "x.safetensors")
    assert torch.equal(model.get_parameter("head.bias"), (tensors["head.bias"].double() / 255).float())
    assert torch.equal(model.head.weight, tensors["head.weight"])


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
    names = LAYOUTS[layout].names(blocks, 1)
    with torch.device("meta"):
        model = EDSR(EDSRConfig(blocks=blocks, features=features))
    shapes = {k: model.get_parameter(f"{ours}.weight") for k, ours in names.items()}
    tensors = {f"{k}.weight": v for k, v in shapes.items()} | {f"{k}.bias": v[:, 0, 0, 0] for k, v in shapes.items()}
    assert checkpoint_config(tensors, layout, None, None).residual_scale == expected
    assert checkpoint_config(tensors, layout, 0.25, None).residual_scale == 0.25


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


# Checkpoints that are not whole networks


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
    assert r"a\nb is unexpected" in message({"a\nb": torch.ones(1)})
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

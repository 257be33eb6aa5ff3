"""Checkpoints for other projects: their own networks, written out once more, load them and give the same image."""

import os

import pytest
import torch
from torch import nn

from edsr.errors import WeightsError
from edsr.models.edsr import DIV2K_MEAN, EDSR, EDSRConfig
from edsr.weights import load_model, read_info, save_model
from edsr.weights.exchange import save_checkpoint
from tests.support.checkpoints import assert_same_state, make_image


def conv(inside, outside):
    return nn.Conv2d(inside, outside, 3, padding=1)


def upsampler(scale, c):
    stage = [conv(c, (2 if scale == 4 else scale) ** 2 * c), nn.PixelShuffle(2 if scale == 4 else scale)]
    return nn.Sequential(*stage, *([conv(c, 4 * c), nn.PixelShuffle(2)] if scale == 4 else []))


class Official(nn.Module):
    """EDSR-PyTorch's model/edsr.py and common.py, on pixels of 0..255."""

    def __init__(self, config: EDSRConfig):
        super().__init__()
        c, self.residual_scale = config.features, config.residual_scale
        self.sub_mean, self.add_mean = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.head = nn.Sequential(conv(3, c))
        blocks = []
        for _ in range(config.blocks):
            block = nn.Module()
            block.body = nn.Sequential(conv(c, c), nn.ReLU(), conv(c, c))
            blocks.append(block)
        self.body = nn.Sequential(*blocks, conv(c, c))
        self.tail = nn.Sequential(upsampler(config.scale, c), conv(c, 3))

    def forward(self, x):
        x = y = self.head(self.sub_mean(x))
        for block in self.body[:-1]:
            y = y + self.residual_scale * block.body(y)
        return self.add_mean(self.tail(self.body[-1](y) + x))


class Basic(nn.Module):
    """BasicSR's archs/edsr_arch.py, on pixels of 0..1; its mean is no tensor of the checkpoint."""

    def __init__(self, config: EDSRConfig):
        super().__init__()
        c, self.residual_scale = config.features, config.residual_scale
        self.mean = torch.tensor((0.4488, 0.4371, 0.4040), dtype=torch.float64).view(1, 3, 1, 1)
        self.conv_first = conv(3, c)
        blocks = []
        for _ in range(config.blocks):
            block = nn.Module()
            block.conv1, block.conv2 = conv(c, c), conv(c, c)
            blocks.append(block)
        self.body, self.conv_after_body = nn.Sequential(*blocks), conv(c, c)
        self.upsample, self.conv_last = upsampler(config.scale, c), conv(c, 3)

    def forward(self, x):
        x = y = self.conv_first((x - self.mean) * 255)
        for block in self.body:
            y = y + self.residual_scale * block.conv2(block.conv1(y).relu())
        return self.conv_last(self.upsample(self.conv_after_body(y) + x)) / 255 + self.mean


def random(**more) -> EDSR:
    torch.manual_seed(0)
    return EDSR(EDSRConfig(**{"scale": 2, "blocks": 3, "features": 24} | more)).eval()


MODELS = {
    "x2": {},
    "x3": {"scale": 3, "features": 5, "residual_scale": 0.1},
    "x4": {"scale": 4, "blocks": 1, "residual_scale": 0.3},
    "no blocks": {"blocks": 0},
}


@pytest.mark.parametrize("ending", ["pt", "pth"])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_their_network_gives_the_same_image(options, ending, tmp_path):
    model = random(**options)
    save_checkpoint(model, tmp_path / f"x.{ending}")
    content = torch.load(tmp_path / f"x.{ending}", weights_only=True)
    theirs = (Official if ending == "pt" else Basic)(model.config)
    theirs.load_state_dict(content if ending == "pt" else content["params"])  # strict; into fp32
    theirs, x = theirs.double(), make_image(3)
    with torch.no_grad():
        want = model.double()(x)
        got = theirs(x * 255) / 255 if ending == "pt" else theirs(x)
    assert (got - want).abs().max() < 1e-6 * want.abs().max()  # biases times 255, in fp32


@pytest.mark.parametrize("ending", ["pt", "pth"])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_what_is_read_back_is_the_same(options, ending, tmp_path):
    model, path = random(**options), tmp_path / f"x.{ending}"
    save_checkpoint(model, path)
    layout = "edsr-pytorch" if ending == "pt" else "basicsr"
    again = load_model(path, residual_scale=model.config.residual_scale, layout=layout)
    assert again.config == model.config
    assert_same_state(again, model)


def test_biases_are_fp32_where_that_loses_nothing(tmp_path):
    """Numbers of half precision have 11 bits, and 255 times them at most 19; others may need more than fp32 has."""
    model = random(features=96)
    save_checkpoint(model, tmp_path / "any.pt")
    save_checkpoint(model.half().float(), tmp_path / "half.pt")
    dtypes = {name: {value.dtype for value in torch.load(tmp_path / f"{name}.pt").values()} for name in ("any", "half")}
    assert dtypes == {"any": {torch.float32, torch.float64}, "half": {torch.float32}}
    assert_same_state(load_model(tmp_path / "half.pt", residual_scale=1, layout="edsr-pytorch"), model)


@pytest.mark.parametrize("mean", [(0.0, 0.0, 0.0), (0.1, 0.2, 0.3)])
def test_means_of_their_own(mean, tmp_path):
    model = random(mean=mean)
    save_checkpoint(model, tmp_path / "x.pt")
    assert load_model(tmp_path / "x.pt", residual_scale=1, layout="edsr-pytorch").config.mean == pytest.approx(mean)
    with pytest.raises(WeightsError, match=r"x.pth: not written, basicsr cannot state that its mean is .*\.pt$"):
        save_checkpoint(model, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="cannot state that its mean"):  # would be taken for one of pixels of 0..1
        save_checkpoint(random(mean=(0.001, 0.002, 0.003)), tmp_path / "y.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("name", ["x.safetensors", "x", "none/x.pt", "folder.pth"])
def test_names_that_are_not_written(name, tmp_path):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(WeightsError) as error:
        save_checkpoint(random(), tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and os.listdir(tmp_path) == ["folder.pth"]


def test_convert_there_and_back(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    save_model(random(features=8, residual_scale=0.3), "ours.safetensors")
    code, out, _ = run("convert", "ours.safetensors", "x.pt")
    assert (code, out.splitlines()) == (
        0,
        ["x.pt", "  EDSR-PyTorch: --model EDSR --scale 2 --n_resblocks 3 --n_feats 8 --res_scale 0.3"],
    )
    code, out, _ = run("convert", "x.pt", "y.pth", "--residual-scale", "0.3")
    assert code == 0 and "res_scale: 0.3, rgb_mean: [0.4488, 0.4371, 0.404]" in out
    assert run("convert", "y.pth", "again.safetensors", "--residual-scale", "0.3")[0] == 0
    assert_same_state(load_model("again.safetensors"), load_model("ours.safetensors"))
    assert run("convert", "ours.safetensors", "x.pt")[0] == 1  # is there
    code, _, err = run("convert", "ours.safetensors", "z.pt", "--half")
    assert code == 2 and "--half is for .safetensors" in err
    code, _, err = run("convert", "ours.safetensors", "z.onnx")
    assert code == 2 and ".pt for EDSR-PyTorch" in err and not os.path.exists("z.onnx")


def test_info_names_the_scales_of_packaged_weights(run, tmp_path):
    assert "scale           3 (packaged: 2, 3, 4; see --scale 2 or 4)\n" in run("info", "edsr-photo", "--scale", "3")[1]
    save_model(random(), tmp_path / "x.safetensors")
    assert "scale           2\n" in run("info", tmp_path / "x.safetensors")[1]
    assert read_info("edsr-baseline")["mean"] == DIV2K_MEAN

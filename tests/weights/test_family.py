"""Checkpoints of SRCNN, VDSR, SRResNet and MDSR: our own, and those of public implementations, whose networks are
written here once more, in the shape that gives their tensors their names."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from edsr import load_model
from edsr.errors import WeightsError
from edsr.kernels import LUMA
from edsr.models import MDSRConfig, SRCNNConfig, SRResNetConfig, VDSRConfig, build_network
from edsr.weights import read_info, save_model
from tests.models.test_family import SMALL, small

RGB = torch.tensor([0.4488, 0.4371, 0.4040])
IMAGENET = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def conv(i, o, k=3, bias=True):
    return nn.Conv2d(i, o, k, padding=k // 2, bias=bias)


def prelu():
    return nn.PReLU(init=0.3)


def channels(values):
    return values.view(1, 3, 1, 1)


# --- the networks of others


class Residual(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.body = nn.Sequential(conv(4, 4, kernel), nn.ReLU(), conv(4, 4, kernel))

    def forward(self, x):
        return x + self.body(x)


class MDSRPyTorch(nn.Module):
    def __init__(self):
        super().__init__()
        self.sub_mean, self.add_mean = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        for shift, sign in (self.sub_mean, -1), (self.add_mean, 1):
            shift.weight.data = torch.eye(3).view(3, 3, 1, 1)
            shift.bias.data = sign * 255 * RGB
        self.head = nn.Sequential(conv(3, 4))
        self.pre_process = nn.ModuleList(nn.Sequential(Residual(5), Residual(5)) for _ in range(3))
        self.body = nn.Sequential(Residual(3), Residual(3), conv(4, 4))
        shuffle = nn.PixelShuffle
        self.upsample = nn.ModuleList(
            [
                nn.Sequential(conv(4, 16), shuffle(2)),
                nn.Sequential(conv(4, 36), shuffle(3)),
                nn.Sequential(conv(4, 16), shuffle(2), conv(4, 16), shuffle(2)),
            ]
        )
        self.tail = nn.Sequential(conv(4, 3))

    def forward(self, x, scale):
        x = self.head(self.sub_mean(255 * x))
        x = self.pre_process[scale - 2](x)
        return self.add_mean(self.tail(self.upsample[scale - 2](x + self.body(x)))) / 255


class SRCNNPyTorch(nn.Module):
    def __init__(self, middle=5):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(1, 64, 9), conv(64, 32, middle), conv(32, 1, 5)

    def forward(self, y):
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(y)))))


class SRCNNFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.map = (
            nn.Sequential(conv(1, 64, 9), nn.ReLU()),
            nn.Sequential(conv(64, 32, 5), nn.ReLU()),
        )
        self.reconstruction = conv(32, 1, 5)

    def forward(self, y):
        return self.reconstruction(self.map(self.features(y)))


class ConvReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv(6, 6, bias=False)

    def forward(self, x):
        return F.relu(self.conv(x))


class VDSRPyTorch(nn.Module):
    def __init__(self):
        super().__init__()
        self.residual_layer = nn.Sequential(*(ConvReLU() for _ in range(3)))
        self.input, self.output = conv(1, 6, bias=False), conv(6, 1, bias=False)

    def forward(self, y):
        return y + self.output(self.residual_layer(F.relu(self.input(y))))


class VDSRTrunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(conv(1, 6, bias=False), nn.ReLU())
        self.trunk = nn.Sequential(*(ConvReLU() for _ in range(3)))
        self.conv2 = conv(6, 1, bias=False)

    def forward(self, y):
        return y + self.conv2(self.trunk(self.conv1(y)))


class GeneratorBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.prelu = conv(4, 4), nn.BatchNorm2d(4), prelu()
        self.conv2, self.bn2 = conv(4, 4), nn.BatchNorm2d(4)

    def forward(self, x):
        return x + self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))


class GeneratorUp(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.prelu = conv(4, 16), prelu()

    def forward(self, x):
        return self.prelu(F.pixel_shuffle(self.conv(x), 2))


class SRGANBlocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.block1 = nn.Sequential(conv(3, 4, 9), prelu())
        for i in range(2, 7):
            setattr(self, f"block{i}", GeneratorBlock())
        self.block7 = nn.Sequential(conv(4, 4), nn.BatchNorm2d(4))
        self.block8 = nn.Sequential(GeneratorUp(), GeneratorUp(), conv(4, 3, 9))

    def forward(self, x):
        start = y = self.block1(x)
        for i in range(2, 7):
            y = getattr(self, f"block{i}")(y)
        return (torch.tanh(self.block8(start + self.block7(y))) + 1) / 2


class RCB(nn.Module):
    def __init__(self):
        super().__init__()
        bn = nn.BatchNorm2d
        self.rcb = nn.Sequential(conv(4, 4, bias=False), bn(4), prelu(), conv(4, 4, bias=False), bn(4))

    def forward(self, x):
        return x + self.rcb(x)


class UpsampleBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.upsample_block = nn.Sequential(conv(4, 16), nn.PixelShuffle(2), prelu())

    def forward(self, x):
        return self.upsample_block(x)


class SRGANTrunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(conv(3, 4, 9), prelu())
        self.trunk = nn.Sequential(RCB(), RCB())
        self.conv2 = nn.Sequential(conv(4, 4, bias=False), nn.BatchNorm2d(4))
        self.upsampling, self.conv3 = nn.Sequential(UpsampleBlock()), conv(4, 3, 9)

    def forward(self, x):
        y = self.conv1(x)
        return self.conv3(self.upsampling(y + self.conv2(self.trunk(y))))


class ConvBlock(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x):
        return self.conv_block(x)


class TutorialBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_block1 = ConvBlock(conv(4, 4), nn.BatchNorm2d(4), prelu())
        self.conv_block2 = ConvBlock(conv(4, 4), nn.BatchNorm2d(4))

    def forward(self, x):
        return x + self.conv_block2(self.conv_block1(x))


class SRResNetTutorial(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_block1 = ConvBlock(conv(3, 4, 9), prelu())
        self.residual_blocks = nn.Sequential(TutorialBlock(), TutorialBlock())
        self.conv_block2 = ConvBlock(conv(4, 4), nn.BatchNorm2d(4))
        self.subpixel_convolutional_blocks = nn.Sequential(GeneratorUp(), GeneratorUp())
        self.conv_block3 = ConvBlock(conv(4, 3, 9), nn.Tanh())

    def forward(self, x):
        y = self.conv_block1((x - channels(IMAGENET[0])) / channels(IMAGENET[1]))
        y = self.subpixel_convolutional_blocks(y + self.conv_block2(self.residual_blocks(y)))
        return (self.conv_block3(y) + 1) / 2


def made(network):
    """With weights that leave nothing near zero, in eval mode."""
    torch.manual_seed(0)
    net = network()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    return net.eval().requires_grad_(False)


def luma_of(ours, net, x, scale):
    """The luma of our result and of theirs: their network is given bicubic's luma."""
    bicubic = F.pad(x.double(), (4, 4, 4, 4), mode="replicate")
    size = [scale * side for side in bicubic.shape[2:]]
    bicubic = F.interpolate(bicubic, size, mode="bicubic", antialias=True)
    bicubic = bicubic[..., 4 * scale : -4 * scale, 4 * scale : -4 * scale]
    weights = channels(torch.tensor(LUMA, dtype=torch.float64))
    before, after = (16 / 255 + (image * weights).sum(1, keepdim=True) for image in (bicubic, ours.double()))
    return after, net.double()(before)


# --- tests


@pytest.mark.parametrize("network", [SRGANBlocks, SRGANTrunk, SRResNetTutorial])
@pytest.mark.parametrize("wrapped", [False, True])
def test_srresnets_of_others(tmp_path, network, wrapped):
    net = made(network)
    state = net.state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if wrapped else state, tmp_path / "a.pth")
    x = torch.rand(1, 3, 7, 6)
    torch.testing.assert_close(load_model(tmp_path / "a.pth")(x), net(x), rtol=0, atol=2e-6)


@pytest.mark.parametrize("network", [SRCNNPyTorch, lambda: SRCNNPyTorch(1), SRCNNFeatures, VDSRPyTorch, VDSRTrunk])
def test_networks_of_luma_of_others(tmp_path, network):
    net = made(network)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    x = torch.rand(1, 3, 7, 6)
    for scale in (2, 3, 4):
        ours, theirs = luma_of(load_model(tmp_path / "a.pth", scale)(x), net, x, scale)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_mdsr_of_others(tmp_path):
    net = made(MDSRPyTorch)
    torch.save(net.state_dict(), tmp_path / "a.pt")
    x = torch.rand(1, 3, 7, 6)
    for scale in (2, 3, 4):
        model = load_model(tmp_path / "a.pt", scale)
        assert model.config == MDSRConfig(scale, 2, 4)
        torch.testing.assert_close(model(x), net(x, scale), rtol=0, atol=2e-6)


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.architecture)
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_saved_and_loaded(tmp_path, config, dtype):
    model = small(config, 2).float()
    save_model(model, tmp_path / "a.safetensors", dtype=dtype, training={"steps": 3})
    again = load_model(tmp_path / "a.safetensors")
    assert again.config == model.config
    for (key, value), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value if dtype is None else value.half().float(), other), key
    info = read_info(tmp_path / "a.safetensors")
    assert info["architecture"] == config.architecture and info["training"] == {"steps": 3} and info["notes"] == []


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.architecture)
def test_without_its_header_the_tensors_tell(tmp_path, config):
    config = replace(config, tanh=False, mean=(0.0, 0.0, 0.0)) if config.architecture == "srresnet" else config
    config = replace(config, residual_scale=1.0) if config.architecture == "mdsr" else config
    model = build_network(config).eval()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert load_model(tmp_path / "a.pt").config == config
    assert load_model(tmp_path / "a.pt", 2).config == config


def test_a_scale_that_is_assumed_is_told(tmp_path):
    torch.save(made(SRCNNPyTorch).state_dict(), tmp_path / "a.pt")
    assert read_info(tmp_path / "a.pt")["notes"] == ["x2 assumed: the file does not tell its scale; scale sets another"]
    assert read_info(tmp_path / "a.pt", scale=3)["scale"] == 3 and not read_info(tmp_path / "a.pt", scale=3)["notes"]


def broken(state, key, value):
    return {k: v for k, v in (state | {key: value}).items() if v is not None}


@pytest.mark.parametrize(
    ("config", "key", "value", "message"),
    [
        (SRCNNConfig(), "convs.1.bias", None, r"convs\.1\.bias is missing, expected \[32\]"),
        (SRCNNConfig(), "convs.1.bias", torch.zeros(3), r"convs\.1\.bias is \[3\], expected \[32\]"),
        (SRCNNConfig(), "convs.9.bias", torch.zeros(3), r"convs\.9\.bias is unexpected"),
        (SRCNNConfig(), "convs.1.bias", torch.full((32,), torch.nan), r"convs\.1\.bias is not finite"),
        (SRCNNConfig(), "convs.0.weight", torch.zeros(64, 1, 4, 4), "three odd numbers of 15 or less"),
        (VDSRConfig(depth=5), "convs.0.weight", torch.zeros(3), "missing, or no convolution's"),
        (SRResNetConfig(2, 1, 4), "upsampler.0.weight", torch.zeros(8, 4, 3, 3), "makes no x2, x3 or x4"),
        (SRResNetConfig(2, 1, 4), "body.0.bn1.weight", None, r"body\.0\.bn1\.weight is missing"),
        (MDSRConfig(blocks=1, features=4), "upsamplers.1.0.weight", torch.zeros(16, 4, 3, 3), "scales must be"),
    ],
)
def test_what_is_not_whole(tmp_path, config, key, value, message):
    torch.save(broken(build_network(config).state_dict(), key, value), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=message):
        load_model(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (SRCNNConfig(), {"scale": 3}, "upscales x2, not x3"),
        (SRResNetConfig(2, 1, 4), {"scale": 3}, "upscales x2, not x3"),
        (VDSRConfig(all_scales=(2, 3)), {"scale": 4}, "upscales x2, x3, not x4"),
        (SRCNNConfig(), {"residual_scale": 0.1}, "of srcnn, which has no residual scale"),
        (MDSRConfig(blocks=1, features=4), {"residual_scale": 0.1}, "the file says residual scale 1.0, not 0.1"),
    ],
)
def test_options_that_contradict_the_file(tmp_path, config, options, message):
    save_model(build_network(config), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=message):
        load_model(tmp_path / "a.safetensors", **options)


@pytest.mark.parametrize(
    ("config", "damage", "message"),
    [
        (SRCNNConfig(), {"kernels": [9, 1]}, "three odd numbers"),
        (SRCNNConfig(), {"kernels": [9, 1, 7]}, "its tensors have kernels"),
        (SRCNNConfig(), {"kernels": "915"}, "is no list"),
        (SRCNNConfig(), {"scale": 8}, "scale must be 2, 3 or 4"),
        (SRCNNConfig(), {"architecture": "vdsr"}, "its header is damaged"),
        (SRCNNConfig(), {"architecture": "gan"}, "its header is damaged"),
        (SRCNNConfig(), {"architecture": ["srcnn"]}, "its header is damaged"),
        (VDSRConfig(depth=3), {"depth": 10**9}, "tensors have depth 3, and 1000000000 is stated"),
        (VDSRConfig(depth=3), {"features": 10**12}, "tensors have features 64"),
        (VDSRConfig(depth=3), {"all_scales": []}, "scales must be of 2, 3 and 4"),
        (VDSRConfig(depth=3), {"all_scales": [2, 3, 4, 5]}, "4 values"),
        (VDSRConfig(depth=3), {"all_scales": 2}, "its header is damaged"),
        (SRResNetConfig(2, 1, 4), {"blocks": 10**9}, "tensors have blocks 1"),
        (SRResNetConfig(2, 1, 4), {"scale": 4}, "tensors have scale 2"),
        (SRResNetConfig(2, 1, 4), {"normalized": False}, "tensors have normalized True"),
        (SRResNetConfig(2, 1, 4), {"mean": [1e9, 0, 0]}, "not within the range"),
        (MDSRConfig(blocks=1, features=4), {"blocks": -1}, "blocks must be 0 or more"),
        (MDSRConfig(blocks=1, features=4), {"all_scales": [2, 4]}, "tensors have all_scales"),
        (MDSRConfig(blocks=1, features=4), {"residual_scale": "nan"}, "not finite"),
    ],
)
def test_headers_that_are_damaged(tmp_path, config, damage, message):
    save_model(build_network(config), tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    metadata["config"] = json.dumps(json.loads(metadata["config"]) | damage)
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    with pytest.raises(WeightsError, match=message):
        load_model(tmp_path / "a.safetensors")


def test_names_without_packaged_weights():
    with pytest.raises(
        WeightsError,
        match=r"vdsr is not packaged \(packaged: edsr-baseline x2, .*\); train it and give",
    ):
        load_model("vdsr")


def test_networks_of_two_kinds_do_not_mix(tmp_path):
    for name, config in ("a", SRCNNConfig()), ("b", VDSRConfig()), ("c", SRCNNConfig(kernels=(9, 5, 5))):
        save_model(build_network(config), tmp_path / f"{name}.safetensors")
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    with pytest.raises(WeightsError, match="do not mix: srcnn against vdsr"):
        load_model(f"{a}:0.5+{b}:0.5")
    with pytest.raises(WeightsError, match=r"do not mix: kernels \(9, 1, 5\) against kernels \(9, 5, 5\)"):
        load_model(f"{a}:0.5+{c}:0.5")

"""Files of every layout through spandrel's own loader; other networks' files stay other networks'."""

import contextlib
import importlib
import inspect
import logging
import pkgutil
import runpy
import sys

import pytest
import torch

from edsr.errors import WeightsError
from edsr.models import (
    EDSR,
    MDSR,
    SRCNN,
    VDSR,
    EDSRConfig,
    MDSRConfig,
    SRCNNConfig,
    SRResNet,
    SRResNetConfig,
    VDSRConfig,
    build_network,
)
from edsr.weights import load_model, recognize, save_checkpoint, save_model
from tests.conftest import ROOT, network
from tests.support import checkpoints
from tests.support.checkpoints import assert_same_state
from tests.support.torchvision import import_spandrel
from tests.weights import test_family as family

spandrel = import_spandrel()

import edsr.integrations.spandrel as integration  # noqa: E402


@pytest.fixture(autouse=True)
def registered():
    """The registry of all loaders, with our networks, as it was afterwards."""
    registry = spandrel.MAIN_REGISTRY
    before = registry.copy()
    integration.register()
    yield
    vars(registry).update(vars(before))


def loaded(path):
    return spandrel.ModelLoader().load_from_file(path)


IMAGE = checkpoints.make_image(5).float()
LAYOUTS = [
    checkpoints.edsr_pytorch,
    checkpoints.edsr_pytorch_of_range_1,
    checkpoints.basicsr,
    checkpoints.mmagic,
    checkpoints.mlcommons,
]


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_edsr_of_every_layout(make, scale, tmp_path):
    tensors, forward = make(scale)
    torch.save(tensors, tmp_path / "x.pth")
    descriptor = loaded(tmp_path / "x.pth")
    assert isinstance(descriptor, spandrel.ImageModelDescriptor) and isinstance(descriptor.model, EDSR)
    assert (descriptor.architecture.name, descriptor.purpose, descriptor.scale) == ("EDSR", "SR", scale)
    assert (descriptor.input_channels, descriptor.output_channels) == (3, 3)
    assert descriptor.tags == ["5nf", "2nb"]
    descriptor.model.double()
    assert (descriptor(IMAGE.double()) - forward(IMAGE.double()).clamp(0, 1)).abs().max() < 1e-6


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"params_ema": t, "params": {k: v + 1 for k, v in t.items()}},
        lambda t: {"state_dict": {f"generator.{k}": v for k, v in t.items()} | {"step_counter": torch.zeros(1)}},
        lambda t: {f"module.{k}": v for k, v in t.items()},
        lambda t: {"net_g": t, "optimizer": {"state": {}}},
    ],
)
@pytest.mark.parametrize("ending", ["pt", "pth", "ckpt"])
def test_wrapped(wrap, ending, tmp_path):
    tensors = checkpoints.basicsr(2)[0]
    torch.save(wrap(tensors), tmp_path / f"x.{ending}")
    torch.save(tensors, tmp_path / "plain.pth")
    assert_same_state(loaded(tmp_path / f"x.{ending}").model, load_model(tmp_path / "plain.pth"))


@pytest.mark.parametrize("make", [family.SRGANBlocks, family.SRGANTrunk, family.SRResNetTutorial])
def test_srresnets_of_others(make, tmp_path):
    net = family.made(make)
    torch.save(net.state_dict(), tmp_path / "x.pth")
    descriptor = loaded(tmp_path / "x.pth")
    assert isinstance(descriptor.model, SRResNet) and descriptor.architecture.name == "SRResNet"
    torch.testing.assert_close(descriptor(IMAGE), net(IMAGE).clamp(0, 1), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (family.SRCNNPyTorch, SRCNN),
        (family.SRCNNFeatures, SRCNN),
        (family.VDSRPyTorch, VDSR),
        (family.VDSRTrunk, VDSR),
        (family.MDSRPyTorch, MDSR),
    ],
)
def test_networks_that_need_a_scale(make, kind, tmp_path):
    torch.save(family.made(make).state_dict(), tmp_path / "x.pth")
    assert loaded(tmp_path / "x.pth").scale == 2
    registry = spandrel.ArchRegistry()
    integration.register(registry, scale=3)
    descriptor = spandrel.ModelLoader(registry=registry).load_from_file(tmp_path / "x.pth")
    assert isinstance(descriptor.model, kind) and descriptor.scale == 3
    with torch.no_grad():
        want = load_model(tmp_path / "x.pth", 3)(IMAGE).clamp(0, 1)
    assert torch.equal(descriptor(IMAGE), want)


OURS = {
    "edsr": EDSRConfig(2, 1, 16),
    "mdsr": MDSRConfig(blocks=1, features=16),
    "srcnn": SRCNNConfig(),
    "vdsr": VDSRConfig(depth=4, features=16),
    "srresnet": SRResNetConfig(2, 1, 16),
}


@pytest.mark.parametrize("config", OURS.values(), ids=OURS)
def test_our_files(config, tmp_path):
    model = build_network(config).eval()
    save_model(model, tmp_path / "x.safetensors", dtype=torch.float16)
    descriptor = loaded(tmp_path / "x.safetensors")
    assert descriptor.model.config == config
    with torch.no_grad():
        assert torch.equal(descriptor(IMAGE), load_model(tmp_path / "x.safetensors")(IMAGE).clamp(0, 1))
    assert descriptor.dtype == torch.float32 and descriptor(IMAGE[..., :1, :1]).shape == (1, 3, 2, 2)
    for dtype, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.05)):
        want = descriptor.float()(IMAGE)
        got = descriptor.to(dtype)(IMAGE.to(dtype))
        assert got.dtype == dtype and (got.float() - want).abs().max() < tolerance


@pytest.mark.parametrize("ending", ["pt", "pth"])
def test_converted_files(ending, tmp_path):
    model = network(3).float()
    save_checkpoint(model, tmp_path / f"x.{ending}", terms={"license": "MIT"})
    assert_same_state(loaded(tmp_path / f"x.{ending}").model, load_model(tmp_path / f"x.{ending}"))


def test_packaged_weights():
    from edsr.weights.files import FOLDER

    with torch.no_grad():
        want = load_model("edsr-baseline", 3)(IMAGE).clamp(0, 1)
    assert torch.equal(loaded(FOLDER / "edsr-baseline-x3.safetensors")(IMAGE), want)


def test_load_knows_what_the_header_says(tmp_path, caplog):
    """And the loader, which does not see it, tells what it assumes."""
    model = network(2, residual_scale=0.3, mean=(0.0, 0.0, 0.0)).float()
    save_model(model, tmp_path / "x.safetensors")
    descriptor = integration.load(tmp_path / "x.safetensors")
    assert descriptor.model.config == model.config and descriptor.architecture.name == "EDSR" and not caplog.records
    with torch.no_grad():
        assert torch.equal(descriptor(IMAGE), load_model(tmp_path / "x.safetensors")(IMAGE).clamp(0, 1))
    assert loaded(tmp_path / "x.safetensors").model.config.residual_scale == 1.0
    assert "residual scale 1 assumed" in caplog.text
    save_model(build_network(SRResNetConfig(2, 1, 4, tanh=True)), tmp_path / "y.safetensors")
    loaded(tmp_path / "y.safetensors")
    assert "no tanh at its end assumed, without the file's header" in caplog.text
    assert integration.load(tmp_path / "y.safetensors").model.config.tanh
    assert integration.load("edsr-baseline", 4).scale == 4


def test_a_residual_scale_for_files_that_do_not_state_it(tmp_path, caplog):
    torch.save(checkpoints.basicsr(2)[0], tmp_path / "x.pth")
    registry = spandrel.ArchRegistry()
    integration.register(registry, residual_scale=0.1)
    caplog.set_level(logging.WARNING)
    found = spandrel.ModelLoader(registry=registry).load_from_file(tmp_path / "x.pth")
    assert found.model.config.residual_scale == 0.1 and not caplog.records


def test_registering_twice_adds_nothing():
    assert integration.register() == []
    assert len(spandrel.MAIN_REGISTRY) == len(spandrel.MAIN_REGISTRY.architectures("detection"))
    ids = [each.architecture.id for each in spandrel.MAIN_REGISTRY]
    assert ids[-5:] == [f"edsr-triton-{name}" for name in ("edsr", "mdsr", "srcnn", "vdsr", "srresnet")]


def test_the_example(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["with_spandrel.py"])
    runpy.run_path(str(ROOT / "examples" / "with_spandrel.py"), run_name="__main__")
    assert capsys.readouterr().out == "EDSR x2, 64nf, 16nb\n[1, 3, 64, 96] -> [1, 3, 128, 192]\n"


# What is not ours


THEIRS = {
    "ESRGAN": ("ESRGAN", {"num_filters": 8, "num_blocks": 1}),
    "Compact": ("SRVGGNetCompact", {"num_feat": 8, "num_conv": 2}),
    "RCAN": ("RCAN", {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 16}),
    "DnCNN": ("DnCNN", {}),
    "SwiftSRGAN": ("SwiftSRGAN", {"num_channels": 8, "num_blocks": 1}),
    "PLKSR": ("PLKSR", {"dim": 8, "n_blocks": 1}),
}


@pytest.mark.parametrize("name", THEIRS)
def test_networks_of_spandrel_are_loaded_as_themselves(name):
    module = importlib.import_module(f"spandrel.architectures.{name}")
    (kind, options) = THEIRS[name]
    net = getattr(module, kind, getattr(module, name, None))(**options)
    descriptor = spandrel.ModelLoader().load_from_state_dict(net.state_dict())
    assert descriptor.architecture.id == name and type(descriptor.model) is type(net)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_no_network_of_spandrel_is_recognized():
    """All that can be built without options, by shapes alone."""
    tried = []
    folder = importlib.import_module("spandrel.architectures").__path__
    for name in (each.name for each in pkgutil.iter_modules(folder) if not each.name.startswith("_")):
        module = importlib.import_module(f"spandrel.architectures.{name}")
        for kind in (getattr(module, each) for each in module.__all__):
            if inspect.isclass(kind) and issubclass(kind, torch.nn.Module):
                with contextlib.suppress(Exception), torch.device("meta"):
                    tensors = kind().state_dict()
                    tried.append(name)
                    assert not recognize(tensors), name
    assert len(set(tried)) > 20


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"attention.weight": torch.zeros(4, 4)},
        lambda t: t | {"body.0.extra.weight": torch.zeros(4, 4, 3, 3)},
        lambda t: {k: v for k, v in t.items() if k != "conv_last.bias"},
        lambda t: t | {"conv_first.weight": torch.zeros(5, 1, 3, 3)},
        lambda t: {f"sr.{k}": v for k, v in t.items()} | {"denoise.weight": torch.zeros(4, 4)},
        lambda t: {"conv_first.weight": torch.zeros(5, 3, 3, 3)},
        lambda t: {k: v.int() for k, v in t.items()},
        lambda t: {"a": 1},
        lambda t: {},
    ],
)
def test_what_is_nearly_ours_is_refused(change):
    tensors = checkpoints.basicsr(2)[0]
    assert recognize(tensors) == "edsr"
    assert recognize(change(tensors)) is None
    with pytest.raises(spandrel.UnsupportedModelError):
        spandrel.ModelLoader().load_from_state_dict(change(tensors))


def test_broken_values_are_one_line():
    tensors = checkpoints.basicsr(2)[0]
    tensors["conv_last.bias"][0] = float("nan")
    with pytest.raises(WeightsError, match=r"conv_last\.bias is not finite"):
        spandrel.ModelLoader().load_from_state_dict(tensors)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("spandrel", r"pip install 'edsr-triton\[spandrel\]'"),
        ("einops", "spandrel needs a package that is missing; install einops"),
    ],
)
def test_without_a_package(name, message, monkeypatch):
    monkeypatch.delitem(sys.modules, "edsr.integrations.spandrel")
    for each in [each for each in sys.modules if each.split(".")[0] == "spandrel"]:
        monkeypatch.delitem(sys.modules, each)
    monkeypatch.setattr(sys, "meta_path", [Missing(name), *sys.meta_path])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(WeightsError, match=message):
        importlib.import_module("edsr.integrations.spandrel")


def test_where_torchvision_does_not_fit(monkeypatch):
    monkeypatch.delitem(sys.modules, "edsr.integrations.spandrel")
    for each in [each for each in sys.modules if each.split(".")[0] == "spandrel"]:
        monkeypatch.delitem(sys.modules, each)
    error = RuntimeError("operator torchvision::nms does not exist")
    monkeypatch.setattr(sys, "meta_path", [Missing("spandrel", error), *sys.meta_path])
    with pytest.raises(WeightsError, match=r"cannot be imported \(operator torchvision::nms .*install the torchvision"):
        importlib.import_module("edsr.integrations.spandrel")


class Missing:
    """A finder of modules by which one is missing, or fails."""

    def __init__(self, name: str, error: Exception | None = None):
        self.name, self.error = name, error

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            raise self.error or ModuleNotFoundError(f"No module named {name!r}", name=name)

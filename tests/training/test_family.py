"""SRCNN, VDSR, SRResNet, SRGAN and MDSR in training: what each does differently, and that all resume exactly."""

import contextlib
import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from edsr.data import IMAGE, PairedImages, PatchLoader, load_validation
from edsr.devices import ProcessGroup
from edsr.errors import EDSRError
from edsr.images import matlab_downscale
from edsr.inference import Upscaler
from edsr.kernels import load_training_ops
from edsr.models import (
    Discriminator,
    EDSRConfig,
    MDSRConfig,
    SRCNNConfig,
    SRResNetConfig,
    VDSRConfig,
    VGG19Features,
    build_network,
    multiply_adds,
)
from edsr.training import checkpoint, setup
from edsr.training.adversarial import AdversarialStep
from edsr.training.config import TrainConfig
from edsr.training.step import TrainStep
from edsr.training.trainer import train
from edsr.training.validation import bicubic_psnr, validate
from edsr.weights import load_model, read_info, save_model
from edsr.wording import for_command_line
from tests.conftest import make_image, training

CONFIGS = {
    "mdsr-baseline": MDSRConfig(blocks=1, features=16),
    "srcnn": SRCNNConfig(),
    "srcnn-955": SRCNNConfig(kernels=(9, 5, 5)),
    "vdsr": VDSRConfig(depth=4, features=16),
    "srresnet": SRResNetConfig(scale=2, blocks=1, features=16),
    "srgan": SRResNetConfig(scale=2, blocks=1, features=4),
}
models = pytest.mark.parametrize("model", CONFIGS)


def images(scale: int) -> PairedImages:
    highs = [make_image(48, 48, seed=seed) for seed in range(3)]
    return PairedImages.from_pairs([(matlab_downscale(high, scale), high) for high in highs], scale)


def loader(scale: int, batch: int = 2) -> PatchLoader:
    return PatchLoader(images(scale), 8, batch, 0, "cpu", 1)


def step_of(name: str, dtype=torch.float32, backend="torch", vgg=None, **more) -> TrainStep:
    """The step of a network in CONFIGS."""
    torch.manual_seed(0)
    model, ops = build_network(CONFIGS[name]).to(memory_format=torch.channels_last), load_training_ops(backend)
    usual = [loader(scale) for scale in model.config.scales], ProcessGroup("cpu"), "l1", 0.9, dtype, ops
    if name == "srgan":
        return AdversarialStep(Discriminator(16, 4), vgg, model, *usual, False, **more)
    return TrainStep(model, *usual, True, True, **more)


def options(folder, out, model: str, **more) -> TrainConfig:
    return training(folder, out, model=model, **{"network": CONFIGS[model]} | more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@models
def test_steps_lower_the_loss_on_the_same_patches(model, dtype):
    step = step_of(model, dtype)
    count = len(CONFIGS[model].scales)
    before = [step.run(k, [0.0])[0] for k in range(count)]
    for _ in range(4):
        for k in range(count):
            step.run(k, [2e-4])
    after = [step.run(k, [0.0])[0] for k in range(count)]
    assert all(a < b for a, b in zip(after, before, strict=True))
    assert all(p.dtype == torch.float32 for p in step.tensors().values())


@models
def test_a_stopped_run_continues_bit_for_bit(folder, tmp_path, model):
    list(train(options(folder, tmp_path / "whole", model)))
    with contextlib.closing(train(options(folder, tmp_path / "parts", model))) as steps:
        for progress in steps:
            if progress.step == 7:
                break
    rest = options((), tmp_path / "parts", model, resume=True, data=(), given=frozenset())
    assert [p.step for p in train(rest)] == list(range(8, 13))
    whole, parts = (checkpoint.load_latest(tmp_path / run).tensors for run in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any("running_var" in name for name in whole) is ("srresnet" in model or "srgan" in model)
    assert any(name.startswith("discriminator.") for name in whole) is (model == "srgan")
    assert load_model(tmp_path / "parts" / "last.safetensors").config == CONFIGS[model]


@pytest.mark.parametrize("backend", ["torch", "winograd"])
@pytest.mark.parametrize("model", ["mdsr-baseline", "vdsr", "srresnet"])
def test_gradients_are_those_of_fp64(model, backend):
    torch.manual_seed(0)
    exact = build_network(CONFIGS[model]).double()
    network = copy.deepcopy(exact).float().to(memory_format=torch.channels_last)
    low, high = torch.rand(2, 3, 12, 16), torch.rand(2, 3, 24, 32)
    for one, kind, name in (exact, torch.float64, "torch"), (network, torch.float32, backend):
        ((one(low.to(kind), load_training_ops(name)) - high.to(kind)) ** 2).mean().backward()
    for (name, p), q in zip(network.named_parameters(), exact.parameters(), strict=True):
        if p.grad is None:
            assert q.grad is None, name
            continue
        assert q.grad is not None
        largest = q.grad.abs().max().item()
        error = (p.grad.double() - q.grad).abs().max().item()
        assert error <= 3e-5 * largest + 1e-7, (name, error, largest)


def test_scales_take_turns_and_leave_the_parts_of_others_alone():
    step = step_of("mdsr-baseline")
    for k, own in enumerate(["0", "1", "2", "0"]):
        before = {name: tensor.clone() for name, tensor in step.tensors().items()}
        step.run(k, [1e-3])
        changed = {name for name, tensor in step.tensors().items() if not torch.equal(tensor, before[name])}
        parts = {name.split(".")[2] for name in changed if name.startswith(("model.entries", "model.upsamplers"))}
        assert parts == {own}
        assert "model.body.0.conv1.weight" in changed


def test_of_several_scales_each_is_validated(folder, tmp_path, lines):
    run = tmp_path / "run"
    last = list(train(options(folder, run, "vdsr", scales=(4, 2), val=str(folder), patch=6)))[-1]
    model = load_model(run / "last.safetensors")
    assert model.config.all_scales == (2, 4)
    sets = {f"x{scale}": load_validation(str(folder), scale) for scale in (2, 4)}
    wanted = {name: validate(model, one, one.scale)[0] for name, one in sets.items()}
    assert dict(last.psnr_sets) == pytest.approx(wanted, abs=1e-3)
    assert last.psnr == pytest.approx(np.mean([*wanted.values()]), abs=1e-3)
    assert f"  x4        4; {bicubic_psnr(sets['x4']):.2f} dB" in lines
    assert any(line.startswith("network     VDSR x2, x4: 4 convolutions of 16 features, ") for line in lines)
    again = options((), run, "vdsr", resume=True, data=(), scales=(2, 3), given=frozenset({"scales"}))
    with pytest.raises(EDSRError, match=r"with scales=\[2, 4\], not \[2, 3\]"):
        list(train(again))
    with for_command_line(), pytest.raises(EDSRError, match=r"with --scales 2 4, not 2 3$"):
        list(train(again))


def test_what_is_held_out_is_so_for_all_scales(folder, tmp_path):
    """An image large enough for x2 alone would give the others other numbers."""
    Image.fromarray(make_image(40, 40)).save(folder / "00.png")
    config = training(folder, tmp_path / "run", model="vdsr", patch=12)
    kept, sets = setup.load_images(config, ProcessGroup("cpu"))
    assert [one.scale for one in kept] == [2, 3, 4] and [*sets] == ["x2", "x3", "x4"]
    numbers = [one.index[:, IMAGE].tolist() for one in kept]
    assert numbers[0] == numbers[1] == numbers[2] and len(numbers[0]) == 3


def test_statistics_of_batches_are_the_averages_own():
    step = step_of("srresnet")
    step.run(0, [1e-3])
    state = step.tensors()
    names = [name for name in state if name.startswith("model.") and "running" in name]
    assert len(names) == 6 and all(torch.equal(state[name], state[name.replace("model", "ema", 1)]) for name in names)
    assert not torch.equal(state["model.bn.running_var"], torch.ones(16))
    assert step.model.training and not step.ema.training
    other = step_of("srresnet", torch.bfloat16)
    other.run(0, [1e-3])
    torch.testing.assert_close(
        other.tensors()["model.bn.running_var"], state["model.bn.running_var"], rtol=0.05, atol=0
    )


def test_clipping_of_vdsr_grows_as_the_rate_falls():
    """Adam undoes a factor that is the same in all steps; so the moments are looked at."""
    moments = {}
    for rate in 1e-3, 1e-4:
        step = step_of("vdsr", clip=1e-3, clip_peak=1e-3)
        step.run(0, [rate])
        state = step.tensors()
        gradients = [tensor / 0.1 for name, tensor in state.items() if name.endswith("exp_avg")]
        moments[rate] = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
    assert moments[1e-3] == pytest.approx(1e-3, rel=1e-3) and moments[1e-4] == pytest.approx(1e-2, rel=1e-3)


def vgg_file(path, **changed) -> str:
    """A file like torchvision's, its numbers random and small."""
    tensors = {name: 0.01 * torch.randn_like(tensor) for name, tensor in VGG19Features().state_dict().items()}
    torch.save(tensors | {"classifier.0.bias": torch.zeros(3)} | changed, path)
    return str(path)


@pytest.mark.slow
def test_an_srgan_compares_features_where_there_is_a_vgg(folder, tmp_path, lines):
    vgg = vgg_file(tmp_path / "vgg19.pth")
    srresnet = tmp_path / "srresnet.safetensors"
    save_model(build_network(CONFIGS["srgan"]), srresnet)
    more = {"steps": 3, "init": str(srresnet)}
    done = list(train(options(folder, tmp_path / "run", "srgan", vgg=vgg, **more)))
    assert any(line.startswith("loss") and vgg in line for line in lines)
    list(train(options(folder, tmp_path / "pixels", "srgan", **more)))
    assert any(line.startswith("loss") and "not VGG19's features: vgg is not given" in line for line in lines)
    a, b = (read_info(tmp_path / "run" / f"{name}.safetensors") for name in ("best", "last"))
    assert a["training"]["steps"] == b["training"]["steps"] == 3 and a["file"] != b["file"]
    assert all(math.isfinite(p.loss) for p in done)
    record = checkpoint.load_latest(tmp_path / "run").record
    assert record["options"]["vgg"] == "vgg19.pth" and record["remembered"]["vgg"] == vgg
    assert list(train(options((), tmp_path / "run", "srgan", resume=True, data=(), given=frozenset()))) == []
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics and all(line["loss/discriminator"] > 0 < line["loss/adversarial"] for line in metrics)


def test_a_discriminator_learns_and_the_network_alone_has_its_gradient():
    step = step_of("srgan")
    before = {name: tensor.clone() for name, tensor in step.tensors().items()}
    step.run(0, [1e-3])
    after = step.tensors()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(("discriminator.", "model."))} <= changed | {
        name
        for name in before
        if name.endswith(("body_end.bias", "conv1.bias", "conv2.bias"))  # a bn has no use for them
    }
    assert all(float(after[name]) == 1 for name in after if name.endswith(".step"))


def test_the_discriminator_is_the_papers():
    with torch.device("meta"):
        judge = Discriminator(96)
    weights = [p for p in judge.parameters() if p.ndim > 1]
    assert [p.shape[0] for p in weights] == [64, 64, 128, 128, 256, 256, 512, 512, 1024, 1]
    assert weights[8].shape[1] == 6 * 6 * 512
    judge = Discriminator(96, 1)
    assert torch.equal(judge.pooling, torch.eye(6))  # nothing is averaged where patches are as large
    assert Discriminator(30, 1)(torch.rand(2, 3, 30, 30)).shape == (2, 1)


def test_features_are_those_of_torchvisions_layers():
    """The sixteen convolutions lie where torchvision's vgg19.features has them."""
    convolutions = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    names = [f"features.{i}.{kind}" for i in convolutions for kind in ("weight", "bias")]
    network = VGG19Features()
    assert [*network.state_dict()] == names
    assert sum(p.numel() for p in network.parameters()) == 20_024_384
    assert network(torch.rand(1, 3, 20, 33)).shape[:2] == (1, 512) and network(torch.rand(1, 3, 16, 16)).min() >= 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"model": "srcnn", "blocks": 2}, "srcnn has no blocks; leave it out"),
        ({"model": "vdsr", "features": 8, "blocks": 2}, "vdsr has no blocks"),
        ({"model": "srresnet", "residual_scale": 0.1}, "srresnet has no residual_scale"),
        ({"model": "vdsr", "scale": 3}, r"vdsr serves several scales; give scales=\(3,\) in place of scale"),
        ({"model": "srcnn", "scales": (2, 3)}, "scales is of mdsr-baseline, mdsr, vdsr; give srcnn one scale"),
        ({"model": "mdsr", "scales": (2, 8)}, "scales are some of 2, 3 and 4"),
        ({"model": "srresnet", "vgg": "vgg.pth"}, "vgg is of model='srgan'; leave it out"),
        ({"model": "srgan", "vgg": "nowhere.pth"}, "nowhere.pth: cannot be read .*give torchvision's vgg19 with vgg"),
    ],
)
def test_options_of_other_networks_are_refused(folder, tmp_path, more, says):
    with pytest.raises(EDSRError, match=says) as caught:
        list(train(training(folder, tmp_path / "run", **more)))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"features.5.weight": torch.zeros(1, 64, 3, 3)}, r"its features.5.weight has the shape \[1, 64, 3, 3\], not"),
        ({"features.34.bias": torch.zeros(512, dtype=torch.int64)}, "has no tensor features.34.bias"),
    ],
)
@pytest.mark.slow
def test_a_file_of_another_vgg_is_refused(folder, tmp_path, changed, says):
    vgg = vgg_file(tmp_path / "vgg.pth", **changed)
    with pytest.raises(EDSRError, match=f"vgg.pth: {says}") as caught:
        list(train(options(folder, tmp_path / "run", "srgan", vgg=vgg)))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_file_of_other_tensors_is_no_vgg(folder, tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(EDSRError, match=r"a.safetensors: has no tensor features.0.weight; give torchvision's"):
        list(train(options(folder, tmp_path / "run", "srgan", vgg=str(tmp_path / "a.safetensors"))))
    assert not (tmp_path / "run").exists()


def test_an_srgan_from_nothing_says_how_the_paper_starts(folder, tmp_path, lines):
    list(train(options(folder, tmp_path / "run", "srgan", steps=1)))
    assert any(
        "random weights; the paper starts an SRGAN from a trained SRResNet: name it with init" in line for line in lines
    )


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
)
@models
def test_what_a_device_has_trained_upscales_there_as_on_a_cpu(folder, tmp_path, model, device):
    losses = [progress.loss for progress in train(options(folder, tmp_path / "run", model, device=device))]
    assert len(losses) == 12 and all(map(math.isfinite, losses))
    image = make_image(40, 70)
    for scale in CONFIGS[model].scales:
        trained = load_model(tmp_path / "run" / "last.safetensors", scale)
        there, here = (Upscaler(trained, where, precision="fp32")(image) for where in (device, "cpu"))
        assert there.shape == (scale * 40, scale * 70, 3) and np.abs(there.astype(int) - here).max() <= 1


def test_weights_of_another_network_are_no_start(folder, tmp_path):
    save_model(build_network(CONFIGS["vdsr"]), tmp_path / "vdsr.safetensors")
    with pytest.raises(EDSRError, match="not a network of the shape of srcnn"):
        list(train(options(folder, tmp_path / "run", "srcnn", init=str(tmp_path / "vdsr.safetensors"))))


def test_mdsr_may_start_from_edsr(folder, tmp_path, lines):
    edsr = build_network(EDSRConfig(blocks=1, features=16))
    save_model(edsr, tmp_path / "edsr.safetensors")
    more = {"init": str(tmp_path / "edsr.safetensors"), "steps": 1, "lr": 1e-30}
    list(train(options(folder, tmp_path / "run", "mdsr-baseline", **more)))
    started = load_model(tmp_path / "run" / "last.safetensors")
    assert torch.equal(started.body[0].conv1.weight, edsr.body[0].conv1.weight)  # pyright: ignore
    assert any("10 of " in line and "starting from" in line for line in lines)


@models
def test_luma_patches_in_hdf5_train_each(tmp_path, model):
    h5py = pytest.importorskip("h5py")
    high = np.stack([make_image(36, 36, 1, seed)[..., 0] for seed in range(3)])
    with h5py.File(tmp_path / "91.h5", "w") as file:
        file["hr"] = file["lr"] = high.astype(np.float32) / 255  # lr as large as hr, as for SRCNN
    run = tmp_path / "run"
    done = list(train(options(tmp_path / "91.h5", run, model, steps=3, val_every=3)))
    assert done[-1].finished and json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_work_is_counted_by_layer():
    assert multiply_adds(build_network(SRCNNConfig(scale=3))) == 9 * (64 * 81 + 32 * 64 + 32 * 25)
    vdsr = build_network(replace(CONFIGS["vdsr"], scale=4))
    assert multiply_adds(vdsr) == 16 * 9 * (16 + 2 * 256 + 16)
    srresnet = build_network(replace(CONFIGS["srresnet"], scale=4))
    at_lr = 3 * 16 * 81 + 3 * 9 * 256 + 4 * 9 * 256  # head, block and body_end, first upsampler
    assert multiply_adds(srresnet) == at_lr + 4 * 4 * 9 * 256 + 16 * 3 * 16 * 81
    assert multiply_adds(vdsr.at(2)) * 4 == multiply_adds(vdsr)


def test_the_losses_against_a_discriminator_are_means_since_they_were_asked_for():
    step = step_of("srgan")
    for k in range(2):
        step.run(k, [0.0])
    first = step.other_losses()
    assert step.other_losses() == {}
    each = []
    for k in range(2):
        step.run(k, [0.0])
        each.append(step.other_losses())
    assert first == {name: pytest.approx((each[0][name] + each[1][name]) / 2, rel=1e-3) for name in first}
    assert first["loss/discriminator"] == pytest.approx(2 * math.log(2), abs=0.5)  # an opponent that knows nothing yet

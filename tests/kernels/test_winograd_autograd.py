"""Gradients by Winograd's algorithm: every product against fp64, with PyTorch's error in fp32 as the measure."""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr.errors import BackendError
from edsr.kernels import reference
from edsr.kernels.winograd import ops as winograd_cpu
from edsr.models.collapsed import CollapsedEDSR
from edsr.models.edsr import PRESETS, EDSRConfig
from edsr.training.config import TrainConfig
from edsr.training.trainer import train
from edsr.weights import load_model
from tests.conftest import network
from tests.kernels.test_winograd import features, layer, window

if winograd_cpu.unavailable_reason("cpu", torch.float32, 16):
    pytest.skip(winograd_cpu.unavailable_reason("cpu", torch.float32, 16), allow_module_level=True)

from edsr.kernels.winograd import autograd as training
from edsr.kernels.winograd import jit
from edsr.kernels.winograd.autograd import Products as products

CHANNELS = st.integers(1, 5).map(lambda count: 16 * count)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    inputs=CHANNELS,
    outputs=CHANNELS,
    batch=st.integers(1, 3),
    taps=st.sampled_from([3, 5]),
    scale=st.sampled_from([1.0, 0.1]),
    epilogue=st.sampled_from(["", "mask", "skip"]),
    channels_last=st.booleans(),
)
def test_the_input(height, width, inputs, outputs, batch, taps, scale, epilogue, channels_last):
    """channels_last: the weight's memory format."""
    dy, _ = window(features(batch, outputs, height, width))
    other, _ = window(features(batch, inputs, height, width)) if epilogue else (None, None)
    weight, _ = layer(inputs, outputs, taps)
    weight = weight.contiguous(memory_format=torch.channels_last) if channels_last else weight
    want = scale * F.conv_transpose2d(dy.double(), weight.double(), padding=taps // 2)
    want = want if epilogue != "mask" else want * (other > 0)
    want = want if epilogue != "skip" else want + other
    got = products.dgrad(dy, weight, scale, **({epilogue: other} if epilogue else {}))
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-4)
    assert epilogue != "mask" or not got[other <= 0].any()


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    inputs=CHANNELS,
    outputs=CHANNELS,
    batch=st.integers(1, 3),
    taps=st.sampled_from([3, 5]),
    scale=st.sampled_from([1.0, 0.1]),
)
def test_the_weight(height, width, inputs, outputs, batch, taps, scale):
    x, around = window(features(batch, inputs, height, width))
    dy, _ = window(features(batch, outputs, height, width))
    shape = (outputs, inputs, taps, taps)
    want = scale * torch.nn.grad.conv2d_weight(x.double(), shape, dy.double(), padding=taps // 2)
    before = around.clone()
    dw, db = training.wgrad(x, dy, taps, scale)
    limit = 1e-5 * scale * (batch * height * width) ** 0.5
    torch.testing.assert_close(dw.double(), want, rtol=0, atol=limit)
    torch.testing.assert_close(db.double(), scale * dy.double().sum((0, 2, 3)), rtol=0, atol=limit)
    assert dw.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(around.nan_to_num(7), before.nan_to_num(7))


@pytest.mark.parametrize("many", [(16, 64, 48), (4, 64, 32), (2, 256, 24)], ids=["16 x 48", "4 x 32", "wide"])
def test_accuracy(many):
    """Of a residual block's gradients: no worse than twice PyTorch's in fp32, the largest error and the mean one."""
    n, c, side = many
    torch.manual_seed(0)
    x, dy = F.relu(features(n, c, side, side)), features(n, c, side, side)
    first, second = layer(c, c), layer(c, c)

    def gradients(ops, dtype):
        operands = [t.detach().to(dtype, copy=True).requires_grad_() for t in (x, *first, *second)]
        ops.resblock(*operands, 1.0).backward(dy.to(dtype))
        return [t.grad for t in operands]

    true = gradients(reference, torch.float64)
    for t, ours, torch_ in zip(
        true, gradients(training, torch.float32), gradients(reference, torch.float32), strict=True
    ):
        assert 0 < (ours - t).abs().max() <= 2 * (torch_ - t).abs().max()
        assert (ours - t).abs().mean() <= 2 * (torch_ - t).abs().mean()


def test_any_number_of_threads_gives_the_same_bits():
    x, dy = features(3, 48, 41, 37), features(3, 80, 41, 37)
    weight, _ = layer(48, 80)
    mask = features(3, 48, 41, 37)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            weight = weight.clone()  # transformed anew
            found.append([*training.wgrad(x, dy, 3), *training.wgrad(x, dy, 5), products.dgrad(dy, weight, mask=mask)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for one in found[1:] for a, b in zip(found[0], one, strict=True))


@pytest.mark.parametrize(
    ("tiles", "channels", "splits"),
    [(1, 64, 1), (64, 64, 1), (127, 64, 1), (128, 64, 2), (300, 64, 4), (2304, 64, 16), (2304, 256, 16), (300, 256, 2)],
)
def test_splits(tiles, channels, splits):
    size, count = training.split_tiles(tiles, channels, channels)
    assert count == splits and size * count >= tiles > size * (count - 1)


def gradients_of(ops, operands, needs, call):
    operands = [t.clone().requires_grad_(bool(need)) for t, need in zip(operands, needs, strict=True)]
    y = call(ops, *operands)
    torch.manual_seed(5)
    y.backward(torch.randn(y.shape, dtype=torch.float64).to(y.dtype))
    return [y.detach(), *(t.grad for t in operands)]


CALLS = {
    "plain": lambda ops, x, w, b, s: ops.conv3x3(x, w, b),
    "relu": lambda ops, x, w, b, s: ops.conv3x3(x, w, b, relu=True),
    "scale and skip": lambda ops, x, w, b, s: ops.conv3x3(x, w, b, scale=0.1, skip=s),
    "relu and skip": lambda ops, x, w, b, s: ops.conv3x3(x, w, b, relu=True, scale=0.1, skip=s),
    "shuffle": lambda ops, x, w, b, s: ops.conv3x3(x, w, b, shuffle=2),
    "padding": lambda ops, x, w, b, s: ops.conv3x3(x, w, b, padding=0),
    "5x5": lambda ops, x, w, b, s: training.conv5x5(x, F.pad(w, (1, 1, 1, 1), value=0.1), b),
}


@pytest.mark.parametrize("needs", [(1, 1, 1, 1), (0, 1, 1, 0), (1, 0, 0, 0), (0, 0, 1, 1), (0, 1, 0, 1)])
@pytest.mark.parametrize("name", CALLS)
def test_ops(name, needs):
    x, (weight, bias), skip = features(2, 32, 9, 11), layer(32, 64), features(2, 64, 9, 11)
    needs = (*needs[:3], needs[3] and "skip" in name)
    if not any(needs):
        return
    wide = [t.double() for t in (x, weight, bias, skip)]
    want = gradients_of(reference, wide, needs, CALLS[name])
    for got, true in zip(gradients_of(training, (x, weight, bias, skip), needs, CALLS[name]), want, strict=True):
        assert (got is None) == (true is None)
        if got is not None:
            torch.testing.assert_close(got.double(), true, rtol=0, atol=2e-4)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_residual_blocks(scale):
    x, first, second = features(2, 48, 10, 13), layer(48, 48), layer(48, 48)
    for needs in (1, 1, 1, 1, 1), (0, 0, 0, 1, 1), (1, 0, 0, 0, 0), (0, 1, 0, 0, 1):
        operands = (x, *first, *second)

        def call(ops, *given):
            return ops.resblock(*given, scale)

        want = gradients_of(reference, [t.double() for t in operands], needs, call)
        for got, true in zip(gradients_of(training, operands, needs, call), want, strict=True):
            assert (got is None) == (true is None)
            if got is not None:
                torch.testing.assert_close(got.double(), true, rtol=0, atol=2e-4)


def test_gradients_in_any_layout():
    """As the gradient of a sum, which has no memory of its own, or that of a transposed map."""
    x, first, second = features(1, 16, 6, 7), layer(16, 16), layer(16, 16)
    for end in (lambda y: y.sum(), lambda y: (y.permute(0, 3, 2, 1).contiguous() ** 2).sum()):

        def call(ops, *operands, end=end):
            return end(ops.resblock(*operands, 1.0)).view(1)

        needs, operands = (1,) * 5, (x, *first, *second)
        want = gradients_of(reference, [t.double() for t in operands], needs, call)
        for got, true in zip(gradients_of(training, operands, needs, call), want, strict=True):
            torch.testing.assert_close(got.double(), true, rtol=1e-4, atol=1e-3)


def nearest_kink(m, x):
    """The smallest value, but for its sign, that meets a ReLU. Where it is no more than rounding, so is which of two
    gradients is right."""
    found = []

    def resblock(x, weight, bias, *rest, reuse):
        found.append(reference.conv3x3(x, weight, bias).abs().min().item())
        return reference.resblock(x, weight, bias, *rest)

    with torch.no_grad():
        copy.deepcopy(m).double()(x.double(), SimpleNamespace(**vars(reference) | {"resblock": resblock}))
    return min(found)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_network_s_gradient_is_no_worse_than_pytorch_s(scale):
    m = network(scale, blocks=3, features=32)
    truth = torch.rand(2, 3, 17 * scale, 22 * scale)
    x = next(x for x in iter(lambda: torch.rand(2, 3, 17, 22), None) if nearest_kink(m, x) > 2e-6)

    def gradient(ops, dtype):
        net = network(scale, blocks=3, features=32).to(dtype)
        net.load_state_dict(m.state_dict())
        net = net.to(memory_format=torch.channels_last)
        F.mse_loss(net(x.to(dtype), ops), truth.to(dtype)).backward()
        return torch.cat([p.grad.flatten().double() for p in net.parameters()])

    true = gradient(reference, torch.float64)
    ours, torch_ = (gradient(ops, torch.float32) - true for ops in (training, reference))
    assert ours.norm() <= 2 * torch_.norm() and ours.norm() < 1e-5 * true.norm()


def test_weights_are_transformed_after_every_step():
    x, (weight, bias) = features(1, 16, 8, 8), layer(16, 16)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    adam = torch.optim.Adam([weight, bias], 0.1, fused=True)
    for _ in range(3):
        adam.zero_grad()
        x_ = x.clone().requires_grad_()
        y = training.conv3x3(x_, weight, bias)
        torch.testing.assert_close(y, F.conv2d(x, weight, bias, padding=1), rtol=0, atol=1e-4)
        y.square().mean().backward()
        want = torch.nn.grad.conv2d_input(x.shape, weight, 2 * y / y.numel(), padding=1)
        torch.testing.assert_close(x_.grad, want, rtol=0, atol=1e-4)
        adam.step()


class TestRuns:
    @pytest.fixture(autouse=True)
    def small_baseline(self, monkeypatch):
        """edsr-baseline is a network of 16 features, which the kernels support."""
        monkeypatch.setitem(PRESETS, "edsr-baseline", EDSRConfig(blocks=1, features=16))

    def options(self, folder, out, **more):
        return TrainConfig((str(folder),), str(out), **{"steps": 6, "batch": 2, "patch": 8, "device": "cpu"} | more)

    @pytest.mark.parametrize("backend", [pytest.param("auto", marks=pytest.mark.slow), "winograd", "torch"])
    def test_they_are_trained_with(self, folder, tmp_path, backend, monkeypatch):
        called, original = [], training.wgrad
        monkeypatch.setattr(training, "wgrad", lambda *operands: called.append(1) or original(*operands))
        losses = [p.loss for p in train(self.options(folder, tmp_path / "run", backend=backend))]
        assert bool(called) == (backend != "torch")
        plain = [p.loss for p in train(self.options(folder, tmp_path / "plain", backend="torch"))]
        assert losses == pytest.approx(plain, rel=1e-5)

    def test_a_stopped_run_continues_to_the_same_bits(self, folder, tmp_path):
        list(train(self.options(folder, tmp_path / "whole")))
        with contextlib.closing(train(self.options(folder, tmp_path / "parts"))) as steps:
            next(steps), next(steps)
        list(train(self.options(folder, tmp_path / "parts", resume=True)))
        whole, parts = (load_model(tmp_path / name / "last.safetensors").state_dict() for name in ("whole", "parts"))
        assert all(torch.equal(whole[name], parts[name]) for name in whole)

    @pytest.mark.slow
    def test_compiling_is_logged_once(self, folder, tmp_path, monkeypatch, caplog):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        for first in True, False:
            jit.loaded.cache_clear()
            caplog.clear()
            with caplog.at_level("INFO", "edsr"):
                list(train(self.options(folder, tmp_path / f"run{first}", steps=1)))
            assert any("compiling the CPU kernels for training" in line for line in caplog.messages) == first

    def test_networks_that_they_do_not_support(self, folder, tmp_path, monkeypatch):
        monkeypatch.setitem(PRESETS, "edsr-baseline", EDSRConfig(blocks=1, features=8))
        assert len(list(train(self.options(folder, tmp_path / "run")))) == 6
        with pytest.raises(BackendError, match=r"backend='winograd': .* 16 features, not 8.*backend='torch'"):
            list(train(self.options(folder, tmp_path / "none", backend="winograd")))


def test_nan_and_infinity_are_seen():
    x, dy, (weight, _) = features(1, 16, 9, 9), features(1, 16, 9, 9), layer(16, 16)
    for value in float("inf"), float("nan"):
        bad = dy.clone()
        bad[0, 3, 4, 4] = value
        assert not products.dgrad(bad, weight)[0, :, 3:6, 3:6].isfinite().any()
        dw, db = training.wgrad(x, bad, 3)
        assert not dw[3].isfinite().any() and not db[3].isfinite() and db[:3].isfinite().all()
        mask = x.clone()
        mask[0, 0] = float("nan")  # as with PyTorch's ReLU, nothing is closed there
        assert products.dgrad(dy, weight, mask=mask)[0, 0].all()


def test_second_derivatives_are_refused():
    x, (weight, bias) = features(1, 16, 5, 5).requires_grad_(), layer(16, 16)
    y = training.conv3x3(x, weight.requires_grad_(), bias)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 7), (3, 3), (9, 14)])
def test_the_collapsed_tail(scale, height, width):
    """A network trained on it, its convolution the kernels' and its ring PyTorch's, beside the plain one in fp64."""
    m = network(scale, blocks=1, features=16)
    x, truth = torch.rand(2, 3, height, width), torch.rand(2, 3, height * scale, width * scale)

    def gradient(net, ops, dtype):
        net = net.to(dtype).to(memory_format=torch.channels_last)
        whole = CollapsedEDSR(net) if ops is training else net
        F.mse_loss(whole(x.to(dtype), ops), truth.to(dtype)).backward()
        return torch.cat([p.grad.flatten().double() for p in net.parameters()])

    true, ours = gradient(copy.deepcopy(m), reference, torch.float64), gradient(m, training, torch.float32)
    assert (ours - true).norm() < 3e-6 * true.norm()

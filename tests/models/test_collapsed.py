import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import conv2d

from edsr.data import dataset
from edsr.data.patches import PatchLoader
from edsr.devices import ProcessGroup
from edsr.kernels import reference
from edsr.models import collapsed as tail
from edsr.models.collapsed import CollapsedEDSR, compose, tap_matrices
from edsr.models.edsr import EDSR, EDSRConfig
from edsr.models.folding import BORDER_CLASSES, collapse
from edsr.training import recipe
from edsr.training.step import TrainStep
from edsr.training.trainer import train
from edsr.weights import load_model
from tests.conftest import network
from tests.conftest import training as options

SIZES = [(1, 1), (1, 2), (2, 1), (1, 4), (4, 1), (2, 5), (3, 3), (7, 6)]  # all sixteen border classes


def composed(model):
    weight = model.tail.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return compose(model, tap_matrices(model.config.shuffle_factors, dtype, weight.device), weight.dtype)


@pytest.mark.parametrize("features", [8, 16])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_composition_is_what_folding_finds_by_one_hot_images(scale, features):
    m = network(scale, 1, features)
    want_weight, want_bias = collapse(m)
    weights, biases = composed(m)
    for i, (height, _, top) in BORDER_CLASSES.items():
        for j, (width, _, left) in BORDER_CLASSES.items():
            window = want_weight[i, j, :, :, top : top + height, left : left + width]
            torch.testing.assert_close(weights[i][j], window, rtol=0, atol=1e-15)
            torch.testing.assert_close(biases[i][j], want_bias[i, j], rtol=0, atol=1e-15)
            assert weights[i][j].permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("features", [8, 16])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_loss_and_all_gradients_are_those_of_the_plain_network(scale, features, size):
    m = network(scale, 1, features)
    target = torch.rand(2, 3, scale * size[0], scale * size[1], dtype=torch.float64)
    x = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
    found = []
    for net in m, CollapsedEDSR(m):
        loss = recipe.loss("charbonnier", net(x), target)
        found.append((loss.detach(), *torch.autograd.grad(loss, [x, *net.parameters()])))
    for name, want, got in zip(["loss", "x", *dict(m.named_parameters())], *found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-14 * max(1, want.abs().max()), msg=name)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 4), (4, 4)])
def test_gradients_of_the_ring_by_differences(size):
    x = torch.rand(1, 2, *size, dtype=torch.float64, requires_grad=True)
    taps = [length for length, _, _ in BORDER_CLASSES.values()]
    weights = [torch.rand(2, 2, h, w, dtype=torch.float64, requires_grad=True) for h in taps for w in taps]
    biases = [torch.rand(2, dtype=torch.float64, requires_grad=True) for _ in weights]

    def ringed(x, *rest):
        grid = [rest[i : i + 4] for i in range(0, len(rest), 4)]
        return reference.ringed_conv5x5(x, grid[:4], grid[4:])

    assert torch.autograd.gradcheck(ringed, (x, *weights, *biases))


def test_the_convolution_inside_is_the_ops_own_and_the_ring_is_none_of_its_business():
    m = network(3, 1, 8)
    asked = []

    def conv5x5(x, weight, bias):
        y = conv2d(x, weight, bias, padding=2)
        ring = torch.full_like(y, torch.nan)
        ring[:, :, 1:-1, 1:-1] = 0
        y = y + ring
        y.register_hook(asked.append)
        return y

    ops = SimpleNamespace(head=reference.head, resblock=reference.resblock, conv3x3=reference.conv3x3, conv5x5=conv5x5)
    x = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    y = CollapsedEDSR(m)(x, ops)
    torch.testing.assert_close(y, m(x), rtol=0, atol=1e-14)
    y.sum().backward()
    (grad,) = asked
    assert (grad[:, :, 1:-1, 1:-1] == 1).all() and grad.sum() == 2 * 27 * 3 * 4
    assert all(p.grad.isfinite().all() for p in m.parameters())


def test_it_trains_the_very_parameters_it_is_made_from():
    m = network(4).train()
    collapsed = CollapsedEDSR(m)
    own, theirs = dict(m.named_parameters()), dict(collapsed.named_parameters())
    assert [*own] == [*theirs] and all(own[name] is theirs[name] for name in own)
    assert m.state_dict().keys() == collapsed.state_dict().keys() and not [*collapsed.buffers()]
    x = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        for p in m.parameters():
            p.mul_(1.5)
    torch.testing.assert_close(collapsed(x), m(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_nothing_waits_for_the_device_nor_comes_from_the_host(scale):
    """A CUDA graph takes neither; the device "meta" has no values to wait for, and meets no tensor of another."""
    net = CollapsedEDSR(network(scale).to("meta"))
    net(torch.empty(2, 3, 5, 5, dtype=torch.float64, device="meta")).sum().backward()
    assert all(p.grad.shape == p.shape for p in net.parameters())


def test_half_precision_is_composed_in_fp32_and_rounded_once():
    m = network(2, 1, 16).bfloat16()
    weights, biases = composed(m)
    exact_weights, exact_biases = composed(m.double())
    for got, want in (weights, exact_weights), (biases, exact_biases):
        for i in range(4):
            for j in range(4):
                torch.testing.assert_close(got[i][j], want[i][j].bfloat16(), rtol=2**-8, atol=1e-9)
                assert (got[i][j] == want[i][j].bfloat16()).float().mean() > 0.99


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float64, 1e-11), (torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
def test_steps_are_those_of_the_plain_tail_to_rounding(folder, dtype, apart, scale):
    """fp64 tells whether they are. Adam's first steps go by the signs of gradients, and of those that are next to
    nothing rounding decides: in fp32 weights were up to 2e-3 of their way apart then, in bf16 0.2."""
    images, _ = dataset.load_dataset([folder], scale, 8)
    first, found = EDSR(EDSRConfig(scale, 1, 8)), []
    if dtype == torch.float64:
        first.double()
    for collapsed in False, True:
        model = copy.deepcopy(first)
        loader = PatchLoader(images, 8, 4, 0, torch.device("cpu"), 6)
        step = TrainStep(model, loader, ProcessGroup("cpu"), "l1", 0.75, dtype, reference, True, collapsed)
        found.append((step.run(0, [1e-3] * 6), model, [*step.tensors()]))
    (want, plain, names), (got, model, same_names) = found
    assert got == pytest.approx(want, rel=max(apart, 1e-6)) and names == same_names  # losses are told in fp32
    for p, q, start_ in zip(model.parameters(), plain.parameters(), first.parameters(), strict=True):
        assert p.dtype == q.dtype == start_.dtype and (p - q).norm() < 100 * apart * (q - start_).norm()


@pytest.mark.parametrize("scale", [2, 4])
def test_a_run_on_the_collapsed_tail_resumes_to_the_bit(folder, tmp_path, tiny, monkeypatch, scale):
    taken, honest = [], CollapsedEDSR.reconstruct
    monkeypatch.setattr(CollapsedEDSR, "reconstruct", lambda *args: (taken.append(1), honest(*args))[1])
    monkeypatch.setattr(tail, "COLLAPSED_FROM", 128)
    list(train(options(folder, tmp_path / "whole", scale=scale, init="none")))
    assert len(taken) == 12
    with contextlib.closing(train(options(folder, tmp_path / "parts", scale=scale, init="none"))) as steps:
        for progress in steps:
            if progress.step == 7:
                break
    list(train(options(folder, tmp_path / "parts", scale=scale, init="none", resume=True)))
    assert len(taken) == 24
    whole, parts = (load_model(tmp_path / run / "last.safetensors").state_dict() for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_it_is_used_where_it_was_measured_to_be_faster():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert tail.worth_collapsing(cpu, 16 * 48**2) and tail.worth_collapsing(cpu, 4 * 16**2)
    assert not tail.worth_collapsing(cpu, 4 * 15**2) and not tail.worth_collapsing(gpu, 16 * 48**2)

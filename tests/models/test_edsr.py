from dataclasses import replace

import pytest
import torch

from edsr.kernels import reference
from edsr.models.edsr import DIV2K_MEAN, EDSR, PRESETS, EDSRConfig
from tests.conftest import network

PUBLISHED = {  # millions of parameters: table 1 of the paper and the authors' repository
    ("edsr-baseline", 2): 1.37,
    ("edsr-baseline", 3): 1.55,
    ("edsr-baseline", 4): 1.52,
    ("edsr", 2): 40.7,
    ("edsr", 3): 43.7,
    ("edsr", 4): 43.1,
}


@pytest.mark.parametrize(("name", "scale"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name, scale):
    with torch.device("meta"):
        model = EDSR(replace(PRESETS[name], scale=scale))
    count = sum(p.numel() for p in model.parameters()) / 1e6
    want = PUBLISHED[name, scale]
    assert round(count, 2 if want < 10 else 1) == want


def test_no_batch_normalisation():
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in network().modules())


def test_forward_is_the_paper_s_figures():
    """The same network written out once more, in nn.functional, from figures 2 and 3."""
    F = torch.nn.functional
    for scale in (2, 3, 4):
        m = network(scale, residual_scale=0.1)
        x = torch.rand(2, 3, 7, 5, dtype=torch.float64)
        mean = torch.tensor(DIV2K_MEAN, dtype=torch.float64).view(1, 3, 1, 1)

        def conv(name, z, m=m):
            layer = m.get_submodule(name)
            return F.conv2d(z, layer.weight, layer.bias, padding=1)

        y = start = conv("head", x - mean)
        for i in range(2):
            y = y + 0.1 * conv(f"body.{i}.conv2", F.relu(conv(f"body.{i}.conv1", y)))
        y = conv("body_end", y) + start
        for i, r in enumerate({2: (2,), 3: (3,), 4: (2, 2)}[scale]):
            y = F.pixel_shuffle(conv(f"upsampler.{i}", y), r)
        torch.testing.assert_close(m(x), conv("tail", y) + mean, rtol=0, atol=1e-12)


def identity(scale: int, **options) -> EDSR:
    """A network that repeats each pixel: head and tail pass three channels on, all else adds nothing."""
    m = network(scale, **options)
    with torch.no_grad():
        for p in m.parameters():
            p.zero_()
        for c in range(3):
            m.head.weight[c, c, 1, 1] = 1
            m.tail.weight[c, c, 1, 1] = 1
            for layer, r in zip(m.upsampler, m.config.shuffle_factors, strict=True):
                layer.weight[c * r * r : (c + 1) * r * r, c, 1, 1] = 1
    return m


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("color", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.2, 0.9, 0.5), DIV2K_MEAN])
def test_a_constant_color_stays_what_it_is(scale, color):
    x = torch.tensor(color, dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 6, 5)
    y = identity(scale)(x)
    assert y.shape == (1, 3, 6 * scale, 5 * scale)
    torch.testing.assert_close(y, x.new_tensor(color).view(1, 3, 1, 1).expand_as(y), rtol=0, atol=1e-12)


def test_the_padding_is_zero_after_the_mean_shift():
    """An image of the mean color is all zeros inside, to its very corner, whatever the head's weights."""
    m = network()
    x = torch.tensor(DIV2K_MEAN, dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    with torch.no_grad():
        for p in m.parameters():
            if p.ndim == 1:
                p.zero_()
        y = m(x)
    torch.testing.assert_close(y, x.repeat_interleave(2, 2).repeat_interleave(2, 3), rtol=0, atol=1e-12)


def test_gradients_reach_every_parameter():
    m = network(residual_scale=0.5).train()
    m(torch.rand(1, 3, 5, 5, dtype=torch.float64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())


@pytest.mark.parametrize("wrong", [{"scale": 1}, {"scale": 5}, {"blocks": -1}, {"features": 0}])
def test_impossible_configs_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        EDSRConfig(**wrong)


def test_the_body_needs_three_maps():
    """Every block may write over its input but the first, whose input the long skip adds in the end."""
    model = network(2, blocks=3).requires_grad_(False)
    given = []

    class Ops:
        def __getattr__(self, name):
            return getattr(reference, name)

        def resblock(self, x, *operands, reuse):
            y = reference.resblock(x, *operands)
            given.append((x, y, reuse))
            return x.copy_(y) if reuse else y

    x = torch.rand(1, 3, 9, 7)
    assert torch.equal(model(x, Ops()), model(x))
    assert [reuse for *_, reuse in given] == [False, True, True]

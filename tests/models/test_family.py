"""SRCNN, VDSR, SRResNet and MDSR: parameters as published, folding, bands, flips."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr.images import matlab_bicubic
from edsr.inference.streaming import Stream
from edsr.kernels import TensorLayers, load_ops, reference
from edsr.models import (
    NETWORKS,
    MDSRConfig,
    SRCNNConfig,
    SRResNetConfig,
    VDSRConfig,
    build_network,
    dihedral,
    fold,
)

SMALL = [
    MDSRConfig(blocks=1, features=16, residual_scale=0.1),
    SRCNNConfig(),
    SRCNNConfig(kernels=(9, 5, 5)),
    VDSRConfig(depth=4, features=16),
    SRResNetConfig(scale=2, blocks=1, features=16, mean=(0.4, 0.5, 0.3)),
    SRResNetConfig(scale=2, blocks=2, features=5, tanh=True),
]
NAMES = ["mdsr", "srcnn", "srcnn-955", "vdsr", "srresnet", "srresnet-tanh"]
configs = pytest.mark.parametrize("config", SMALL, ids=NAMES)
scales = pytest.mark.parametrize("scale", [2, 3, 4])


def small(config, scale):
    """A network with random weights, statistics of batches included, in fp64."""
    torch.manual_seed(0)
    m = build_network(replace(config, scale=scale))
    for module in m.modules():
        if hasattr(module, "running_var"):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    return m.double().eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("srcnn", 64 * 81 + 32 * 64 + 32 * 25 + 97),  # 8,032 weights in the paper
        ("srcnn-955", 64 * 81 + 32 * 64 * 25 + 32 * 25 + 97),  # 57,184
        ("vdsr", 664_704 + 64 * 19 + 1),  # 665 k
        ("srresnet", 1_549_462),  # 1.5 M
        ("mdsr-baseline", 3_227_203),  # 3.23 M
        ("mdsr", 7_953_987),  # 7.95 M
    ],
)
def test_parameters_are_those_of_the_papers(name, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in build_network(NETWORKS[name]).parameters()) == parameters


@configs
@scales
def test_bands_give_the_whole_image(config, scale):
    m = small(config, scale)
    folded = fold(m)
    for height, width, band in (1, 1, 1), (2, 5, 1), (13, 9, 4), (13, 9, 1), (30, 7, 7), (9, 4, 50):
        x = torch.rand(2, 3, height, width, dtype=torch.float64)
        stream = Stream(folded, width)
        y = [stream(x[:, :, i : i + band], i + band >= height) for i in range(0, height, band)]
        assert all(part.shape[2] % scale == 0 for part in y)
        torch.testing.assert_close(torch.cat(y, 2), m(x), rtol=0, atol=1e-13)


@configs
@scales
def test_columns_that_are_split_give_the_whole_image(config, scale):
    m = small(config, scale)
    radius = m.config.receptive_radius
    x = torch.rand(1, 3, 5, 7 * radius + 3, dtype=torch.float64)
    stream = Stream(fold(m), x.shape[3], columns=4 * radius)
    y = torch.cat([stream(x[:, :, :3]), stream(x[:, :, 3:], last=True)], 2)
    torch.testing.assert_close(y, m(x), rtol=0, atol=1e-13)


@configs
@scales
def test_nothing_beyond_the_receptive_radius_matters(config, scale):
    m = small(config, scale)
    radius = m.config.receptive_radius
    x = torch.rand(1, 3, 3, 3 * radius, dtype=torch.float64)
    other = x.clone()
    other[..., radius + 1 :] = 0
    assert torch.equal(m(x)[..., :scale], m(other)[..., :scale])


@configs
@pytest.mark.parametrize("flips", [(True, False, False), (False, True, True), (True, True, True)])
def test_dihedral_transforms_weights_in_place_of_images(config, flips):
    folded = fold(small(config, 3))
    rows, columns, swap = flips
    axes = [axis for axis, flip in ((2, rows), (3, columns)) if flip]
    x = torch.rand(1, 3, 6, 9, dtype=torch.float64)
    turned = x.flip(axes).transpose(2, 3) if swap else x.flip(axes)
    y = folded(turned)
    want = (y.transpose(2, 3) if swap else y).flip(axes)
    torch.testing.assert_close(dihedral(folded, *flips)(x), want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("config", SMALL[:1] + SMALL[3:4], ids=["mdsr", "vdsr"])
def test_networks_of_several_scales_share_their_parameters(config):
    m = build_network(config)
    other = m.at(4)
    assert (m.config.scale, other.config.scale) == (2, 4)
    assert [p.data_ptr() for p in m.parameters()] == [p.data_ptr() for p in other.parameters()]
    assert other(torch.rand(1, 3, 5, 6)).shape == (1, 3, 20, 24)
    assert m(torch.rand(1, 3, 5, 6)).shape == (1, 3, 10, 12)
    with pytest.raises(ValueError, match="for x2, x3, x4, not x8"):
        m.at(8)


@pytest.mark.parametrize("config", SMALL[1:4], ids=NAMES[1:4])
def test_networks_of_luma_leave_chroma_to_bicubic(config):
    m = small(config, 2)
    x = torch.rand(1, 3, 7, 6, dtype=torch.float64)
    bicubic = matlab_bicubic(x[0].permute(1, 2, 0).numpy(), 14, 12)
    difference = m(x)[0].permute(1, 2, 0).numpy() - bicubic
    assert abs(difference - difference[..., :1]).max() < 1e-12 < abs(difference).max()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([2, 3, 4]))
def test_bicubic_is_matlabs(height, width, scale):
    x = torch.rand(2, 3, height, width, dtype=torch.float64)
    y = TensorLayers(load_ops("torch")).bicubic(x, scale)
    for image, result in zip(x, y, strict=True):
        want = matlab_bicubic(image.permute(1, 2, 0).numpy(), scale * height, scale * width)
        assert abs(result.permute(1, 2, 0).numpy() - want).max() < 1e-13


@pytest.mark.parametrize("config", SMALL, ids=NAMES)
def test_uint8_is_a_whole_range(config):
    m = small(config, 2).float()
    x = torch.randint(0, 256, (1, 3, 6, 5), dtype=torch.uint8)
    torch.testing.assert_close(m(x), m(x.float() / 255))


def test_kernels_get_maps_with_channels_innermost():
    """What a convolution of one channel gives may be laid out otherwise, and a skip, too."""

    class Strict:
        @staticmethod
        def conv3x3(x, weight, bias, relu=False, scale=1.0, skip=None, shuffle=1, padding=1, out=None):
            assert x.stride(1) == 1 and (skip is None or skip.stride(1) == 1)
            return reference.conv3x3(x, weight, bias, relu, scale, skip, shuffle, padding, out)

    x, skip = torch.rand(1, 16, 5, 6), torch.rand(1, 16, 5, 6)
    weight, bias = torch.rand(16, 16, 3, 3), torch.rand(16)
    assert x.stride(1) != 1
    for slope in None, torch.rand(1):
        y, want = (TensorLayers(ops).conv(x, weight, bias, slope=slope, skip=skip) for ops in (Strict, reference))
        torch.testing.assert_close(y, want)

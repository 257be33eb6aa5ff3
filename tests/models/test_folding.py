import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr.models.folding import FoldedEDSR, collapse, dihedral
from tests.conftest import network


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("residual_scale", [1.0, 0.1])
def test_folded_equals_plain_at_every_small_size(scale, residual_scale):
    m = network(scale, residual_scale=residual_scale)
    folded = FoldedEDSR(m)
    for height in range(1, 8):
        for width in range(1, 8):
            x = torch.rand(2, 3, height, width, dtype=torch.float64)
            torch.testing.assert_close(folded(x), m(x), rtol=0, atol=1e-14)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([2, 3, 4]),
    st.integers(0, 3),
    st.sampled_from([1, 3, 16]),
)
def test_folded_equals_plain(height, width, scale, blocks, features):
    m = network(scale, blocks, features)
    x = torch.rand(1, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(FoldedEDSR(m)(x), m(x), rtol=0, atol=1e-14)


def test_the_original_is_left_alone():
    m = network(residual_scale=0.1)
    before = {name: tensor.clone() for name, tensor in m.state_dict().items()}
    FoldedEDSR(m)
    assert m.body[0].residual_scale == 0.1
    assert all(torch.equal(before[name], tensor) for name, tensor in m.state_dict().items())
    assert all(p.requires_grad for p in m.parameters())


def test_folding_works_where_gradients_are_off():
    m = network(2)
    x = torch.rand(1, 3, 5, 5, dtype=torch.float64)
    want = m(x).detach()
    for off in torch.no_grad, torch.inference_mode:
        with off():
            torch.testing.assert_close(FoldedEDSR(m)(x), want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_ring_really_needs_its_own_weights(scale):
    """Guards the tests above: with inner weights everywhere they would have to fail, in the ring alone."""
    m = network(scale)
    folded = FoldedEDSR(m)
    folded.tail_weight[:] = folded.tail_weight[0, 0].clone()
    folded.tail_bias[:] = folded.tail_bias[0, 0].clone()
    x = torch.rand(1, 3, 6, 6, dtype=torch.float64)
    error = (folded(x) - m(x)).abs()
    assert error.max() > 1e-4
    assert error[:, :, scale:-scale, scale:-scale].max() < 1e-14


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_half_precision_is_no_worse_than_the_plain_chain(scale):
    m = network(scale, blocks=0, features=64)
    x = torch.rand(1, 3, 24, 24, dtype=torch.float64)
    exact = m(x)
    plain = (m.bfloat16()(x) - exact).abs().mean()  # bf16: the half precision every CPU computes in
    folded = (FoldedEDSR(m.double()).bfloat16()(x) - exact).abs().mean()
    assert folded <= 1.5 * plain


@pytest.mark.parametrize(("scale", "plain"), [(2, 154_368), (3, 347_328), (4, 764_928)])
def test_work_per_pixel(scale, plain):
    """Multiply-adds per LR pixel at C = 64, from the shapes: what the README says of the collapsed tail."""
    m = network(scale, blocks=0, features=64)
    size = 1
    chain = 0
    for layer, r in zip(m.upsampler, m.config.shuffle_factors, strict=True):
        chain += size * layer.weight.numel()
        size *= r * r
    chain += size * m.tail.weight.numel()
    assert chain == plain
    assert collapse(m)[0][0, 0].numel() == 25 * 64 * 3 * scale * scale


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("flip_columns", [False, True])
@pytest.mark.parametrize("flip_rows", [False, True])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_turned_weights_do_what_turning_the_image_does(scale, flip_rows, flip_columns, swap):
    model = FoldedEDSR(network(scale, blocks=1))

    def turn(x):
        x = x.flip([axis for axis, flip in ((2, flip_rows), (3, flip_columns)) if flip])
        return x.transpose(2, 3) if swap else x

    def turn_back(x):
        x = x.transpose(2, 3) if swap else x
        return x.flip([axis for axis, flip in ((2, flip_rows), (3, flip_columns)) if flip])

    back = dihedral(model, flip_rows, flip_columns, swap)
    assert back.tail_weight.stride() == model.tail_weight.stride()
    for size in ((5, 7), (1, 4), (3, 1), (1, 1)):
        x = torch.rand(1, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(back(x), turn_back(model(turn(x))), rtol=0, atol=1e-12)

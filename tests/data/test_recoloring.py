"""Patches in other colors: what is drawn, that it is exact, and that LR and HR patches stay a pair."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr.data import PairedImages, parse_degradation
from edsr.data.patches import PatchLoader
from edsr.data.recoloring import ORDERS, draw_recolorings, orders_on, recolor
from edsr.images.resize import matlab_downscale
from tests.conftest import make_image

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(1, 5), st.integers(1, 9))
def test_draws_depend_on_seed_and_step_alone(seed, first, count, batch):
    drawn = draw_recolorings(seed, first, count, batch)
    assert drawn.shape == (count, batch) and drawn.dtype == np.int64 and (drawn >= 0).all() and (drawn < 12).all()
    for i in range(count):
        np.testing.assert_array_equal(drawn[i : i + 1], draw_recolorings(seed, first + i, 1, batch))


def test_half_have_any_order_and_a_quarter_are_negatives():
    """Chi-squared over the 12 cells."""
    drawn = draw_recolorings(1, 0, 1200, 40).ravel()
    order = np.array([7, 1, 1, 1, 1, 1]) / 12
    expected = np.concatenate([order * 3 / 4, order / 4]) * drawn.size
    assert ((np.bincount(drawn, minlength=12) - expected) ** 2 / expected).sum() < 11 + 4 * np.sqrt(2 * 11)
    assert (draw_recolorings(2, 0, 1200, 40).ravel() != drawn).mean() > 0.3


@pytest.mark.parametrize("white", [255, 65535])
def test_recoloring_is_exact(white):
    levels = np.random.default_rng(0).integers(0, white + 1, (12, 5, 4, 3))
    patches = torch.from_numpy(levels).float().div_(white).permute(0, 3, 1, 2)
    before = patches.clone()
    got = recolor(patches, torch.arange(12), orders_on(CPU))
    assert got.is_contiguous(memory_format=torch.channels_last) and torch.equal(patches, before)
    for k in range(12):
        want = before[k][list(ORDERS[k % 6])]
        assert torch.equal(got[k], 1 - want if k >= 6 else want)
    assert torch.equal(got[0], before[0])


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_what_is_recolored_and_reduced_is_reduced_and_recolored(scale):
    """But for the rounding to 8 bits, where halves are rounded up in either."""
    high = make_image(12 * scale, 10 * scale)
    low = matlab_downscale(high, scale).astype(int)
    for order in ORDERS:
        swapped = matlab_downscale(np.ascontiguousarray(high[..., list(order)]), scale)
        np.testing.assert_array_equal(swapped, low[..., list(order)])
    assert abs(255 - matlab_downscale(255 - high, scale).astype(int) - low).max() <= 1


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("share", [(0, 1), (1, 3)])
def test_a_batch_has_its_recolorings(resident, share):
    images = PairedImages.from_pairs([(matlab_downscale(p, 2), p) for p in (make_image(40, 60), make_image(80, 30))], 2)
    plain, colored = (
        PatchLoader(images, 8, 6, 7, "cpu", 4, share, resident=resident, recolored=which) for which in (False, True)
    )
    rank, world = share
    part = slice(rank * 6 // world, (rank + 1) * 6 // world)
    drawn = draw_recolorings(7, 5, 4, 6)[:, part]
    assert drawn.any()
    for loader in plain, colored:
        loader.load(5, 4)
    for i in range(4):
        codes = torch.from_numpy(drawn[i].copy())
        for want, got in zip(plain.batch(torch.tensor(i)), colored.batch(torch.tensor(i)), strict=True):
            assert torch.equal(got, recolor(want, codes, orders_on(CPU)))


def test_degraded_patches_are_not_recolored():
    images = PairedImages.from_pairs([(make_image(20, 20), make_image(40, 40))], 2)
    with pytest.raises(ValueError, match="not both"):
        PatchLoader(images, 8, 2, 0, "cpu", 1, degradation=parse_degradation("jpeg:40-90"), recolored=True)

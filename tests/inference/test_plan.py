"""What an Upscaler settles before it computes: backend, precision, memory budget, shapes of bands."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edsr.inference.plan import (
    ExecutionPlan,
    choose_tile,
    split_columns,
)
from edsr.inference.upscaler import Upscaler
from edsr.models.edsr import EDSRConfig
from tests.conftest import network


def test_the_budget_fits_a_small_gpu(monkeypatch):
    cuda, config = torch.device("cuda"), EDSRConfig(blocks=32, features=256)
    sizes = []
    for free in (140 << 30, 10 << 30, 1 << 20):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 0))
        sizes.append(choose_tile("auto", config, cuda, "fp16", "triton"))
        assert choose_tile(640, config, cuda, "fp16", "triton") == 640
    assert sizes[0] == 2048 and sizes[2] == 32
    assert sizes[1] ** 2 * 256 * 2 * 5 < 5 << 30 < (sizes[1] + 2) ** 2 * 256 * 2 * 5


@pytest.mark.parametrize(
    ("backend", "features", "tile", "side"),
    [
        ("winograd", 64, "auto", 512),
        ("winograd", 64, 300, 300),
        ("winograd", 128, "auto", 362),
        ("winograd", 256, 512, 256),
        ("winograd", 16, 4096, 512),
        ("torch", 64, "auto", 256),
        ("torch", 64, 512, 256),
        ("torch", 64, 40, 40),
    ],
)
def test_small_images_are_computed_whole(backend, features, tile, side):
    """On a CPU up to `side` pixels squared, larger ones in bands within 256 x 256."""
    config, cpu = EDSRConfig(blocks=1, features=features), torch.device("cpu")
    budget = choose_tile(tile, config, cpu, "fp32", backend)
    plan = ExecutionPlan(cpu, "fp32", backend, budget, config.receptive_radius)
    assert plan.band_shape(2 * side, side // 2) == (side // 2, 2 * side)
    rows, columns = plan.band_shape(2 * side, side // 2 + 1)
    assert rows < side // 2 and rows * columns <= min(side, 256) ** 2


def test_a_plan_does_not_change():
    up = Upscaler(network(), "cpu", tile=40)
    assert (up.device.type, up.precision, up.backend, up.tile) == ("cpu", "fp32", "torch", 40)
    with pytest.raises(dataclasses.FrozenInstanceError):
        up.plan.tile = 50
    with pytest.raises(AttributeError):
        up.tile = 50


@given(st.integers(1, 500), st.integers(1, 9), st.integers(1, 40))
def test_columns_are_kept_once_with_all_that_they_see(width, count, radius):
    count = min(count, width)
    slices, image = split_columns(width, count, radius), list(range(width))
    assert len(slices) == count
    assert [x for part in slices for x in image[part.start : part.stop][part.kept(1)]] == image
    for part in slices:
        assert part.start == max(0, part.keep_start - radius) and part.stop == min(width, part.keep_stop + radius)
        assert part.width == part.stop - part.start and part.kept(3).stop - part.kept(3).start == 3 * (
            part.keep_stop - part.keep_start
        )

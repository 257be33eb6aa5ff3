"""What an Upscaler settles before it computes: backend, precision, memory budget, shapes of bands."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr.errors import BackendError
from edsr.inference.plan import (
    FOOTROOM,
    HEADROOM,
    MIN_TILE,
    ExecutionPlan,
    band_shape,
    choose_tile,
    smallest_tile,
    split_columns,
)
from edsr.inference.upscaler import Upscaler
from edsr.models.edsr import EDSRConfig
from tests.conftest import network


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2_000_000), st.integers(0, 4096), st.sampled_from([4, 36, 68]) | st.integers(4, 500))
def test_no_planned_map_is_larger_than_the_budget(width, more, radius):
    tile = smallest_tile(radius) + more
    rows, columns = band_shape(width, tile, radius)
    assert rows >= 1 and 1 <= columns <= width
    assert (rows + HEADROOM + FOOTROOM) * columns <= tile * tile
    assert columns == width or columns >= 4 * radius


@pytest.mark.parametrize(("radius", "smallest"), [(4, 32), (36, 32), (37, 33), (68, 44), (500, 119)])
def test_the_smallest_budget_is_seven_rows_of_four_radii(radius, smallest):
    assert smallest_tile(radius) == smallest
    assert smallest == MIN_TILE or (smallest - 1) ** 2 < 7 * 4 * radius <= smallest**2
    band_shape(1000, smallest, radius)
    with pytest.raises(ValueError, match=f"give {smallest} or more"):
        band_shape(1000, smallest - 1, radius)


@pytest.mark.parametrize(
    ("blocks", "tile", "message"),
    [
        (2, 31, "tile=31: this network needs 32 or more"),
        (32, 43, "tile=43: this network needs 44 or more"),
        (32, "large", "tile='large': give auto or a whole number of 44 or more"),
    ],
)
def test_smaller_budgets_are_refused(blocks, tile, message):
    with pytest.raises(BackendError, match=message):
        Upscaler(network(blocks=blocks, features=1), "cpu", tile=tile)


def test_budgets_that_the_network_needs_are_granted_on_a_cpu():
    """Where more than the 256 that are best is needed."""
    config, cpu = EDSRConfig(blocks=1500, features=64), torch.device("cpu")
    smallest = smallest_tile(config.receptive_radius)
    assert smallest > 256 and choose_tile("auto", config, cpu, "fp32", "torch") == smallest
    plan = ExecutionPlan(cpu, "fp32", "torch", smallest, config.receptive_radius)
    assert plan.band_shape(100_000) == (1, 4 * config.receptive_radius)


def test_the_budget_fits_a_small_gpu(monkeypatch):
    cuda, config = torch.device("cuda"), EDSRConfig(blocks=32, features=256)
    sizes = []
    for free in (140 << 30, 10 << 30, 1 << 20):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 0))
        sizes.append(choose_tile("auto", config, cuda, "fp16", "triton"))
        assert choose_tile(640, config, cuda, "fp16", "triton") == 640
    assert sizes[0] == 2048 and sizes[2] == 44
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

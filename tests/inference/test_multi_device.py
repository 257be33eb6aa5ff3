"""One image on several devices."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr.inference.multi_device import MultiDeviceUpscaler
from edsr.inference.streaming import Stream
from edsr.inference.upscaler import Upscaler
from tests.conftest import make_image, network


def devices_together(size: int, model, **options) -> MultiDeviceUpscaler:
    return MultiDeviceUpscaler([Upscaler(model, device="cpu", **options) for _ in range(size)])


def by_bands(up, image: np.ndarray, step: int, **options) -> np.ndarray:
    rows = (image[i : i + step] for i in range(0, len(image), step))
    return np.concatenate(list(up.bands(rows, image.shape[1], **options)))


@pytest.mark.slow
@given(st.integers(1, 4), st.integers(1, 150), st.integers(1, 40), st.integers(1, 41), st.data())
@settings(deadline=None, max_examples=30)
def test_columns_shared_are_the_whole_image(size, width, height, step, data):
    """To rounding, for any number of devices, whatever each one's pace."""
    model, channels, ensemble = network(blocks=1), data.draw(st.integers(1, 4)), data.draw(st.booleans())
    image = make_image(height, width, channels, seed=width)
    tiles = data.draw(st.lists(st.sampled_from([32, 64, 256]), min_size=size, max_size=size))
    shared = MultiDeviceUpscaler([Upscaler(model, device="cpu", tile=tile) for tile in tiles])
    got = by_bands(shared, image, step, self_ensemble=ensemble).astype(int)
    want = Upscaler(model, device="cpu")(image, ensemble).astype(int)
    assert got.shape == (2 * height, 2 * width, channels)
    assert np.abs(got - want).max() <= 1


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [2, 3])
def test_same_as_one_device(size, channels):
    model = network()
    image = make_image(50, 140, channels)
    want = Upscaler(model, device="cpu")(image).astype(int)
    got = by_bands(devices_together(size, model), image, 11).astype(int)
    assert np.abs(got - want).max() <= 1 and (got != want).mean() < 1e-3


def test_float_results_are_the_same_to_rounding():
    model = network()
    image = make_image(40, 120).astype(np.float32) / 255
    np.testing.assert_allclose(
        by_bands(devices_together(3, model), image, 7), Upscaler(model, "cpu")(image), rtol=0, atol=2e-6
    )


def test_all_take_part_and_only_where_the_image_is_wide_enough():
    shared = devices_together(3, network())  # radius 8
    assert len(shared.column_slices(3 * 4 * 8)) == 3 and len(shared.column_slices(3 * 4 * 8 - 1)) == 2
    assert len(shared.column_slices(20)) == 1
    assert shared.device == "cpu,cpu,cpu"


def test_one_that_fails_ends_all(monkeypatch):
    """Its error arrives, and no thread is left."""
    honest, shared = Stream.__call__, devices_together(2, network())
    before = set(threading.enumerate())

    def call(self, x, last=False):
        if self.model is shared.members[1].model:
            raise ZeroDivisionError("the second")
        return honest(self, x, last)

    monkeypatch.setattr(Stream, "__call__", call)
    with pytest.raises(ZeroDivisionError, match="the second"):
        by_bands(shared, make_image(90, 120), 10)
    assert set(threading.enumerate()) <= before


def test_closing_early_leaves_no_thread():
    shared, image = devices_together(2, network()), make_image(300, 120)
    before = set(threading.enumerate())
    bands = shared.bands((image[i : i + 10] for i in range(0, 300, 10)), 120)
    next(bands)
    bands.close()
    assert set(threading.enumerate()) <= before


def test_memory_that_runs_out_on_one_device(monkeypatch, caplog):
    model, image = network(), make_image(90, 140)
    want = Upscaler(model, device="cpu")(image).astype(int)
    honest, shared, calls = Stream.__call__, devices_together(2, model), []

    def call(self, x, last=False):
        calls.append(self)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no memory")
        return honest(self, x, last)

    monkeypatch.setattr(Stream, "__call__", call)
    got = by_bands(shared, image, 60).astype(int)
    assert len(caplog.messages) == 1 and "ran out of memory" in caplog.messages[0]
    assert np.abs(got - want).max() <= 1 and (got != want).mean() < 1e-2

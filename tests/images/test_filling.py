"""Unknown samples filled from known ones nearby."""

import numpy as np
import pytest

from edsr.images.filling import REACH, fill, fill_rows


def make(dtype, channels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image with holes, [70, 50, channels], and its weights."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:70, :50]
    values = 0.5 + 0.3 * np.stack([np.sin(x / 9 + y / 11 + i) for i in range(channels)], -1)
    weights = np.ones(values.shape, np.float32)
    weights[10:30, 5:25] = 0
    weights[40:, 30:] = 0
    weights[generator.random(values.shape) < 0.1] = 0
    white = 1 if dtype == np.float32 else np.iinfo(dtype).max
    return (values * white).astype(dtype), weights


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("step", [1, 4, 14, 15, 33, 70])
def test_rows_in_any_parts(dtype, step):
    samples, weights = make(dtype, 3)
    parts = [(samples[y : y + step], weights[y : y + step]) for y in range(0, 70, step)]
    parts = [(rows, None if known.min() == 1 else known) for rows, known in parts]
    filled = list(fill_rows(parts))
    assert [len(part) for part in filled] == [len(part) for part, _ in parts]
    np.testing.assert_array_equal(np.concatenate(filled), fill(samples, weights))


def test_late_by_no_more_than_its_reach():
    samples, weights = make(np.uint8, 1)
    taken = 0

    def parts():
        nonlocal taken
        for y in range(70):
            taken += 1
            yield samples[y : y + 1], weights[y : y + 1]

    for y, _ in enumerate(fill_rows(parts())):
        assert taken <= y + 1 + REACH


def test_what_is_hidden_does_not_matter():
    samples, weights = make(np.float32, 3)
    filled = fill(samples, weights)
    np.testing.assert_array_equal(filled[weights == 1], samples[weights == 1])
    for hidden in (np.nan, -np.inf, 3e38):
        np.testing.assert_array_equal(fill(np.where(weights == 0, np.float32(hidden), samples), weights), filled)
    assert np.isfinite(filled).all()


def test_near_what_is_known_it_goes_on_like_that():
    samples, weights = make(np.float32, 1)
    holes = np.random.default_rng(1).random(samples.shape) < 0.3
    weights = (1 - holes).astype(np.float32)
    assert np.abs(fill(samples, weights) - samples).max() < 0.3 * (1 / 9 + 1 / 11)  # one pixel's slope


def test_reach():
    samples, weights = np.full((1, 60, 1), 200, np.uint8), np.zeros((1, 60, 1), np.float32)
    weights[0, :10] = 1
    row = fill(samples, weights)[0, :, 0]
    assert (row[: 10 + REACH] == 200).all() and (row[10 + REACH :] == 128).all()


def test_what_is_known_in_part_moves_toward_what_is_better():
    samples = np.array([[[100], [200], [100], [100], [100]]], np.float32)
    weights = np.array([[[1], [0.25], [1], [1], [1]]], np.float32)
    got = fill(samples, weights)[0, :, 0]
    mean = (100 + 200 * 0.25 + 100) / 2.25
    assert got.tolist() == [100, pytest.approx(mean + 0.25 * (200 - mean)), 100, 100, 100]
    assert fill(samples, weights * 0.25)[0, 3, 0] == 100

"""Where images have detail, and that patches are chosen by it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr.data.detail import CELL, DetailMap
from edsr.data.patches import PatchSampler
from edsr.data.store import PairedImages


def images_of(*lows: np.ndarray) -> PairedImages:
    return PairedImages.from_pairs([(low, low.repeat(2, 0).repeat(2, 1)) for low in lows], 2)


def mean_detail(low: np.ndarray, y: int, x: int, patch: int) -> float:
    """By the definition, pixel by pixel."""
    green = low[..., 1].astype(int)
    height, width = green.shape
    total = pixels = 0
    for i in range(y // CELL * CELL, min(height, -(-(y + patch) // CELL) * CELL)):
        for j in range(x // CELL * CELL, min(width, -(-(x + patch) // CELL) * CELL)):
            pixels += 1
            if 0 < i < height - 1 and 0 < j < width - 1:
                around = green[i - 1, j] + green[i + 1, j] + green[i, j - 1] + green[i, j + 1]
                total += abs(4 * green[i, j] - around)
    return total / pixels


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 99),
    st.data(),
)
def test_the_mean_detail_of_any_patch(sizes, wide, seed, data):
    random = np.random.default_rng(seed)
    dtype, white = (np.uint16, 65535) if wide else (np.uint8, 255)
    lows = [random.choice(np.array([0, 3, white], dtype), (*size, 3)) for size in sizes]
    detail = DetailMap(images_of(*lows))
    row = data.draw(st.integers(0, len(lows) - 1))
    height, width = sizes[row]
    patch = data.draw(st.integers(1, min(height, width)))
    y, x = data.draw(st.integers(0, height - patch)), data.draw(st.integers(0, width - patch))
    found = detail.mean_over(*(np.array([[value]]) for value in (row, y, x)), patch)
    assert found.shape == (1, 1) and found[0, 0] == pytest.approx(mean_detail(lows[row], y, x, patch), rel=1e-12)


def test_the_most_detailed_of_the_places_is_taken():
    """They are the places that a sampler without a choice draws, so every image and place still comes up."""
    random = np.random.default_rng(0)
    smooth = np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None, None], (50, 60, 3))
    images = images_of(smooth, random.integers(0, 256, (40, 30, 3), dtype=np.uint8), smooth[:20, :20])
    detail = DetailMap(images)
    chosen = PatchSampler(images.index, 9, 5, 7, 3, detail).draw(11, 400)
    places = PatchSampler(images.index, 9, 15, 7).draw(11, 400).reshape(400, 5, 3, 4)
    for step in range(400):
        for k in range(5):
            amounts = [mean_detail(images.pair(row)[0], y, x, 9) for row, y, x, _ in places[step, k]]
            np.testing.assert_array_equal(chosen[step, k], places[step, k, int(np.argmax(amounts))])
    share = (chosen[..., 0] == 1).mean()
    any_place = (places[..., 0] == 1).mean()
    assert share == pytest.approx(1 - (1 - any_place) ** 3, abs=0.03)  # where one of three is in the noise, it is taken
    assert set(np.unique(chosen[..., 0])) == {0, 1, 2}


def test_a_draw_depends_on_seed_and_step_alone():
    images = images_of(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    detail = DetailMap(images)
    for batch in (1, 3, 8):
        several = PatchSampler(images.index, 8, batch, 1, 4, detail).draw(5, 6)
        for i in range(6):
            one = PatchSampler(images.index, 8, batch, 1, 4, detail).draw(5 + i, 1)
            np.testing.assert_array_equal(several[i], one[0])

"""Samples without data: found, kept out, put back."""

import numpy as np
import pytest

from edsr.images.filling import REACH
from edsr.images.nodata import Holes, NoData
from edsr.images.reader import ImageReader, read_image
from tests.support.image_files import refused
from tests.support.tiff import tiff

LOWEST = float(np.finfo(np.float32).min)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, LOWEST, 1e30, -1e19, 1e20])
def test_found_in_floats_whatever_the_file_says(value):
    rows = np.full((3, 4, 3), 0.5, np.float32)
    assert NoData().find(rows) is None
    rows[1, 2, 0] = value
    found = NoData().find(rows)
    assert found is not None and np.argwhere(found).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize(
    ("text", "dtype", "value", "samples"),
    [
        ("-9999", np.float32, -9999, 1),
        ("-9999.9", np.float32, np.float32(-9999.9), 1),
        ("0", np.float32, 0, 3),  # a color may be 0 in one channel
        ("0", np.uint8, 0, 3),
        ("65535", np.uint16, 65535, 3),
        ("-9999", np.uint16, 0, 0),
        ("65535", np.uint8, 255, 0),
        ("0.5", np.uint8, 0, 0),
        ("nan", np.uint8, 0, 0),
        ("much", np.float32, 0, 0),
    ],
)
def test_found_by_the_value_of_the_file(text, dtype, value, samples):
    rows = np.full((3, 4, 4), 100 if dtype != np.float32 else 0.5, dtype)
    rows[..., 3] = value  # alpha is none of it
    rows[1, 1, 0] = value
    rows[2, 2, :3] = value
    found = NoData(text, dtype).find(rows)
    want = np.zeros(rows.shape, bool)
    want[2, 2, :3] = samples > 0
    want[1, 1, 0] = samples == 1
    np.testing.assert_array_equal(np.zeros(rows.shape, bool) if found is None else found, want)


def test_read_from_the_file(tmp_path):
    path, gray = tmp_path / "a.tif", np.arange(12, dtype=np.uint8).reshape(3, 4)
    for more, value in [({42113: (2, b"7 \0")}, 7), ({}, None), ({42113: (3, (7,))}, None)]:
        path.write_bytes(tiff(gray, more))
        assert ImageReader(path).nodata.value == value
    path.write_bytes(tiff(gray, {42113: (2, b"7\0"), 262: (3, (0,))}))  # stored inverted, read upright
    assert read_image(path)[0, 0, 0] == 255 and ImageReader(path).nodata.value == 248
    palette = (3, tuple(range(0, 65536, 256)) * 3)
    path.write_bytes(tiff(gray, {42113: (2, b"7\0"), 262: (3, (3,)), 320: palette}))
    assert ImageReader(path).nodata.value is None


@pytest.mark.parametrize("value", [np.nan, LOWEST, -9999])
def test_whoever_does_not_expect_it_gets_none(tmp_path, value):
    rows = np.full((5, 6), 0.5, np.float32)
    rows[3, 3] = value
    (tmp_path / "a.tif").write_bytes(tiff(rows, {42113: (2, b"-9999\0")}))
    refused("samples without data", read_image, tmp_path / "a.tif", full=True)
    with ImageReader(tmp_path / "a.tif", full=True) as reader:
        (got,) = reader.rows(5, with_holes=True)
    np.testing.assert_array_equal(got[..., 0], rows)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("step", [1, 7, 16, 40])
@pytest.mark.parametrize("late", [1, 3, 50])
def test_put_back_where_it_was(dtype, step, late):
    """Rows in parts of any size, results in others."""
    generator = np.random.default_rng(step)
    image = generator.random((40, 9, 3)) * (1 if dtype == np.float32 else np.iinfo(dtype).max - 1) + (
        dtype != np.float32
    )
    image = image.astype(dtype)
    holes_at = generator.random((40, 9)) < 0.2
    holes_at[25:31] = False
    image[holes_at] = LOWEST if dtype == np.float32 else 0
    holes = Holes(NoData("0" if dtype != np.float32 else "", dtype))
    marked = holes.mark(image[y : y + step] for y in range(0, 40, step))
    filled = np.concatenate(list(holes.fill(marked)))
    assert holes.count == holes_at.sum()
    np.testing.assert_array_equal(filled[~holes_at], image[~holes_at])
    assert np.isfinite(filled).all() and (filled[holes_at] > 0).all()
    large = filled.repeat(2, 0).repeat(2, 1)
    parts = [large[y : y + 2 * late] for y in range(0, 80, 2 * late)]
    result = np.concatenate(list(holes.put_back(parts, 2)))
    np.testing.assert_array_equal(result, image.repeat(2, 0).repeat(2, 1))
    assert (large == filled.repeat(2, 0).repeat(2, 1)).all()  # not changed


def test_memory_is_bounded():
    """As many rows are held as are filled late, and nothing of those that are whole."""
    holes, most = Holes(NoData()), 0
    rows = np.full((1, 5, 1), 0.5, np.float32)
    rows[0, 2] = np.nan
    for part in holes.put_back(holes.fill(holes.mark(rows.copy() for _ in range(200))), 1):
        most = max(most, len(holes._to_put_back))
        assert np.isnan(part[0, 2, 0])
    assert most <= REACH + 1 and not holes._to_put_back and not holes._to_fill

"""Palettes that are too short."""

import numpy as np
import pytest

from edsr.images.reader import ImageReader
from tests.support.image_files import make_image, png

NUMBERS = make_image(20, 24, 1).astype(int)
NUMBERS[3, :2, 0] = 0, 255


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("short", [False, True])
def test_colors_that_a_palette_lacks_are_told(tmp_path, bits, short, interlaced):
    colors = 2**bits // 2 if bits > 1 else 1
    numbers = np.minimum(NUMBERS % 2**bits, 2**bits - 1 if short else colors - 1)
    (tmp_path / "a.png").write_bytes(png(numbers, bits, make_image(16, 16).reshape(-1, 3)[:colors], None, interlaced))
    with ImageReader(tmp_path / "a.png") as reader:
        for _ in range(2):
            list(reader.rows(5))
        assert ["fewer colors than its pixels use" in line for line in reader.warnings] == [True] * short

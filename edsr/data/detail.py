"""Where images have detail, by which the patches to train on are chosen.

Most of a photograph is smooth, and where it is, bicubic interpolation is right already: such a patch teaches nothing,
and costs as much as any other. What choosing is worth is in docs/training.md.
"""

import numpy as np

from .store import HEIGHT, WIDTH, PairedImages

CELL = 8  # LR pixels a side: fine enough to find a patch, and a sum for each is a twentieth of the images' memory


class DetailMap:
    """How much detail there is in patches of images, from sums over cells of CELL x CELL LR pixels.

    A pixel's detail is the magnitude of the Laplacian of its green, which is most of luma. Whole numbers are summed, so
    all machines agree to the bit.

    Args:
        images: Images with LR pixels on the host.
    """

    def __init__(self, images: PairedImages):
        self._heights, self._widths = images.index[:, HEIGHT], images.index[:, WIDTH]
        tables = [_summed(_green(images, row)) for row in range(len(images))]
        self._pitches = np.array([table.shape[1] for table in tables], np.int64)
        self._starts = np.cumsum([0, *(table.size for table in tables)])[:-1]
        self._sums = np.concatenate([table.ravel() for table in tables])

    def mean_over(self, row: np.ndarray, y: np.ndarray, x: np.ndarray, patch: int) -> np.ndarray:
        """The mean detail over all cells that a patch touches.

        Args:
            row: Of `PairedImages.index`, int64, of any shape, as y and x.
            y: LR row of the patch's first pixel.
            x: LR column of it.
            patch: LR pixels a side.

        Returns:
            float64, in levels.
        """
        top, left = y // CELL, x // CELL
        bottom, right = -(-(y + patch) // CELL), -(-(x + patch) // CELL)
        height = np.minimum(bottom * CELL, self._heights[row]) - top * CELL
        width = np.minimum(right * CELL, self._widths[row]) - left * CELL

        def above_left(i: np.ndarray, j: np.ndarray) -> np.ndarray:
            return self._sums[self._starts[row] + i * self._pitches[row] + j]

        within = above_left(bottom, right) - above_left(top, right) - above_left(bottom, left) + above_left(top, left)
        return within / (height * width)


def _green(images: PairedImages, row: int) -> np.ndarray:
    """[h, w] of the LR image, in a type that its Laplacian fits into."""
    _, start, height, width, _ = images.index[row].tolist()
    green = images.lr[start : start + height * width, 1].numpy()
    if green.dtype == np.int16:  # the bits of uint16
        return green.view(np.uint16).reshape(height, width).astype(np.int32)
    return green.reshape(height, width).astype(np.int16)


def _summed(green: np.ndarray) -> np.ndarray:
    """int64 [m + 1, n + 1]: at (i, j) the detail of all cells above i and to the left of j. The outermost pixels, which
    lack neighbors, have none."""
    height, width = green.shape
    down, across = -(-height // CELL), -(-width // CELL)
    detail = np.zeros((down * CELL, across * CELL), green.dtype)
    if height > 2 and width > 2:
        middle = detail[1 : height - 1, 1 : width - 1]
        np.multiply(green[1:-1, 1:-1], 4, out=middle)
        for neighbors in (green[:-2, 1:-1], green[2:, 1:-1], green[1:-1, :-2], green[1:-1, 2:]):
            middle -= neighbors
        np.abs(middle, out=middle)
    cells = detail.reshape(down, CELL, across, CELL).sum((1, 3), dtype=np.int64)
    table = np.zeros((down + 1, across + 1), np.int64)
    table[1:, 1:] = cells.cumsum(0).cumsum(1)
    return table

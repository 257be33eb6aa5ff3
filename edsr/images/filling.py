"""Samples that are not known, filled from known ones nearby, so that a network sees no edge where there is none.

Such are the colors under alpha 0, and values without data. Filling goes out from what is known in four steps, to 1, 3,
7 and 15 pixels: in each, a sample takes the weighted mean of the nine that are 1, 2, 4 or 8 pixels apart. So no sample
depends on others more than REACH away, and rows can be filled as they come.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

REACH = 15
"""How far filling goes, in pixels, and how many rows it looks ahead."""

_STEPS = (1, 2, 4, 8)
_BLEND = 2  # up to which step samples that are known in part move toward better ones


def fill_rows(parts: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> Iterator[np.ndarray]:
    """Fill successive rows of one image.

    Args:
        parts: (samples, weights), see `fill`; weights are None where all samples are known. Weights of one channel are
            those of all colors, and alpha is left as it is.

    Yields:
        The samples in arrays of the same numbers of rows, late by REACH rows where something is filled. An array in
        which nothing is to be filled is the one that came. The result does not depend on how the rows are divided.
    """
    above: deque[tuple[np.ndarray, np.ndarray | None]] = deque()
    waiting: deque[tuple[np.ndarray, np.ndarray | None]] = deque()
    for part in parts:
        waiting.append(part)
        while waiting and (
            waiting[0][1] is None or sum(len(rows) for rows, _ in waiting) - len(waiting[0][0]) >= REACH
        ):
            yield _fill_first(above, waiting)
    while waiting:
        yield _fill_first(above, waiting)


def _fill_first(above: deque, waiting: deque) -> np.ndarray:
    """Fill the first of the parts that wait, which goes over to those above."""
    rows, weights = waiting[0]
    if weights is not None and len(rows):
        parts, top = [*above, *waiting], sum(len(part) for part, _ in above)
        first, last = max(0, top - REACH), top + len(rows) + REACH
        channels = rows.shape[2]
        if weights.shape[2] == 1 and channels in (2, 4):
            channels -= 1
        near = np.concatenate([part for part, _ in parts])[first:last, :, :channels]
        known = [np.ones((*part.shape[:2], weights.shape[2]), np.float32) if w is None else w for part, w in parts]
        rows = rows.copy()
        rows[:, :, :channels] = fill(near, np.concatenate(known)[first:last])[top - first : top - first + len(rows)]
    above.append(waiting.popleft())
    while sum(len(part) for part, _ in above) - len(above[0][0]) >= REACH:
        above.popleft()
    return rows


def fill(samples: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Samples with those that are not known filled in.

    Where a sample is better known than others near it, these move toward it: one of weight w among some of at most m
    keeps w / m of its own value.

    Args:
        samples: [H, W, C], of uint8, uint16 or float32 in 0..1. Those of weight 0 may be anything, NaN too.
        weights: float32 [H, W, C] or [H, W, 1]: how well each is known, 0 to 1; those of weight 1 stay as they are.

    Returns:
        The same shape and dtype. What is further than REACH from all that is known becomes the middle of the range.
    """
    columns = np.flatnonzero((weights < 1).any((0, 2)))
    if not len(columns):
        return samples
    near = slice(max(0, columns[0] - REACH), columns[-1] + 1 + REACH)
    whole = samples.dtype.kind == "u"
    own = samples[:, near]
    weight = np.ascontiguousarray(weights[:, near])
    values = np.where(weight > 0, own, 0).astype(np.float32)
    for step in _STEPS:
        if weight.min() == 1:
            break
        total = _sum(weight, step)
        mean = np.divide(_sum(values * weight, step), total, where=total > 0, out=np.zeros_like(values))
        best = _maximum(weight, step)
        if step > _BLEND:
            best = np.where(weight > 0, weight, best)
        share = np.divide(weight, best, where=best > 0, out=np.ones_like(weight))
        values = np.where(share < 1, mean + share * (values - mean), values)
        weight = best
    middle = np.float32(np.iinfo(samples.dtype).max / 2 if whole else 0.5)
    values = np.where(weight > 0, values, middle)
    result = samples.copy()
    result[:, near] = np.where(weights[:, near] < 1, np.rint(values) if whole else values, own)
    return result


def _sum(x: np.ndarray, step: int) -> np.ndarray:
    """The sum over nine samples of [H, W, C] that are `step` apart, what is outside being 0."""
    return _along(_along(x, step, 0, np.add), step, 1, np.add)


def _maximum(x: np.ndarray, step: int) -> np.ndarray:
    """The largest of the same."""
    return _along(_along(x, step, 0, np.maximum), step, 1, np.maximum)


def _along(x: np.ndarray, step: int, axis: int, combine: np.ufunc) -> np.ndarray:
    y, before, after = x.copy(), [slice(None)] * 3, [slice(None)] * 3
    before[axis], after[axis] = slice(None, -step), slice(step, None)
    if x.shape[axis] > step:
        combine(y[tuple(after)], x[tuple(before)], out=y[tuple(after)])
        combine(y[tuple(before)], x[tuple(after)], out=y[tuple(before)])
    return y

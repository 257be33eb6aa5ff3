"""Patches in other colors: what a network of few images cannot learn by heart.

Reducing an image by a filter treats its channels alike and is linear, so channels may change places, and a negative is
the negative reduced. The larger image of either remains the right answer.
"""

from itertools import permutations

import numpy as np
import torch
from torch import Tensor

ORDERS = tuple(permutations(range(3)))
"""Of the channels; the first leaves them as they are."""
_STREAM = 1 << 64  # numbers of their own, beside those that places are drawn from


def draw_recolorings(seed: int, first: int, count: int, batch: int) -> np.ndarray:
    """Draws what becomes of the patches of steps first, first + 1, ..., from (seed, step) alone.

    Half of them have their channels in any of six orders, a quarter are made negatives, independently.

    Args:
        seed: 0 to 2^64 - 1.
        first: Step to begin with.
        count: Number of steps.
        batch: Patches a step.

    Returns:
        int64 [count, batch]: row of ORDERS, and 6 more for a negative.
    """
    counts = -(-batch // 4)  # the generator gives four words a count
    words = np.random.Philox(key=seed | _STREAM, counter=first * counts).random_raw(count * counts * 4)
    negative, order = np.divmod(words.reshape(count, counts * 4)[:, :batch].astype(np.uint64) % np.uint64(48), 12)
    return (np.where(order < len(ORDERS), order, 0) + np.where(negative == 0, len(ORDERS), 0)).astype(np.int64)


def recolor(patches: Tensor, recolorings: Tensor, orders: Tensor) -> Tensor:
    """Recolors patches, of low or high resolution.

    Works on the device alone, so that it can be recorded in a CUDA graph.

    Args:
        patches: [B, 3, h, w] in 0..1, channels_last.
        recolorings: int64 [B], as `draw_recolorings` gives it.
        orders: int64 [6, 3] on the device: ORDERS.

    Returns:
        Others of the same layout.
    """
    channels = orders.index_select(0, recolorings % len(ORDERS))[:, None, None]
    rows = patches.permute(0, 2, 3, 1)
    negative = (recolorings >= len(ORDERS)).to(patches.dtype)[:, None, None, None]
    # |x - 0| is x, and |x - 1| is 1 - x, both exactly.
    return rows.gather(3, channels.expand(rows.shape)).sub_(negative).abs_().permute(0, 3, 1, 2)


def orders_on(device: torch.device) -> Tensor:
    """ORDERS as `recolor` takes them."""
    return torch.tensor(ORDERS, device=device)

"""Between an image's samples and the network's values: channels, range, alpha.

The network takes and gives RGB in 0..1. Gray is repeated three times. Alpha goes through the network like a gray image,
colors by themselves, after those of transparent pixels have been filled from their neighbors: hidden colors leave no
trace, and where alpha has an edge colors have none.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edsr.images import fill_rows
from edsr.kernels import MAX_VALUE, quantize

FAINT = 16
"""Levels of alpha below which colors are taken in part from neighbors: of 16 values that a premultiplied color has
there, none is near enough. Of floats 1 / 65535 counts as a level."""
ALPHA_WINDOW = 5  # pixels a side; where alpha is the same extreme in all of it, it is that in the result


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    return getattr(torch, np.dtype(dtype).name)


def fill_hidden_colors(rows: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Successive rows of one image, [n, W, 1 to 4], where colors under alpha 0 continue those around them.

    What has no alpha comes as it is. The others are late by `edsr.images.fill_rows`' rows where alpha is near 0.
    """
    return fill_rows((part, _color_weights(part)) for part in rows)


def _color_weights(rows: np.ndarray) -> np.ndarray | None:
    """How well colors are known by their alpha, float32 [n, W, 1]; None if all are."""
    if rows.shape[2] in (1, 3):
        return None
    levels = 65535 if rows.dtype == np.float32 else 1
    weights = np.clip(rows[:, :, -1:] * np.float32(levels / FAINT), 0, 1, dtype=np.float32)
    return weights if weights.size and weights.min() < 1 else None


def to_network(rows: Tensor) -> tuple[Tensor, bool]:
    """Rows of an image as a batch for the network.

    Args:
        rows: [n, W, C]; C is 1 (gray), 2 (gray and alpha), 3 (RGB) or 4 (RGB and alpha).

    Returns:
        [N, 3, n, W], where N is 2 with alpha (colors in 0..1, and alpha) and 1 without, and whether the
        network itself can quantize the result to the dtype of the rows.
    """
    x = rows.permute(2, 0, 1)
    if len(x) == 3:
        return x[None], x.dtype != torch.float32
    if len(x) == 1:
        return x[None].expand(1, 3, -1, -1), False
    values = x.float() / (MAX_VALUE[x.dtype] if x.dtype != torch.float32 else 1.0)
    return torch.stack([values[:-1].expand(3, -1, -1), values[-1:].clamp(0, 1).expand(3, -1, -1)]), False


def from_network(y: Tensor, channels: int, dtype: np.dtype, alpha_masks: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Samples from the network's values: the reverse of `to_network`.

    Args:
        y: [N, 3, n, W] in 0..1 as computed.
        channels: Of the image, 1 to 4.
        dtype: uint8, uint16 or float32.
        alpha_masks: With alpha, bool [n, W] each: where it is exactly 0, and where it is full.

    Returns:
        [n, W, channels] of that dtype.
    """
    color = y[0].mean(0, keepdim=True) if channels < 3 else y[0]
    if alpha_masks is None:
        return to_samples(color.permute(1, 2, 0), dtype)
    clear, opaque = alpha_masks
    alpha = y[1].mean(0).masked_fill(clear, 0).masked_fill(opaque, 1)
    return to_samples(torch.cat([color.masked_fill(clear, 0), alpha[None].clamp(0, 1)]).permute(1, 2, 0), dtype)


def to_samples(y: Tensor, dtype: np.dtype) -> Tensor:
    """Values in 0..1: for whole numbers clamped, brought to the full range and rounded; else as they are. Writes over
    y."""
    target = torch_dtype(dtype)
    return quantize(y, target) if target in (torch.uint8, torch.uint16) else y.float()


def flat_alpha(alpha: np.ndarray, top: int, count: int) -> tuple[Tensor, Tensor]:
    """Where alpha is the same extreme in the whole window around a pixel.

    Args:
        alpha: [n, W], the rows that are known. Beyond them, as beyond the image, they go on like the outermost row.
        top: The first row asked for.
        count: How many rows.

    Returns:
        bool [count, W] each: where it is 0, and where it is full.
    """
    reach = ALPHA_WINDOW // 2
    start, end = max(0, top - reach), min(len(alpha), top + count + reach)
    part = torch.from_numpy(alpha[start:end].astype(np.float32))[None, None]
    part = F.pad(part, (reach, reach, start - top + reach, top + count + reach - end), mode="replicate")
    full = MAX_VALUE[torch_dtype(alpha.dtype)] if alpha.dtype != np.float32 else 1.0
    highest = F.max_pool2d(part, ALPHA_WINDOW, 1)[0, 0]
    lowest = -F.max_pool2d(-part, ALPHA_WINDOW, 1)[0, 0]
    return highest <= 0, lowest >= full

"""Every op of the network in plain PyTorch: oracle, fair baseline and CPU path.

Letters: N pictures, H rows, W columns, Ci and Co channels in and out, r shuffle factor. Tensors are
torch's [N, C, H, W], in any memory format (channels_last is the fast one). Convolutions are
cross-correlations of stride 1 with zero padding that keeps H and W.

All ops work in the dtype of their weights; the two edges, `head` and `tail`, meet the picture in at
least fp32, so that the mean shift loses nothing in half precision.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def head(x: Tensor, weight: Tensor, bias: Tensor, mean: Sequence[float]) -> Tensor:
    """conv3x3(x - mean): the mean goes before the zero padding, so the padding is zero *after* it.

    x: [N, 3, H, W] RGB in 0..1. weight: [Co, 3, 3, 3]. bias: [Co]. Gives [N, Co, H, W] in weight's dtype.
    """
    return conv3x3(subtract_mean(x, mean, weight.dtype), weight, bias)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    relu: bool = False,
    scale: float = 1.0,
    skip: Tensor | None = None,
    shuffle: int = 1,
) -> Tensor:
    """pixel_shuffle(skip + scale * relu(x * weight + bias)), every part but the convolution optional.

    x: [N, Ci, H, W]. weight: [Co, Ci, 3, 3]. bias: [Co]. skip: [N, Co, H, W], not written to.
    shuffle r > 1 gives [N, Co / r², r·H, r·W] (Shi et al. 2016, equation 4).
    """
    return epilogue(F.conv2d(x, weight, bias, padding=1), relu, scale, skip, shuffle)


def tail(x: Tensor, weight: Tensor, bias: Tensor, mean: Sequence[float]) -> Tensor:
    """conv3x3(x) + mean. x: [N, Ci, H, W]. Gives [N, 3, H, W] RGB in 0..1, not clamped, at least fp32."""
    return add_mean(F.conv2d(x, weight, bias, padding=1), mean)


def collapsed_tail(x: Tensor, weight: Tensor, bias: Tensor, mean: Sequence[float], shuffle: int) -> Tensor:
    """pixel_shuffle(conv5x5(x)) + mean, with weights of their own in the outermost ring of pixels.

    x: [N, Ci, H, W]. weight: [4, 4, 3·r², Ci, 5, 5], bias: [4, 4, 3·r²], indexed by the border class of
    a pixel's row and column (see `edsr.fold`). Gives [N, 3, r·H, r·W], not clamped, at least fp32.
    """
    return add_mean(F.pixel_shuffle(ringed_conv5x5(F.pad(x, (0, 0, 2, 2)), weight, bias, True, True), shuffle), mean)


# What the streaming ops share with the ones above: each is applied to the rows at hand.


def subtract_mean(x: Tensor, mean: Sequence[float], dtype: torch.dtype) -> Tensor:
    """x - mean in at least fp32, then rounded once to `dtype`. x: [N, 3, H, W]."""
    wide = x.to(torch.promote_types(dtype, torch.float32))
    return (wide - wide.new_tensor(mean).view(1, 3, 1, 1)).to(dtype)


def add_mean(y: Tensor, mean: Sequence[float]) -> Tensor:
    """y + mean in at least fp32. y: [N, 3, H, W]."""
    wide = y.to(torch.promote_types(y.dtype, torch.float32))
    return wide + wide.new_tensor(mean).view(1, 3, 1, 1)


def epilogue(y: Tensor, relu: bool, scale: float, skip: Tensor | None, shuffle: int) -> Tensor:
    """What follows a convolution, in place on its output `y` (autograd allows it: conv2d does not keep y)."""
    if relu:
        y = y.relu_()
    if scale != 1.0:
        y = y.mul_(scale)
    if skip is not None:
        y = y.add_(skip)
    return F.pixel_shuffle(y, shuffle) if shuffle > 1 else y


INNER, FIRST, LAST, ONLY = range(4)  # border class of a row or column: 1 = first of the picture, 2 = last, 3 = both


def ringed_conv5x5(x: Tensor, weight: Tensor, bias: Tensor, top: bool, bottom: bool) -> Tensor:
    """The convolution of `collapsed_tail` on rows that already carry two more above and below.

    x: [N, Ci, rows + 4, W]; gives [N, Co, rows, W]. top and bottom say whether the first and the last of
    the rows given are the picture's; left and right are always the picture's.
    """
    rows, columns = x.shape[2] - 4, x.shape[3]
    y = F.conv2d(x, weight[INNER, INNER], bias[INNER, INNER], padding=(0, 2))
    # The ring again, in thin strips: the columns of the inner rows, then the rows, then the corners.
    x = F.pad(x, (2, 2))
    left_right = [(0, ONLY)] if columns == 1 else [(0, FIRST), (columns - 1, LAST)]
    if rows == 1:
        top_bottom = [(0, top * FIRST + bottom * LAST)]
    else:
        top_bottom = [(0, top * FIRST), (rows - 1, bottom * LAST)]
    for j, column_class in left_right:
        w, b = weight[INNER, column_class], bias[INNER, column_class]
        y[:, :, :, j : j + 1] = F.conv2d(x[:, :, :, j : j + 5], w, b)
    for i, row_class in top_bottom:
        if row_class == INNER:
            continue
        strip = x[:, :, i : i + 5]
        y[:, :, i : i + 1] = F.conv2d(strip, weight[row_class, INNER], bias[row_class, INNER])
        for j, column_class in left_right:
            w, b = weight[row_class, column_class], bias[row_class, column_class]
            y[:, :, i : i + 1, j : j + 1] = F.conv2d(strip[:, :, :, j : j + 5], w, b)
    return y

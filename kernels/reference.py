"""Every op of the network in plain PyTorch: oracle, fair baseline and CPU path.

Letters: N images, H rows, W columns, Ci and Co channels in and out, r shuffle factor. Tensors are
torch's [N, C, H, W], in any memory format (channels_last is the fast one). Convolutions are
cross-correlations of stride 1 with zero padding that keeps W, and H unless `padding` says otherwise: a band
of an image brings the rows above and below itself along, and takes none of zeros.

All ops work in the dtype of their weights; the two edges, `head` and the tails, meet the image in at
least fp32, so that the mean shift loses nothing in half precision. `edsr.kernels.triton.ops` has the same ops as
Triton kernels.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .interface import FIRST, INNER, LAST, MAX_VALUE, ONLY, RAW_OUTPUT, OutputSpec


def head(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Sequence[float],
    padding: tuple[int, int] = (1, 1),
    out: Tensor | None = None,
) -> Tensor:
    """conv3x3(x - mean): the mean goes before the zero padding, so the padding is zero *after* it.

    x: [N, 3, H, W] RGB, floating in 0..1, or uint8 or uint16 of full range. weight: [Co, 3, 3, 3]. bias: [Co].
    padding: rows of zeros above and below, each 0 or 1. Gives [N, Co, H - 2 + padding, W] in weight's dtype.
    """
    shifted = F.pad(subtract_mean(x, mean, weight.dtype), (0, 0, *padding))
    y = F.conv2d(shifted, weight, bias, padding=(0, 1))
    return y if out is None else out.copy_(y)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    relu: bool = False,
    scale: float = 1.0,
    skip: Tensor | None = None,
    shuffle: int = 1,
    padding: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """pixel_shuffle(skip + scale * relu(x * weight + bias)), every part but the convolution optional.

    x: [N, Ci, H, W]. weight: [Co, Ci, 3, 3]. bias: [Co]. skip: [N, Co, H', W], not written to. padding: rows of
    zeros above and below, 1 or 0; H' = H - 2 + 2*padding. shuffle r > 1 gives [N, Co / r², r·H', r·W] (Shi et
    al. 2016, equation 4). out: where to write; the epilogue's last step does it, at no cost of its own.
    """
    # Below, in place on y: autograd allows it, because conv2d does not keep what it gives.
    y = F.conv2d(x, weight, bias, padding=(padding, 1))
    target = None if shuffle > 1 else out
    plain = scale == 1.0 and skip is None
    if relu:
        y = torch.clamp_min(y, 0, out=target) if target is not None and plain else y.relu_()
    kept = relu and y.requires_grad  # ReLU does keep what it gives
    if scale != 1.0:
        y, kept = (y * scale if kept else y.mul_(scale)), False
    if skip is not None:
        y = torch.add(y, skip, out=target) if target is not None else y + skip if kept else y.add_(skip)
    if shuffle > 1:
        y = F.pixel_shuffle(y, shuffle)
    return y if out is None or y is out else out.copy_(y)


def resblock(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """x + scale * conv3x3(relu(conv3x3(x))). x: [N, C, H, W]. Weights: [C, C, 3, 3]. Biases: [C]."""
    return conv3x3(conv3x3(x, weight1, bias1, relu=True), weight2, bias2, scale=scale, skip=x, out=out)


def tail(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Sequence[float],
    result: OutputSpec = RAW_OUTPUT,
    padding: int = 1,
) -> Tensor:
    """conv3x3(x) + mean. x: [N, Ci, H, W]. padding: as in `conv3x3`. Gives [N, 3, H', W] RGB in 0..1, see
    `OutputSpec`."""
    return to_output(F.conv2d(x, weight, bias, padding=(padding, 1)), mean, result)


def collapsed_tail(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Sequence[float],
    shuffle: int,
    result: OutputSpec = RAW_OUTPUT,
    padding: int = 2,
    ends: tuple[bool, bool] = (True, True),
) -> Tensor:
    """pixel_shuffle(conv5x5(x)) + mean, with weights of their own in the outermost ring of pixels.

    x: [N, Ci, H, W]. weight: [4, 4, 3·r², Ci, 5, 5], bias: [4, 4, 3·r²], indexed by the border class of
    a pixel's row and column (see `edsr.models.folding`). padding: rows of zeros above and below, 2 or 0. ends: whether
    the first and the last row that come out are the image's. Gives [N, 3, r·H', r·W], see `OutputSpec`.
    """
    y = F.conv2d(x, weight[INNER, INNER], bias[INNER, INNER], padding=(padding, 2))
    ring_conv5x5(y, x, weight, bias, padding, *ends)
    return to_output(F.pixel_shuffle(y, shuffle), mean, result)


def subtract_mean(x: Tensor, mean: Sequence[float], dtype: torch.dtype) -> Tensor:
    """x in 0..1, minus mean, in at least fp32, then rounded once to `dtype`. x: [N, 3, H, W], see `head`."""
    wide = x.to(torch.promote_types(dtype, torch.float32))
    if x.dtype in (torch.uint8, torch.uint16):
        wide = wide / MAX_VALUE[x.dtype]
    return (wide - _mean_like(mean, wide)).to(dtype)


def _mean_like(mean: Sequence[float], like: Tensor) -> Tensor:
    """[1, 3, 1, 1] on the device of `like`: filled there, because a copy from the host would wait for the device and
    could not be part of a CUDA graph."""
    return torch.stack([like.new_full((), value) for value in mean]).view(1, 3, 1, 1)


def to_output(y: Tensor, mean: Sequence[float], result: OutputSpec) -> Tensor:
    """y + mean in at least fp32, made into what `result` asks for. y: [N, 3, H, W]."""
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    y = y + _mean_like(mean, y)
    if result.overflow is not None:
        result.overflow.logical_or_(~torch.isfinite(y).all())
    return y if result.dtype is None else quantize(y, result.dtype)


def quantize(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in 0..1 as whole numbers of full range, clamped and rounded to nearest. In place on y."""
    return y.clamp_(0, 1).mul_(MAX_VALUE[dtype]).round_().to(dtype)


EDGE_REACH = 3  # rows of the image that its first row sees


def ring_conv5x5(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, padding: int, top: bool, bottom: bool) -> None:
    """The ring of `collapsed_tail`, written into y, which has the weights of inner pixels everywhere.

    y: [N, Co, H', W]. x, weight, bias, padding: as there. top and bottom say whether the first and the last of y's rows
    are the image's; left and right are always the image's. In thin strips: the columns, the rows, the corners.
    """
    rows, columns = y.shape[2:]
    left_right = [(0, ONLY)] if columns == 1 else [(0, FIRST), (columns - 1, LAST)]
    if rows == 1:
        top_bottom = [(0, top * FIRST + bottom * LAST)]
    else:
        top_bottom = [(0, top * FIRST), (rows - 1, bottom * LAST)]
    for j, column_class in left_right:
        first, end, before, after = _clip_window(j - 2, columns)
        strip = F.pad(x[:, :, :, first:end], (before, after, padding, padding))
        y[:, :, :, j : j + 1] = F.conv2d(strip, weight[INNER, column_class], bias[INNER, column_class])
    for i, row_class in top_bottom:
        if row_class == INNER:
            continue
        first, end, before, after = _clip_window(i - padding, x.shape[2])
        strip = F.pad(x[:, :, first:end], (2, 2, before, after))
        y[:, :, i : i + 1] = F.conv2d(strip, weight[row_class, INNER], bias[row_class, INNER])
        for j, column_class in left_right:
            w, b = weight[row_class, column_class], bias[row_class, column_class]
            y[:, :, i : i + 1, j : j + 1] = F.conv2d(strip[:, :, :, j : j + 5], w, b)


def _clip_window(start: int, size: int) -> tuple[int, int, int, int]:
    """start .. start + 5 within 0 .. size: (first, end, how many are missing before, and after)."""
    first, end = max(0, start), min(size, start + 5)
    return first, end, first - start, start + 5 - end


def conv5x5(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution of `collapsed_tail` with one set of weights for all pixels, in training.

    x: [N, Ci, H, W]. weight: [Co, Ci, 5, 5], Ci innermost in memory. bias: [Co]. Gives [N, Co, H, W].
    """
    return F.conv2d(x, weight, bias, padding=2)


def ringed_conv5x5(
    x: Tensor,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Sequence[Tensor]],
    conv5x5: Callable[[Tensor, Tensor, Tensor], Tensor] = conv5x5,
) -> Tensor:
    """`collapsed_tail` before its pixel shuffle, of whole images, differentiable once: maps are not written to.

    x: [N, Ci, H, W]. weights, biases: by border class of row and of column, as `edsr.models.collapsed.compose` gives
    them. conv5x5: for all but the outermost ring, for which it gets a gradient of zeros; not called where all is
    ring. The gradient of x that it gives is written to, and must be of its own making. Gives [N, 3·r², H, W].
    """
    height, width = x.shape[2:]
    x, top, bottom, left, right = _Strips.apply(x)
    rows = []
    for row_class, row_taps in _border_classes(height):
        row = []
        for column_class, column_taps in _border_classes(width):
            weight, bias = weights[row_class][column_class], biases[row_class][column_class]
            if row_class == column_class == INNER:
                row.append(conv5x5(x, weight, bias)[:, :, 1:-1, 1:-1])
                continue
            if row_class == INNER:
                seen = right if column_class == LAST else left
            else:
                seen = bottom if row_class == LAST else top
                if column_class != INNER:
                    seen = seen[..., -EDGE_REACH:] if column_class == LAST else seen[..., :EDGE_REACH]
            padding = (int(row_class == INNER), int(column_class == INNER))
            row.append(F.conv2d(seen, weight[:, :, row_taps, column_taps], bias, padding=padding))
        rows.append(torch.cat(row, 3))
    return torch.cat(rows, 2)


def _border_classes(size: int) -> list[tuple[int, slice]]:
    """The border classes of rows from the first on, with the taps that find rows of the image."""
    near = min(EDGE_REACH, size)
    if size == 1:
        return [(ONLY, slice(1))]
    first, last = (FIRST, slice(near)), (LAST, slice(EDGE_REACH - near, EDGE_REACH))
    return [first, (INNER, slice(5)), last] if size > 2 else [first, last]


class _Strips(torch.autograd.Function):
    """x itself, and what the ring sees of it: NEAR rows at the top, at the bottom, as many columns left and right.

    Five slices would have five gradients as large as x, of zeros for the most part.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        ctx.like = x.shape, x.dtype, x.device
        return x, *(part.clone() for part in _strips(x))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *grads):
        if grad is None:
            shape, dtype, device = ctx.like
            grad = torch.zeros(shape, dtype=dtype, device=device)
        # In place: it was made for this alone, by the one convolution that takes x.
        for part, more in zip(_strips(grad), grads, strict=True):
            if more is not None:
                part += more
        return grad


def _strips(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x[:, :, :EDGE_REACH], x[:, :, -EDGE_REACH:], x[..., :EDGE_REACH], x[..., -EDGE_REACH:]

"""Every op of the network in plain PyTorch: reference of all kernels, baseline of benchmarks, and path for any device.

Letters: N images, H rows, W columns, Ci input and Co output channels, r shuffle factor. Tensors are PyTorch's
[N, C, H, W] in any memory format; channels_last is the fast one. Convolutions are cross-correlations of stride 1 whose
zero padding keeps W, and H unless `padding` says otherwise: a band of an image includes the rows above and below it,
and needs no rows of zeros there.

All ops compute in the dtype of their weights. `head` and the tails convert from and to the image in at least fp32, so
that the mean shift loses nothing in half precision. `edsr.kernels.triton.ops` has the same ops as Triton kernels.
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
    """conv3x3(x - mean). The mean is subtracted before zero padding, so what is padded is zero, not -mean.

    Args:
        x: [N, 3, H, W] RGB, floating point in 0..1, or uint8 or uint16 of full range.
        weight: [Co, 3, 3, 3].
        bias: [Co].
        mean: of R, G and B, in 0..1.
        padding: rows of zeros above and below, each 0 or 1.
        out: where to write the result.

    Returns:
        [N, Co, H - 2 + sum(padding), W] in the weight's dtype.
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

    Args:
        x: [N, Ci, H, W].
        weight: [Co, Ci, 3, 3].
        bias: [Co].
        relu: whether to apply ReLU.
        scale: factor on the convolution.
        skip: [N, Co, H', W] with H' = H - 2 + 2·padding; not written to.
        shuffle: factor r of the pixel shuffle (Shi et al. 2016, equation 4).
        padding: rows of zeros above and below, 1 or 0.
        out: where to write the result. The last step of the epilogue writes there, without an extra copy.

    Returns:
        [N, Co / r², r·H', r·W].
    """
    # y is changed in place: autograd allows it, because conv2d does not save its output.
    y = F.conv2d(x, weight, bias, padding=(padding, 1))
    target = None if shuffle > 1 else out
    relu_is_last = scale == 1.0 and skip is None
    if relu:
        y = torch.clamp_min(y, 0, out=target) if target is not None and relu_is_last else y.relu_()
    saved = relu and y.requires_grad  # unlike conv2d, ReLU saves its output
    if scale != 1.0:
        y, saved = (y * scale if saved else y.mul_(scale)), False
    if skip is not None:
        y = torch.add(y, skip, out=target) if target is not None else y + skip if saved else y.add_(skip)
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
    *,
    reuse: bool = False,
) -> Tensor:
    """x + scale * conv3x3(relu(conv3x3(x))). x: [N, C, H, W]. Weights: [C, C, 3, 3]. Biases: [C].

    reuse: no matter here.
    """
    return conv3x3(conv3x3(x, weight1, bias1, relu=True), weight2, bias2, scale=scale, skip=x, out=out)


def tail(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Sequence[float],
    result: OutputSpec = RAW_OUTPUT,
    padding: int = 1,
) -> Tensor:
    """conv3x3(x) + mean.

    Args:
        x: [N, Ci, H, W].
        weight: [3, Ci, 3, 3].
        bias: [3].
        mean: of R, G and B, in 0..1.
        result: dtype of the output, see `OutputSpec`.
        padding: as in `conv3x3`.

    Returns:
        [N, 3, H', W] RGB as `result` says.
    """
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
    """pixel_shuffle(conv5x5(x)) + mean, with separate weights for the outermost ring of pixels.

    Args:
        x: [N, Ci, H, W].
        weight: [4, 4, 3·r², Ci, 5, 5], indexed by the border classes of a pixel's row and column, see
            `edsr.models.folding`.
        bias: [4, 4, 3·r²], indexed in the same way.
        mean: of R, G and B, in 0..1.
        shuffle: r.
        result: dtype of the output, see `OutputSpec`.
        padding: rows of zeros above and below, 2 or 0.
        ends: whether the first and the last row of the result are the image's first and last.

    Returns:
        [N, 3, r·H', r·W] RGB as `result` says, with H' = H - 4 + 2·padding.
    """
    y = F.conv2d(x, weight[INNER, INNER], bias[INNER, INNER], padding=(padding, 2))
    ring_conv5x5(y, x, weight, bias, padding, *ends)
    return to_output(F.pixel_shuffle(y, shuffle), mean, result)


def subtract_mean(x: Tensor, mean: Sequence[float], dtype: torch.dtype) -> Tensor:
    """x in 0..1 minus mean, computed in at least fp32 and rounded once to `dtype`. x: [N, 3, H, W], as for `head`."""
    wide = x.to(torch.promote_types(dtype, torch.float32))
    if x.dtype in (torch.uint8, torch.uint16):
        wide = wide / MAX_VALUE[x.dtype]
    return (wide - _mean_like(mean, wide)).to(dtype)


def _mean_like(mean: Sequence[float], like: Tensor) -> Tensor:
    """[1, 3, 1, 1], filled on the device of `like`: a copy from the host would wait for the device, and could not be
    part of a CUDA graph."""
    return torch.stack([like.new_full((), value) for value in mean]).view(1, 3, 1, 1)


def to_output(y: Tensor, mean: Sequence[float], result: OutputSpec) -> Tensor:
    """y + mean in at least fp32, converted as `result` says. y: [N, 3, H, W]."""
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    y = y + _mean_like(mean, y)
    if result.overflow is not None:
        low, high = torch.aminmax(y)  # of which NaN makes NaN
        result.overflow.logical_or_(~(torch.isfinite(low) & torch.isfinite(high)))
    return y if result.dtype is None else quantize(y, result.dtype)


def quantize(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in 0..1 as integers of full range, clamped and rounded to nearest. Overwrites y."""
    return y.clamp_(0, 1).mul_(MAX_VALUE[dtype]).round_().to(dtype)


EDGE_REACH = 3  # rows of the image under a 5x5 filter at its first row


def ring_conv5x5(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, padding: int, top: bool, bottom: bool) -> None:
    """Replaces the outermost ring of y, in thin strips: the columns, the rows, the corners.

    Args:
        y: [N, Co, H', W], computed with the weights of inner pixels everywhere. Written to.
        x: as in `collapsed_tail`, like weight, bias and padding.
        weight: of every border class.
        bias: of every border class.
        padding: rows of zeros above and below.
        top: whether the first row of y is the image's first. Left and right edges always are the image's.
        bottom: whether the last row of y is the image's last.
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
    """start .. start + 5 clipped to 0 .. size: (first, end, how many are missing before, and after)."""
    first, end = max(0, start), min(size, start + 5)
    return first, end, first - start, start + 5 - end


def conv5x5(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution of `collapsed_tail` with one set of weights for all pixels, for training.

    Args:
        x: [N, Ci, H, W].
        weight: [Co, Ci, 5, 5], Ci innermost in memory.
        bias: [Co].

    Returns:
        [N, Co, H, W].
    """
    return F.conv2d(x, weight, bias, padding=2)


def ringed_conv5x5(
    x: Tensor,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Sequence[Tensor]],
    conv5x5: Callable[[Tensor, Tensor, Tensor], Tensor] = conv5x5,
) -> Tensor:
    """`collapsed_tail` before its pixel shuffle, for whole images; gradients can be taken once.

    Args:
        x: [N, Ci, H, W].
        weights: by border class of row and column, as `edsr.models.collapsed.compose` returns them.
        biases: in the same order.
        conv5x5: computes all but the outermost ring, where its gradient is zero. Not called if every pixel is in the
            ring. The gradient of x that it computes is written to, so it must be a new tensor.

    Returns:
        [N, 3·r², H, W].
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
    """The border classes of rows or columns in order, each with the slice of taps that lie within the image."""
    near = min(EDGE_REACH, size)
    if size == 1:
        return [(ONLY, slice(1))]
    first, last = (FIRST, slice(near)), (LAST, slice(EDGE_REACH - near, EDGE_REACH))
    return [first, (INNER, slice(5)), last] if size > 2 else [first, last]


class _Strips(torch.autograd.Function):
    """x, and copies of what the ring needs of it: EDGE_REACH rows at the top and bottom, columns at the left and right.

    As slices they would have gradients as large as x, nearly all zeros.
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
        # In place: the convolution that takes x made this gradient for it alone.
        for part, more in zip(_strips(grad), grads, strict=True):
            if more is not None:
                part += more
        return grad


def _strips(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x[:, :, :EDGE_REACH], x[:, :, -EDGE_REACH:], x[..., :EDGE_REACH], x[..., -EDGE_REACH:]

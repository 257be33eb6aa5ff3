"""The network's convolutions as autograd functions, whichever kernels compute their products.

Each function takes `products`, a namespace of three functions:

    convolve(x, weight, bias, relu, scale, skip, shuffle)    as `edsr.kernels.reference.conv3x3`
    dgrad(dy, weight, scale, mask, skip)    gradient of x: skip + scale * (dy * flipped weight), 0 where mask <= 0
    wgrad(x, dy, weight, scale)    gradients of weight and bias

Feature maps are channels_last. Gradients can be taken once only.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Conv(torch.autograd.Function):
    """pixel_shuffle(skip + scale * (x * weight + bias)), or relu(x * weight + bias).

    apply(products, x, weight, bias, relu, scale, skip, shuffle). With relu, scale must be 1, skip None and shuffle 1:
    the backward pass reads the ReLU's mask from the result.
    """

    @staticmethod
    def forward(ctx, products, x, weight, bias, relu, scale, skip, shuffle):
        y = products.convolve(x, weight, bias, relu, scale, skip, shuffle)
        ctx.save_for_backward(x, weight, y if relu else None)
        ctx.products, ctx.scale, ctx.shuffle = products, scale, shuffle
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        x, weight, y = ctx.saved_tensors
        dy = pixel_unshuffled(gradients[0], ctx.shuffle)
        dskip = dy if ctx.needs_input_grad[6] else None
        if y is not None:
            dy = torch.where(y <= 0, 0, dy)
        dx = ctx.products.dgrad(dy, weight, ctx.scale) if ctx.needs_input_grad[1] else None
        dweight, dbias = _wgrad_if_needed(ctx, 2, x, dy, weight, ctx.scale)
        return None, dx, dweight, dbias, None, None, dskip, None


class ResBlock(torch.autograd.Function):
    """x + scale * conv3x3(relu(conv3x3(x))). apply(products, x, weight1, bias1, weight2, bias2, scale).

    The output of the ReLU is saved. The kernel that computes its gradient also applies its mask, and the kernel that
    computes the gradient of x also adds the gradient of the skip connection.
    """

    @staticmethod
    def forward(ctx, products, x, weight1, bias1, weight2, bias2, scale):
        hidden = products.convolve(x, weight1, bias1, True, 1.0, None, 1)
        ctx.save_for_backward(x, hidden, weight1, weight2)
        ctx.products, ctx.scale = products, scale
        return products.convolve(hidden, weight2, bias2, False, scale, x, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        x, hidden, weight1, weight2 = ctx.saved_tensors
        dy = pixel_unshuffled(gradients[0], 1)
        dx = dweight1 = dbias1 = None
        dweight2, dbias2 = _wgrad_if_needed(ctx, 4, hidden, dy, weight2, ctx.scale)
        if any(ctx.needs_input_grad[1:4]):
            dhidden = ctx.products.dgrad(dy, weight2, ctx.scale, mask=hidden)
            dweight1, dbias1 = _wgrad_if_needed(ctx, 2, x, dhidden, weight1, 1.0)
            dx = ctx.products.dgrad(dhidden, weight1, skip=dy) if ctx.needs_input_grad[1] else None
        return None, dx, dweight1, dbias1, dweight2, dbias2, None


def _wgrad_if_needed(ctx: Any, position: int, x: Tensor, dy: Tensor, weight: Tensor, scale: float) -> tuple:
    """The gradients of weight and bias, None for one that is not needed. position: of the weight among the operands."""
    needs_weight, needs_bias = ctx.needs_input_grad[position : position + 2]
    if not (needs_weight or needs_bias):
        return None, None
    dweight, dbias = ctx.products.wgrad(x, dy, weight, scale)
    return dweight if needs_weight else None, dbias if needs_bias else None


def pixel_unshuffled(dy: Tensor, shuffle: int) -> Tensor:
    """The gradient of a pixel shuffle's input, copied at most once.

    Args:
        dy: [N, C, r·H, r·W], the gradient of its output, in any layout.
        shuffle: r, 1 for none.

    Returns:
        [N, C·r², H, W], channels_last.
    """
    n, c, h, w = dy.shape
    if shuffle > 1:
        dy = dy.unflatten(3, (w // shuffle, shuffle)).unflatten(2, (h // shuffle, shuffle))  # [N, C, H, r, W, r]
        dy = dy.permute(0, 2, 4, 1, 3, 5).reshape(n, h // shuffle, w // shuffle, c * shuffle * shuffle)
        dy = dy.permute(0, 3, 1, 2)
    return dy.contiguous(memory_format=torch.channels_last)

"""The network's convolutions with gradients, over kernels of any kind that compute its three products.

`products` below is a namespace with

    convolve(x, weight, bias, relu, scale, skip, shuffle)    as `edsr.kernels.reference.conv3x3`
    dgrad(dy, weight, scale, mask, skip)    of the input: skip + scale * (dy * turned weight), 0 where mask <= 0
    wgrad(x, dy, weight, scale)    of weight and bias

Maps are channels_last. Gradients cannot be differentiated again.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Conv(torch.autograd.Function):
    """skip + scale * (x * weight + bias), pixel-shuffled, or relu(x * weight + bias).

    apply(products, x, weight, bias, relu, scale, skip, shuffle). With relu there is nothing else: the result must show
    what the ReLU let through.
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

    What the ReLU gave is kept: its mask goes into the kernel that computes the gradient behind it, and the gradient
    around the block into the one that computes that through it.
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


def _wgrad_if_needed(ctx: Any, first: int, x: Tensor, dy: Tensor, weight: Tensor, scale: float) -> tuple:
    """`wgrad`, if the gradient of the weight, the `first` operand, or of the bias is needed, and that which is."""
    needs = ctx.needs_input_grad[first : first + 2]
    if not any(needs):
        return None, None
    dweight, dbias = ctx.products.wgrad(x, dy, weight, scale)
    return dweight if needs[0] else None, dbias if needs[1] else None


def pixel_unshuffled(dy: Tensor, shuffle: int) -> Tensor:
    """A gradient behind a pixel shuffle as it was before it, channels_last; copied at most once.

    dy: [N, C, r·H, r·W] in any layout. Gives [N, C·r², H, W].
    """
    n, c, h, w = dy.shape
    if shuffle > 1:
        dy = dy.unflatten(3, (w // shuffle, shuffle)).unflatten(2, (h // shuffle, shuffle))  # [N, C, H, r, W, r]
        dy = dy.permute(0, 2, 4, 1, 3, 5).reshape(n, h // shuffle, w // shuffle, c * shuffle * shuffle)
        dy = dy.permute(0, 3, 1, 2)
    return dy.contiguous(memory_format=torch.channels_last)

"""Every op of the network on Triton kernels, under the names and signatures of `edsr.kernels.reference`.

Operands are checked here or beside the kernel, and the kernel for them is chosen here. Needs Triton, and a CUDA device
from compute capability 8.0 on or TRITON_INTERPRET=1. Maps and weights are channels_last.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..interface import RAW_OUTPUT, OutputSpec
from . import launch
from .collapsed_tail import collapsed_tail
from .conv3x3 import is_small, portable
from .head import head
from .hopper import dispatch
from .launch import KernelError

__all__ = ["KernelError", "collapsed_tail", "conv3x3", "head", "resblock", "tail"]


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
    """pixel_shuffle(skip + scale * relu(x * weight + bias)), computed in fp32 and rounded once.

    All operands are in fp16, bf16 or fp32 and on one device, maps and weight channels_last; the rows of a map may lie
    apart.

    Args:
        x: [N, Ci, H, W], Ci a multiple of 16.
        weight: [Co, Ci, 3, 3].
        bias: [Co].
        relu: Whether there is a ReLU.
        scale: Factor on what comes of it.
        skip: A map to add, [N, Co, H', W].
        shuffle: Factor of the pixel shuffle, 1, 2 or 3.
        padding: Rows of zeros above and below x, 1 or 0; H' = H - 2 + 2*padding.
        out: Where to write, [N, Co / shuffle², shuffle*H', shuffle*W], not overlapping x; may be skip itself where
            shuffle is 1.

    Returns:
        `out`, or a new map of its shape.

    Raises:
        KernelError: An operand is none of these.
    """
    n, ci, h, w = x.shape
    co, rows, area = weight.shape[0], h - 2 + 2 * padding, shuffle * shuffle
    size = (n, co // area, rows * shuffle, w * shuffle)
    launch.check_operands(
        "conv3x3",
        x,
        maps={"x": (x, (n, ci, h, w)), "skip": (skip, (n, co, rows, w)), "out": (out, size)},
        parameters={"weight": (weight, (co, ci, 3, 3)), "bias": (bias, (co,))},
        result=size,
        channels=ci,
    )
    if co % area:
        raise KernelError(f"conv3x3: a shuffle by {shuffle} needs a multiple of {area} channels, not {co}")
    if out is None:
        out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if not is_small(x, weight, padding) and dispatch.should_use(x, weight, shuffle):
        dispatch.conv3x3(x, weight, bias, relu, scale, skip, padding, out)
    else:
        portable(x, weight, bias, relu, scale, skip, shuffle, padding, out)
    return out


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
    """x + scale * conv3x3(relu(conv3x3(x))), in one kernel where `hopper.dispatch.should_use_block` says so and x is
    not small, else in two.

    x: [N, C, H, W], weights: [C, C, 3, 3], biases: [C], as in `conv3x3`. out: where to write, not overlapping x.
    reuse: whether x may be overwritten, which two kernels do: three maps are then alive in a network's body, not four.
    """
    if not is_small(x, weight1) and dispatch.should_use_block(x, weight1):
        return dispatch.resblock(x, weight1, bias1, weight2, bias2, scale, out)
    y = conv3x3(x, weight1, bias1, relu=True)
    return conv3x3(y, weight2, bias2, scale=scale, skip=x, out=x if reuse and out is None else out)


def tail(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Sequence[float],
    result: OutputSpec = RAW_OUTPUT,
    padding: int = 1,
) -> Tensor:
    """conv3x3(x) + mean; `edsr.kernels.reference.tail`. Only networks that were not folded come here."""
    return reference.to_output(conv3x3(x, weight, bias, padding=padding), mean, result)

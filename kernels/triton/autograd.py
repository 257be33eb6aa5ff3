"""Every op of the network that is trained, differentiable, under the names and signatures of `edsr.kernels.reference`.

The convolutions between the features are Triton kernels, forward and backward
(`edsr.kernels.triton.conv3x3_backward`); head and tail, whose three channels fill no matrix unit, are PyTorch's.
Needs what `edsr.kernels.triton.ops` needs. Maps and weights are channels_last; gradients come channels_last in the
dtype of what they are of. They cannot be differentiated again.
"""

import torch.nn.functional as F
from torch import Tensor

from .. import autograd, reference
from ..reference import collapsed_tail, head, tail
from . import conv3x3_backward, ops
from .launch import KernelError

__all__ = ["KernelError", "collapsed_tail", "conv3x3", "head", "resblock", "tail"]


class _Products:
    """The products that `edsr.kernels.autograd` is built on."""

    convolve = staticmethod(ops.conv3x3)

    @staticmethod
    def dgrad(dy: Tensor, weight: Tensor, scale: float = 1.0, **maps: Tensor) -> Tensor:
        return conv3x3_backward.dgrad(dy, weight, scale, **maps)

    @staticmethod
    def wgrad(x: Tensor, dy: Tensor, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return conv3x3_backward.wgrad(x, dy, scale, weight.dtype)


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
    """pixel_shuffle(skip + scale * relu(x * weight + bias)) on operands as `edsr.kernels.triton.ops.conv3x3`
    takes them.

    In one kernel, but with a ReLU, after which PyTorch does the rest. PyTorch does all of it where channels are no
    multiple of 16, and for bands (padding 0) and `out`, which training has no use for.
    """
    if not _has_kernels(weight) or padding != 1 or out is not None:
        return reference.conv3x3(x, weight, bias, relu, scale, skip, shuffle, padding, out)
    if not relu:
        return autograd.Conv.apply(_Products, x, weight, bias, False, scale, skip, shuffle)  # pyright: ignore[reportReturnType]
    y = autograd.Conv.apply(_Products, x, weight, bias, True, 1.0, None, 1)
    y = y if scale == 1.0 else y * scale
    y = y if skip is None else y + skip
    return y if shuffle == 1 else F.pixel_shuffle(y, shuffle)


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
    """x + scale * conv3x3(relu(conv3x3(x))). Operands and exceptions as of `conv3x3`; x is never reused."""
    if not (_has_kernels(weight1) and _has_kernels(weight2)) or out is not None:
        return reference.resblock(x, weight1, bias1, weight2, bias2, scale, out)
    return autograd.ResBlock.apply(_Products, x, weight1, bias1, weight2, bias2, scale)  # pyright: ignore[reportReturnType]


def _has_kernels(weight: Tensor) -> bool:
    """Whether there are kernels for as many channels, in and out."""
    return weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0

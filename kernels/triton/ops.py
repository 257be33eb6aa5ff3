"""Every op of the network on Triton kernels, under the names and signatures of `edsr.kernels.reference`.

Needs Triton, and a CUDA device from compute capability 8.0 on or TRITON_INTERPRET=1. Maps and weights are
channels_last.
"""

from torch import Tensor

from .conv3x3 import conv3x3
from .head_tail import collapsed_tail, head, tail
from .hopper import dispatch
from .launch import KernelError

__all__ = ["KernelError", "collapsed_tail", "conv3x3", "head", "resblock", "tail"]


def resblock(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """x + scale * conv3x3(relu(conv3x3(x))), in one kernel where `hopper.should_use_block` says so, else in two.

    x: [N, C, H, W], weights: [C, C, 3, 3], biases: [C], as in `conv3x3`. out: where to write, not overlapping x.
    """
    if dispatch.should_use_block(x, weight1):
        from .hopper.resblock import resblock as whole

        return whole(x, weight1, bias1, weight2, bias2, scale, out)
    y = conv3x3(x, weight1, bias1, relu=True)
    return conv3x3(y, weight2, bias2, scale=scale, skip=x, out=out)

"""Descriptors for the tensor memory accelerator (TMA) of Hopper GPUs."""

from functools import cache
from typing import Any

from torch import Tensor


def tensor_descriptor(x: Tensor, pixels: int) -> Any:
    """TMA's description of a map [N, C, H, W] as [N, H, W, C], to be copied in boxes of 64 channels of some pixels."""
    n, c, h, w = x.shape
    # The stride of a dimension of size 1 is arbitrary in torch, and TMA is particular.
    row = x.stride(2) if h > 1 else w * c
    image = x.stride(0) if n > 1 else h * row
    return descriptor(x, [n, h, w, c], [image, row, c, 1], [1, 1, pixels, 64])


def descriptor(base: Tensor, shape: list[int], strides: list[int], box: list[int]) -> Any:
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    return TensorDescriptor(base, shape, strides, box, _swizzled(len(box)))


@cache
def _swizzled(rank: int) -> Any:
    """How a box lies in shared memory."""
    from triton.experimental.gluon.language import NVMMASharedLayout

    return NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=rank)

"""The ops of `edsr.kernels.reference` for CPUs, in fp32, the 3x3 and 5x5 convolutions by Winograd's algorithm.

A quarter of the multiplications of direct convolution (3x3; nine 25ths for 5x5), all of a tile's steps inside the L2
cache, bias, ReLU, scale and skip before it is written, on as many threads as PyTorch has. The error is no more than
twice that of PyTorch in fp32. Needs llvmlite, and AVX2, AVX-512 or NEON; what the kernels do not serve (other dtypes,
numbers of channels not divisible by 16, gradients, maps not channels_last) goes to `edsr.kernels.reference`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..allocator import empty_feature_map
from ..interface import INNER, RAW_OUTPUT, OutputSpec
from ..reference import head, tail
from .convolution import convolve, transformed_filter
from .runtime import compile_ahead, is_available, missing_requirement

__all__ = ["collapsed_tail", "compile_ahead", "conv3x3", "head", "resblock", "tail", "unavailable_reason"]

CHANNELS = 16  # numbers of channels must be multiples of it
_SHORT_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


def unavailable_reason(device: torch.device | str, dtype: torch.dtype, channels: int) -> str:
    """Why the kernels cannot run a network there; "" if they can, as far as is known before they are compiled.

    Args:
        device: where the network is.
        dtype: of its weights.
        channels: of its feature maps.
    """
    if torch.device(device).type != "cpu":
        return f"the kernels need a CPU, not {device}"
    if dtype != torch.float32:
        return f"the kernels compute in fp32, not {_SHORT_NAMES.get(dtype, dtype)}"
    if channels % CHANNELS:
        return f"the kernels need a multiple of {CHANNELS} features, not {channels}"
    return missing_requirement()


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
    """As `edsr.kernels.reference.conv3x3`. out may be skip's memory, pixel by pixel, but not x's.

    The weight's transform is kept as long as the weight, and made again when the weight is written to.
    """
    if not should_use(x, weight, bias, skip, None if shuffle > 1 else out):
        return reference.conv3x3(x, weight, bias, relu, scale, skip, shuffle, padding, out)
    n, _, height, width = x.shape
    size = (n, weight.shape[0], height - 2 + 2 * padding, width)
    y = empty_feature_map(size, x.dtype) if out is None or shuffle > 1 else out
    convolve(x, transformed_filter(weight), bias, 3, y, padding, skip, relu, scale)
    if shuffle > 1:
        y = F.pixel_shuffle(y, shuffle)
        return y if out is None else out.copy_(y)
    return y


def resblock(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """x + scale * conv3x3(relu(conv3x3(x))), as `edsr.kernels.reference.resblock`; out may be x."""
    y = conv3x3(x, weight1, bias1, relu=True)
    return conv3x3(y, weight2, bias2, scale=scale, skip=x, out=out)


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
    """As `edsr.kernels.reference.collapsed_tail`; the ring in the same thin strips."""
    if not should_use(x, weight[INNER, INNER], bias[INNER, INNER], outputs=False):
        return reference.collapsed_tail(x, weight, bias, mean, shuffle, result, padding, ends)
    n, _, height, width = x.shape
    kept = transformed_filter(weight, part=(INNER, INNER))
    y = empty_feature_map((n, kept.outputs, height - 4 + 2 * padding, width), x.dtype)
    convolve(x, kept, bias[INNER, INNER], 5, y, padding)
    y = y[:, : weight.shape[2]]
    reference.ring_conv5x5(y, x, weight, bias, padding, *ends)
    return reference.to_output(F.pixel_shuffle(y, shuffle), mean, result)


# --- operands


def should_use(
    x: Tensor, weight: Tensor, bias: Tensor, *maps: Tensor | None, outputs: bool = True, gradients: bool = False
) -> bool:
    """Whether the kernels do this convolution. outputs: whether the number of channels out must be theirs, too.
    gradients: whether some may be asked for."""
    operands = [t for t in (x, weight, bias, *maps) if t is not None]
    return (
        all(t.dtype == torch.float32 and t.device.type == "cpu" for t in operands)
        and (gradients or not (torch.is_grad_enabled() and any(t.requires_grad for t in operands)))
        and not any(size % CHANNELS for size in (weight.shape[:2] if outputs else weight.shape[1:2]))
        and all(_channels_last(t) for t in (x, *maps) if t is not None)
        and is_available(gradients)
    )


def _channels_last(x: Tensor) -> bool:
    """Whether rows are dense runs of NHWC pixels; rows and images may lie apart."""
    _, c, _, w = x.shape
    return (c == 1 or x.stride(1) == 1) and (w == 1 or x.stride(3) == c)

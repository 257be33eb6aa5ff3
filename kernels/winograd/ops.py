"""The ops of `edsr.kernels.reference` for CPUs, in fp32, with Winograd's algorithm for 3x3 and 5x5 convolutions.

It needs a quarter of the multiplications of direct convolution (nine 25ths for 5x5). All steps of a tile stay in the L2
cache; bias, ReLU, scale and skip are applied before it is stored; as many threads compute as PyTorch has. The error is
at most twice that of PyTorch in fp32. The kernels need llvmlite, and AVX2, AVX-512 or NEON. What they do not support
(other dtypes, numbers of channels not divisible by 16, gradients, maps not channels_last), `edsr.kernels.reference`
computes.
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

CHANNELS = 16  # numbers of channels must be multiples of this
_SHORT_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


def unavailable_reason(device: torch.device | str, dtype: torch.dtype, channels: int) -> str:
    """Why the kernels cannot run a network, "" if they can, as far as is known before they are compiled.

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
    """As `edsr.kernels.reference.conv3x3`. out may share skip's memory, pixel by pixel, but not x's.

    The transformed weight is cached as long as the weight exists, and renewed when the weight has been written to.
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
    *,
    reuse: bool = False,
) -> Tensor:
    """As `edsr.kernels.reference.resblock`: x + scale * conv3x3(relu(conv3x3(x))). out may be x.

    reuse: whether x may be overwritten, which it is where no gradient is wanted.
    """
    y = conv3x3(x, weight1, bias1, relu=True)
    if reuse and out is None and not torch.is_grad_enabled():
        out = x
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
    """As `edsr.kernels.reference.collapsed_tail`, which also computes the outermost ring."""
    if not should_use(x, weight[INNER, INNER], bias[INNER, INNER], outputs=False):
        return reference.collapsed_tail(x, weight, bias, mean, shuffle, result, padding, ends)
    n, _, height, width = x.shape
    filter_ = transformed_filter(weight, part=(INNER, INNER))
    y = empty_feature_map((n, filter_.outputs, height - 4 + 2 * padding, width), x.dtype)
    convolve(x, filter_, bias[INNER, INNER], 5, y, padding)
    y = y[:, : weight.shape[2]]
    reference.ring_conv5x5(y, x, weight, bias, padding, *ends)
    return reference.to_output(F.pixel_shuffle(y, shuffle), mean, result)


# --- operands


def should_use(
    x: Tensor, weight: Tensor, bias: Tensor, *maps: Tensor | None, outputs: bool = True, gradients: bool = False
) -> bool:
    """Whether the kernels support a convolution, so that they compute it.

    Args:
        x: [N, Ci, H, W].
        weight: [Co, Ci, r, r].
        bias: [Co].
        maps: other feature maps that are read or written; None for those that are absent.
        outputs: whether Co must be a multiple of `CHANNELS`, too.
        gradients: whether operands may require gradients.
    """
    operands = [t for t in (x, weight, bias, *maps) if t is not None]
    return (
        all(t.dtype == torch.float32 and t.device.type == "cpu" for t in operands)
        and (gradients or not (torch.is_grad_enabled() and any(t.requires_grad for t in operands)))
        and not any(size % CHANNELS for size in (weight.shape[:2] if outputs else weight.shape[1:2]))
        and all(_channels_last(t) for t in (x, *maps) if t is not None)
        and is_available(gradients)
    )


def _channels_last(x: Tensor) -> bool:
    """Whether the pixels of each row are contiguous in NHWC order; rows and images may have gaps between them."""
    _, c, _, w = x.shape
    return (c == 1 or x.stride(1) == 1) and (w == 1 or x.stride(3) == c)

"""The convolutions that Hopper GPUs (sm_90) compute by kernels of their own, and whether they are trusted.

`kernels.conv3x3` asks `serves` and falls back on its portable kernel. The Hopper kernels are written in Gluon, part of
Triton but experimental: it is imported when first needed, and where that fails `serves` is False. Before their first
use, once per process, they are compared with the portable kernel on a small problem (see `_works`).

Letters: N pictures, H rows, W columns, Ci and Co channels in and out.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels import launch
from kernels.conv3x3 import portable

log = logging.getLogger(__name__)

# The kernels compute 128 pixels of a row at once. In narrower pictures more than half of the work would be lost, which
# is more than the portable kernel is expected to lose otherwise. A bound from a model, not measured.
MIN_WIDTH = 64

_verdicts: dict[tuple[str, torch.dtype, torch.device], bool] = {}


def serves(x: Tensor, weight: Tensor, shuffle: int) -> bool:
    """Whether `conv3x3` here is to compute this convolution: it is able to, and was not measured to be slower.

    x: [N, Ci, H, W] and weight [Co, Ci, 3, 3], both channels_last.
    """
    measured = [launch.choice(op, f"{launch.NAMES[x.dtype]} {weight.shape[0]}", x.device) for op in ("relu", "skip")]
    return measured != ["portable", "portable"] and able(x, weight, shuffle)


def able(x: Tensor, weight: Tensor, shuffle: int) -> bool:
    """Whether there is a kernel for this convolution that runs here and was found right."""
    co, ci = weight.shape[:2]
    known = ci == co == 64 or (ci % 64 == 0 and co % 128 == 0)
    if not known or shuffle != 1 or not _describable(x):
        return False
    return any(_works(kernel, x.dtype, x.device) for kernel in _kernels(co))


def _kernels(co: int) -> tuple[Callable[..., None], ...]:
    """Those for this many channels out, the first that works to be used."""
    return (_conv64, _conv64_of_copies) if co == 64 else (_conv_wide,)


def serves_block(x: Tensor, weight: Tensor) -> bool:
    """Whether `kernels.resblock.resblock` is to compute a block: it is able to, and was measured to be the fastest.

    Without a measurement it is not used: in fp16 it is expected to be no faster than two convolutions where memory
    is as fast as a Hopper's (half the traffic, 2 % more arithmetic, and arithmetic bounds both).
    """
    key = f"{launch.NAMES[x.dtype]} {weight.shape[0]}"
    return launch.choice("resblock", key, x.device) == "one_kernel" and able_block(x, weight)


def able_block(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel of a whole ResBlock runs here and was found right. Operands as in `serves`."""
    return tuple(weight.shape[:2]) == (64, 64) and _describable(x) and _works(_block, x.dtype, x.device)


def _describable(x: Tensor) -> bool:
    """Whether the kernels run on x's device and TMA takes x: its strides must be multiples of 16 bytes."""
    n, _, h, w = x.shape
    strides = (x.stride(2) if h > 1 else 8, x.stride(0) if n > 1 else 8)
    return (
        x.dtype in (torch.float16, torch.bfloat16)
        and launch.architecture(x.device) == 90
        and w >= MIN_WIDTH
        and x.data_ptr() % 16 == 0
        and all(stride > 0 and stride % 8 == 0 for stride in strides)
    )


def conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor, relu: bool, scale: float, skip: Tensor | None, padding: int, out: Tensor
) -> None:
    """out = skip + scale * relu(x * weight + bias), computed in fp32 and rounded once.

    x: [N, Ci, H + 2 - 2*padding, W], weight: [Co, Ci, 3, 3], bias: [Co], skip and out: [N, Co, H, W]; all of one
    dtype, fp16 or bf16. Maps and weight are channels_last; rows and pictures of maps may lie apart. padding: rows of
    zeros above and below x, 1 or 0. out must not overlap x, but may be skip. For operands that `able` has accepted.
    """
    kernel = next(k for k in _kernels(weight.shape[0]) if _verdicts.get((k.__name__, x.dtype, x.device), True))
    kernel(x, weight, bias, relu, scale, skip, padding, out)


def _conv64(x, weight, bias, relu, scale, skip, padding, out) -> None:
    default = {"SLOTS": 10, "num_warps": 4, "maxnreg": 168}
    config = launch.config("hopper_conv64", launch.NAMES[x.dtype], default, x.device)
    _line_buffer(x, weight, bias, relu, scale, skip, padding, out, COPIES=1, **config)


def _conv64_of_copies(x, weight, bias, relu, scale, skip, padding, out) -> None:
    options = {"SLOTS": 4, "num_warps": 4, "maxnreg": 168}  # more rows would not fit
    _line_buffer(x, weight, bias, relu, scale, skip, padding, out, COPIES=3, **options)


def _line_buffer(x, weight, bias, relu, scale, skip, padding, out, **options) -> None:
    from kernels.hopper_conv64 import conv3x3_c64

    n, _, h, w = out.shape
    rows = n * h * launch.cdiv(w, 128)
    rows_per_block = launch.cdiv(rows, launch.multiprocessors(x.device))
    launch.run(
        conv3x3_c64,
        (launch.cdiv(rows, rows_per_block),),
        describe(x, 128),
        describe(x, 8),
        weight,
        bias,
        describe(out if skip is None else skip, 128),
        describe(out, 128),
        rows_per_block,
        padding,
        float(scale),
        RELU=relu,
        SKIP=skip is not None,
        **options,
    )


def _conv_wide(x, weight, bias, relu, scale, skip, padding, out) -> None:
    from kernels.hopper_conv256 import conv3x3_wide

    default = {"X_SLOTS": 6, "W_SLOTS": 3, "num_warps": 4, "maxnreg": 168}
    n, co, h, w = out.shape
    ci = weight.shape[1]
    tiles = n * launch.cdiv(h, 2) * launch.cdiv(w, 128) * (co // 128)
    launch.run(
        conv3x3_wide,
        (min(tiles, launch.multiprocessors(x.device)),),
        describe(x, 128),
        describe(x, 8),
        _descriptor(weight, [co, 9 * ci], [9 * ci, 1], [128, 64]),
        bias,
        describe(out if skip is None else skip, 128),
        describe(out, 128),
        padding,
        float(scale),
        RELU=relu,
        SKIP=skip is not None,
        **launch.config("hopper_conv256", f"{launch.NAMES[x.dtype]} {ci}-{co}", default, x.device),
    )


def _block(x, weight, bias, relu, scale, skip, padding, out) -> None:
    """The ResBlock of twice the same convolution, for its check. relu, skip and padding are what the block says."""
    from kernels.resblock import resblock

    resblock(x, weight, bias, weight, bias, scale, out)


def describe(x: Tensor, pixels: int) -> Any:
    """TMA's description of a map [N, C, H, W] as [N, H, W, C], to be copied in boxes of 64 channels of some pixels."""
    n, c, h, w = x.shape
    # The stride of a dimension of size 1 is arbitrary in torch, and TMA is particular.
    row = x.stride(2) if h > 1 else w * c
    picture = x.stride(0) if n > 1 else h * row
    return _descriptor(x, [n, h, w, c], [picture, row, c, 1], [1, 1, pixels, 64])


def _descriptor(base: Tensor, shape: list[int], strides: list[int], box: list[int]) -> Any:
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    return TensorDescriptor(base, shape, strides, box, _swizzled(len(box)))


@cache
def _swizzled(rank: int) -> Any:
    """How a box lies in shared memory."""
    from triton.experimental.gluon.language import NVMMASharedLayout

    return NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=rank)


def _works(kernel: Callable[..., None], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a kernel has been found right on this device: checked once, and remembered.

    A CUDA graph must not record the check: until it has been made elsewhere the answer is then False.
    """
    if launch.compiling():
        return True  # nothing runs
    key = (kernel.__name__, dtype, device)
    if key not in _verdicts:
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                return False
            _verdicts[key] = _check(kernel, dtype, device)
    return _verdicts[key]


def _check(kernel: Callable[..., None], dtype: torch.dtype, device: torch.device) -> bool:
    """Compares a kernel with the portable one, in the forms that a ResBlock needs, on more than a strip of columns."""
    channels = 256 if kernel is _conv_wide else 64
    random = torch.Generator().manual_seed(0)  # the process's own random numbers stay as they are

    def draw(*size: int) -> Tensor:
        values = torch.randn(size, generator=random).to(device, dtype)
        return values.contiguous(memory_format=torch.channels_last) if len(size) == 4 else values

    x, tall = draw(1, channels, 5, 150), draw(1, channels, 7, 150)
    weight, bias = draw(channels, channels, 3, 3) / (3 * channels**0.5), draw(channels)
    # x, relu, scale, skip, padding
    problems = [(x, True, 1.0, None, 1), (tall, False, 0.5, x, 0)]
    if kernel is _block:
        problems = [(x, True, 0.5, x, 1)]
    try:
        for x, *options in problems:
            found = torch.full((1, channels, 5, 150), torch.nan, dtype=dtype, device=device)
            found = found.contiguous(memory_format=torch.channels_last)
            expected = torch.empty_like(found)
            kernel(x, weight, bias, *options, found)
            _compute_portably(kernel, x, weight, bias, *options, expected)
            error = ((found.float() - expected.float()).norm() / expected.float().norm()).item()
            if not error < 1e-2:  # nor is NaN
                log.debug("%s in %s: differs by %.1e; the portable kernel serves", kernel.__name__, dtype, error)
                return False
    except Exception as error:
        log.debug("%s in %s: %s; the portable kernel serves", kernel.__name__, dtype, error)
        return False
    return True


def _compute_portably(kernel, x, weight, bias, relu, scale, skip, padding, out) -> None:
    """What `kernel` computes, by the portable one."""
    if kernel is _block:
        hidden = torch.empty_like(x)
        portable(x, weight, bias, True, 1.0, None, 1, 1, hidden)
        portable(hidden, weight, bias, False, scale, x, 1, 1, out)
    else:
        portable(x, weight, bias, relu, scale, skip, 1, padding, out)

"""The convolutions that Hopper GPUs (sm_90) compute by kernels of their own, where those have been found right.

`edsr.kernels.triton.conv3x3` asks `should_use` and falls back on its portable kernel. The Hopper kernels are written in
Gluon, part of Triton but experimental, and imported when first needed. None is launched before
`edsr.kernels.triton.hopper.probe` has found it right on this kind of GPU (`edsr.kernels.triton.hopper.verification`):
a kernel that hangs takes its process with it.

Letters: N images, H rows, W columns, Ci and Co channels in and out.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .. import launch
from . import verification
from .tma import descriptor, tensor_descriptor

logger = logging.getLogger(__name__)

# The kernels compute 128 pixels of a row at once. In narrower images more than half of the work would be lost, which
# is more than the portable kernel is expected to lose otherwise. A bound from a model, not measured.
MIN_WIDTH = 64


def should_use(x: Tensor, weight: Tensor, shuffle: int) -> bool:
    """Whether `conv3x3` here is to compute this convolution: it is able to, and was not measured to be slower.

    x: [N, Ci, H, W] and weight [Co, Ci, 3, 3], both channels_last.
    """
    measured = [launch.choice(op, f"{launch.NAMES[x.dtype]} {weight.shape[0]}", x.device) for op in ("relu", "skip")]
    return measured != ["portable", "portable"] and supports(x, weight, shuffle)


def supports(x: Tensor, weight: Tensor, shuffle: int) -> bool:
    """Whether there is a kernel for this convolution that runs here and was found right."""
    co, ci = weight.shape[:2]
    known = ci == co == 64 or (ci % 64 == 0 and co % 128 == 0)
    if not known or shuffle != 1 or not _describable(x):
        return False
    return any(is_verified(kernel, x.dtype, x.device) for kernel in _fitting(co))


def _fitting(co: int) -> tuple[str, ...]:
    """Kernels for this many channels out, the first that is trusted to be used."""
    return ("c64", "copies") if co == 64 else ("wide",)


def should_use_block(x: Tensor, weight: Tensor) -> bool:
    """Whether `edsr.kernels.triton.hopper.resblock.resblock` is to compute a block: it is able to, and was measured
    to be the fastest.

    Without a measurement it is not used: in fp16 it is expected to be no faster than two convolutions where memory
    is as fast as a Hopper's (half the traffic, 2 % more arithmetic, and arithmetic bounds both).
    """
    key = f"{launch.NAMES[x.dtype]} {weight.shape[0]}"
    return launch.choice("resblock", key, x.device) == "one_kernel" and supports_block(x, weight)


def supports_block(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel of a whole ResBlock runs here and was found right. Operands as in `should_use`."""
    return tuple(weight.shape[:2]) == (64, 64) and _describable(x) and is_verified("block", x.dtype, x.device)


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
    dtype, fp16 or bf16. Maps and weight are channels_last; rows and images of maps may lie apart. padding: rows of
    zeros above and below x, 1 or 0. out must not overlap x, but may be skip. For operands that `supports` has accepted.
    """
    fitting = _fitting(weight.shape[0])
    name = next((name for name in fitting if is_verified(name, x.dtype, x.device)), fitting[0])
    KERNELS[name](x, weight, bias, relu, scale, skip, padding, out)


def _conv64(x, weight, bias, relu, scale, skip, padding, out) -> None:
    default = {"SLOTS": 10, "num_warps": 4, "maxnreg": 168}
    config = launch.config("hopper_conv64", launch.NAMES[x.dtype], default, x.device)
    _line_buffer(x, weight, bias, relu, scale, skip, padding, out, COPIES=1, **config)


def _conv64_of_copies(x, weight, bias, relu, scale, skip, padding, out) -> None:
    options = {"SLOTS": 4, "num_warps": 4, "maxnreg": 168}  # more rows would not fit
    _line_buffer(x, weight, bias, relu, scale, skip, padding, out, COPIES=3, **options)


def _line_buffer(x, weight, bias, relu, scale, skip, padding, out, **options) -> None:
    from .conv64 import conv3x3_c64

    n, _, h, w = out.shape
    rows = n * h * launch.cdiv(w, 128)
    rows_per_block = launch.cdiv(rows, launch.multiprocessors(x.device))
    launch.run(
        conv3x3_c64,
        (launch.cdiv(rows, rows_per_block),),
        tensor_descriptor(x, 128),
        tensor_descriptor(x, 8),
        weight,
        bias,
        tensor_descriptor(out if skip is None else skip, 128),
        tensor_descriptor(out, 128),
        rows_per_block,
        padding,
        float(scale),
        RELU=relu,
        SKIP=skip is not None,
        **options,
    )


def _conv_wide(x, weight, bias, relu, scale, skip, padding, out) -> None:
    from .conv_wide import conv3x3_wide

    default = {"X_SLOTS": 6, "W_SLOTS": 3, "num_warps": 4, "maxnreg": 168}
    n, co, h, w = out.shape
    ci = weight.shape[1]
    tiles = n * launch.cdiv(h, 2) * launch.cdiv(w, 128) * (co // 128)
    launch.run(
        conv3x3_wide,
        (min(tiles, launch.multiprocessors(x.device)),),
        tensor_descriptor(x, 128),
        tensor_descriptor(x, 8),
        descriptor(weight, [co, 9 * ci], [9 * ci, 1], [128, 64]),
        bias,
        tensor_descriptor(out if skip is None else skip, 128),
        tensor_descriptor(out, 128),
        padding,
        float(scale),
        RELU=relu,
        SKIP=skip is not None,
        **launch.config("hopper_conv256", f"{launch.NAMES[x.dtype]} {ci}-{co}", default, x.device),
    )


def _block(x, weight, bias, relu, scale, skip, padding, out) -> None:
    """The ResBlock of twice the same convolution, for its check. relu, skip and padding are what the block says."""
    from .resblock import resblock

    resblock(x, weight, bias, weight, bias, scale, out)


KERNELS: dict[str, Callable[..., None]] = {
    "c64": _conv64,
    "copies": _conv64_of_copies,
    "wide": _conv_wide,
    "block": _block,
}


def is_verified(kernel: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether one of KERNELS was found right on this device, as far as was known when this process first asked."""
    if launch.compiling() or device.type != "cuda":
        return True  # nothing runs, or not on a GPU
    key = verification.key(kernel, dtype)
    verdict = verification.settled(device).get(key)
    if verdict is None:
        _say_untried(device)
    elif verdict != verification.RIGHT:
        _say_not_right(device, key, verdict)
    return verdict == verification.RIGHT


@cache
def _say_untried(device: torch.device) -> None:
    logger.warning(
        "the fastest kernels have not been tried on this %s; until `python -m %s.probe` has found them right (half a "
        "minute, once), portable kernels serve",
        torch.cuda.get_device_properties(device).name,
        __package__,
    )


@cache
def _say_not_right(device: torch.device, key: str, verdict: str) -> None:
    logger.info("kernel %s is not used on this %s: %s", key, torch.cuda.get_device_properties(device).name, verdict)

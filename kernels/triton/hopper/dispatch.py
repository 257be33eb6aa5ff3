"""The convolutions that Hopper GPUs (sm_90) compute by kernels of their own, where those have been verified.

`edsr.kernels.triton.ops` asks `should_use` and falls back on the portable kernel. The Hopper kernels are written in
Gluon, part of Triton but experimental, and imported when first needed. None is launched before
`edsr.kernels.triton.hopper.probe` has verified it on this kind of GPU (`edsr.kernels.triton.hopper.verification`): a
kernel that hangs takes its process with it.

Letters: N images, H rows, W columns, Ci and Co channels in and out.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .. import launch
from . import verification

logger = logging.getLogger(__name__)

# The kernels compute 128 pixels of a row at once. In narrower images more than half of the work would be lost, which
# is more than the portable kernel is expected to lose otherwise. A bound from a model, not measured.
MIN_WIDTH = 64


def should_use(x: Tensor, weight: Tensor, shuffle: int) -> bool:
    """Whether `conv3x3` here should compute this convolution: it can, and was not measured to be slower.

    x: [N, Ci, H, W] and weight [Co, Ci, 3, 3], both channels_last.
    """
    measured = [
        launch.choice(op, f"{launch.DTYPE_NAMES[x.dtype]} {weight.shape[0]}", x.device) for op in ("relu", "skip")
    ]
    return measured != ["portable", "portable"] and supports(x, weight, shuffle)


def supports(x: Tensor, weight: Tensor, shuffle: int) -> bool:
    """Whether there is a kernel for this convolution that runs here and is verified."""
    co, ci = weight.shape[:2]
    known = ci == co == 64 or (ci % 64 == 0 and co % 128 == 0)
    if not known or shuffle != 1 or not _fits_tma(x):
        return False
    return any(is_verified(kernel, x.dtype, x.device) for kernel in _candidates(co))


def _candidates(co: int) -> tuple[str, ...]:
    """Kernels for this many channels out, in order of preference."""
    return ("c64", "copies") if co == 64 else ("wide",)


def should_use_block(x: Tensor, weight: Tensor) -> bool:
    """Whether `edsr.kernels.triton.hopper.resblock.resblock` should compute a block: it can, and was measured to be
    the fastest.

    Without a measurement it is not used: in fp16 it is expected to be no faster than two convolutions where memory
    is as fast as a Hopper's (half the traffic, 2 % more arithmetic, and arithmetic bounds both).
    """
    key = f"{launch.DTYPE_NAMES[x.dtype]} {weight.shape[0]}"
    return launch.choice("resblock", key, x.device) == "one_kernel" and supports_block(x, weight)


def supports_block(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel of a whole ResBlock runs here and is verified. Operands as in `should_use`."""
    return tuple(weight.shape[:2]) == (64, 64) and _fits_tma(x) and is_verified("block", x.dtype, x.device)


def _fits_tma(x: Tensor) -> bool:
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
    fitting = _candidates(weight.shape[0])
    name = next((name for name in fitting if is_verified(name, x.dtype, x.device)), fitting[0])
    KERNELS[name](x, weight, bias, relu, scale, skip, padding, out)


def resblock(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, scale: float, out: Tensor | None
) -> Tensor:
    """See `edsr.kernels.triton.hopper.resblock.resblock`. For operands that `supports_block` has accepted."""
    from . import resblock as kernel

    return kernel.resblock(x, weight1, bias1, weight2, bias2, scale, out)


def _c64(*operands) -> None:
    from . import conv64

    conv64.convolve(*operands)


def _copies(*operands) -> None:
    from . import conv64

    conv64.convolve_copies(*operands)


def _wide(*operands) -> None:
    from . import conv_wide

    conv_wide.convolve(*operands)


def _block(x, weight, bias, relu, scale, skip, padding, out) -> None:
    """The ResBlock of twice the same convolution, for its check. relu, skip and padding are what the block says."""
    resblock(x, weight, bias, weight, bias, scale, out)


# By name; operands as of `conv3x3`. Their modules need Gluon and are imported when first used.
KERNELS: dict[str, Callable[..., None]] = {
    "c64": _c64,
    "copies": _copies,
    "wide": _wide,
    "block": _block,
}


def is_verified(kernel: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether one of KERNELS is verified on this device, as far as was known when this process first asked."""
    if launch.compiling() or device.type != "cuda":
        return True  # nothing runs, or not on a GPU
    key = verification.key(kernel, dtype)
    status = verification.process_statuses(device).get(key)
    if status is None:
        _log_untried(device)
    elif status != verification.VERIFIED:
        _log_unverified(device, key, status)
    return status == verification.VERIFIED


@cache
def _log_untried(device: torch.device) -> None:
    logger.warning(
        "the fastest kernels have not been tried on this %s; until `python -m %s.probe` has verified them (half a "
        "minute, once), portable kernels serve",
        torch.cuda.get_device_properties(device).name,
        __package__,
    )


@cache
def _log_unverified(device: torch.device, key: str, status: str) -> None:
    logger.info("kernel %s is not used on this %s: %s", key, torch.cuda.get_device_properties(device).name, status)

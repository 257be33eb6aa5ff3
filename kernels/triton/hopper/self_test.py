"""Whether a kernel for Hopper GPUs computes what the portable one does. One that hangs is ended by
`edsr.kernels.triton.hopper.probe`."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import launch
from ..conv3x3 import portable
from .dispatch import KERNELS

WIDTH = 150  # columns: more than a strip
# Rows with which, on one multiprocessor, every ring wraps around at least three times.
ROWS = {"c64": 16, "copies": 16, "wide": 5, "block": 16}


def check(kernel: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """Compares one of `dispatch.KERNELS` with the portable kernel, in the forms that a ResBlock needs.

    Once with the work spread over all multiprocessors, where a block of threads computes a row or two, and once with
    all of it in one block, where every slot of its rings is filled, released and filled again. Both must give the same
    bits: a result must not depend on the block that computed it.

    Returns:
        None, or what is wrong, in a line.
    """
    for *operands, out in _problems(kernel, dtype, device):
        expected = torch.empty_like(out)
        _compute_portably(kernel, *operands, expected)
        spread, together = out, out.clone(memory_format=torch.preserve_format)
        KERNELS[kernel](*operands, spread)
        with launch.limit_multiprocessors(1):
            KERNELS[kernel](*operands, together)
        for found, how in ((spread, "spread over the GPU"), (together, "in one block")):
            error = ((found.float() - expected.float()).norm() / expected.float().norm()).item()
            if not error < 1e-2:  # nor is NaN
                return f"{how} it differs from the portable kernel by {error:.1e}"
        if not torch.equal(spread, together):
            return "its bits depend on which block computes a row"
    return None


def compile_check(kernel: str, dtype: torch.dtype, arch: int) -> None:
    """Compiles all that `check` launches into Triton's cache, and launches nothing."""
    with launch.compile_only(arch, lambda name, compiled: None):
        for *operands, out in _problems(kernel, dtype, torch.device("meta")):
            _compute_portably(kernel, *operands, out)
            KERNELS[kernel](*operands, out)


def _problems(kernel: str, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Any, ...]]:
    """Operands of `dispatch.conv3x3`: (x, weight, bias, relu, scale, skip, padding, out full of NaN)."""
    channels, rows = 256 if kernel == "wide" else 64, ROWS[kernel]
    random = torch.Generator().manual_seed(0)  # the process's own random numbers stay as they are

    def draw(*size: int) -> Tensor:
        values = torch.randn(size, generator=random).to(device, dtype)
        return values.contiguous(memory_format=torch.channels_last) if len(size) == 4 else values

    x, tall = draw(1, channels, rows, WIDTH), draw(1, channels, rows + 2, WIDTH)
    weight, bias = draw(channels, channels, 3, 3) / (3 * channels**0.5), draw(channels)
    out = torch.full_like(x, torch.nan)
    if kernel == "block":
        yield x, weight, bias, True, 0.5, x, 1, out
    else:
        yield x, weight, bias, True, 1.0, None, 1, out
        yield tall, weight, bias, False, 0.5, x, 0, out.clone(memory_format=torch.preserve_format)


def _compute_portably(kernel, x, weight, bias, relu, scale, skip, padding, out) -> None:
    """What `kernel` computes, by the portable one."""
    if kernel == "block":
        hidden = torch.empty_like(x)
        portable(x, weight, bias, True, 1.0, None, 1, 1, hidden)
        portable(hidden, weight, bias, False, scale, x, 1, 1, out)
    else:
        portable(x, weight, bias, relu, scale, skip, 1, padding, out)

"""The beginning of the network, image -> features, in one kernel."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..interface import TO_UNIT
from . import launch
from .conv3x3 import precision
from .launch import Config, KernelError


# Sizes are not specialized on: a kernel compiled for one image serves all.
@triton.jit(do_not_specialize=["H", "W", "rows", "pad_top", "x_image", "x_row", "x_column", "x_channel"])
def _head(
    x_ptr,  # [N, rows, W, 3] in any order
    weight_ptr,  # [Co, 3, 3, 3]
    bias_ptr,  # [Co]
    out_ptr,  # [N, H, W, Co]
    H,
    W,
    rows,
    pad_top,
    x_image,  # strides of x and out, in elements
    x_row,
    x_column,
    x_channel,
    out_image,
    out_row,
    unit,
    mean_r,
    mean_g,
    mean_b,
    Co: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_CO: tl.constexpr,
):
    co = tl.program_id(1) * BLOCK_CO + tl.arange(0, BLOCK_CO)
    blocks_w = tl.cdiv(W, BLOCK_W)
    pid = tl.program_id(0)
    w = (pid % blocks_w) * BLOCK_W + tl.arange(0, BLOCK_W)
    pid = pid // blocks_w
    h = pid % H
    n = (pid // H).to(tl.int64)
    # The 27 terms of each sum, padded to 32: k = 9·dy + 3·dx + channel, the order of the weight in memory.
    k = tl.arange(0, 32)
    row = h + k // 9 - pad_top
    column = w[:, None] + (k // 3 % 3 - 1)[None, :]
    channel = k % 3
    mask = ((row >= 0) & (row < rows) & (k < 27))[None, :] & (column >= 0) & (column < W)
    x_ptr += n * x_image
    x_offset = (row.to(tl.int64) * x_row + channel * x_channel)[None, :] + column * x_column
    x = tl.load(x_ptr + x_offset, mask=mask, other=0).to(tl.float32)
    mean = tl.where(channel == 0, mean_r, tl.where(channel == 1, mean_g, mean_b))
    # The padding is zero after the mean is gone.
    x = tl.where(mask, x * unit - mean[None, :], 0.0).to(weight_ptr.dtype.element_ty)
    mask_co = co < Co
    weight = tl.load(weight_ptr + co[None, :] * 27 + k[:, None], mask=(k < 27)[:, None] & mask_co[None, :], other=0.0)
    y = tl.dot(x, weight, input_precision=PRECISION)
    y += tl.load(bias_ptr + co, mask=mask_co, other=0.0).to(tl.float32)[None, :]
    out_ptr += n * out_image + h.to(tl.int64) * out_row
    tl.store(
        out_ptr + w[:, None] * Co + co[None, :],
        y.to(out_ptr.dtype.element_ty),
        mask=(w < W)[:, None] & mask_co[None, :],
    )


def head(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Sequence[float],
    padding: tuple[int, int] = (1, 1),
    out: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """conv3x3(x - mean), x in 0..1; `edsr.kernels.reference.head` in one kernel.

    Args:
        x: [N, 3, H, W] RGB, uint8 or uint16 of full range or float32 in 0..1, any strides.
        weight: [Co, 3, 3, 3] channels_last, fp16, bf16 or fp32.
        bias: [Co] of the same dtype.
        mean: RGB, subtracted from x.
        padding: Rows of zeros above and below, each 0 or 1.
        out: Where to write, [N, Co, H', W] channels_last.
        config: Launch configuration, None for the one measured.

    Returns:
        `out`, or a new map of its shape.

    Raises:
        KernelError: An operand is none of these.
    """
    n, _, rows, w = x.shape
    co, height = weight.shape[0], rows - 2 + sum(padding)
    size = (n, co, height, w)
    _check(x, weight, bias, out, size)
    if out is None:
        out = torch.empty(size, dtype=weight.dtype, device=x.device, memory_format=torch.channels_last)

    def start(config: Config) -> None:
        launch.run(
            _head,
            (n * height * launch.cdiv(w, config["BLOCK_W"]), launch.cdiv(co, config["BLOCK_CO"])),
            x,
            weight,
            bias,
            out,
            height,
            w,
            rows,
            padding[0],
            x.stride(0),
            x.stride(2),
            x.stride(3),
            x.stride(1),
            *launch.row_strides(out),
            TO_UNIT[x.dtype],
            *mean,
            Co=co,
            PRECISION=precision(weight.dtype),
            **config,
        )

    if config is not None:
        start(config)
    else:
        key = f"{launch.DTYPE_NAMES[weight.dtype]} {co}"
        launch.run_configured("head", key, default_configs(co), x.device, start)
    return out


def default_configs(co: int) -> list[Config]:
    """Configurations that fit every GPU from sm_80 on, the best guess first, then a smaller one."""
    return [
        {"BLOCK_W": 128, "BLOCK_CO": 64 if co >= 64 else 16, "num_warps": 4, "num_stages": 1},
        {"BLOCK_W": 32, "BLOCK_CO": 16, "num_warps": 4, "num_stages": 1},
    ]


def _check(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None, size: tuple[int, ...]) -> None:
    launch.check_device("head", weight, x=x)
    if x.shape[1] != 3 or x.dtype not in TO_UNIT:
        expected = "uint8, uint16 or float32 [N, 3, H, W]"
        raise KernelError(f"head: x is {x.dtype} {list(x.shape)}, which should be {expected}")
    launch.check_operands(
        "head",
        weight,
        maps={"out": (out, size)},
        parameters={"weight": (weight, (size[1], 3, 3, 3)), "bias": (bias, (size[1],))},
        result=size,
    )

"""The end of the network, features -> image, in two kernels.

The tail is the 5x5 convolution that `edsr.models.folding` makes of upsampler and tail, from Ci to O = 3·r² outputs.
Done directly it would read each feature 25 times. Here a matrix product first sums over Ci and the five rows for each
of the five columns by itself,

    partial[h, p, (dx, o)] = sum over dy, ci of weight[o, ci, dy, dx] · x[h + dy - 2, p, ci],

and a second kernel adds five neighbors, output[h, w, o] = sum over dx of partial[h, w + dx - 2, (dx, o)], and makes
pixels of them. Five reads instead of 25, and 5·O columns fill the matrix units, where O alone would not.

A partial sum belongs to one output column, w = p + 2 - dx. So the weights of the border ring, which depend on the
output's row and column, can be chosen in the first kernel: by row throughout, and for the six (p, dx) that meet the
first and the last column in a few extra programs, whose pixels run down a column instead of along a row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..interface import MAX_VALUE, RAW_OUTPUT, OutputSpec
from . import launch
from .conv3x3 import precision
from .launch import Config

PARTIAL_BYTES = 24 << 20  # of partial sums at a time, so that they stay in the L2 cache (40 MB on sm_80, 50 on sm_90)

SUM_PIXELS = 32  # a program of the second kernel makes; with 64 ptxas aims at 80 registers and spills (x3, uint16)


@triton.jit
def _border_class(h, rows, top, bottom):
    """0 inside, 1 in the image's first row, 2 in its last, 3 in its only one (`edsr.kernels.reference.INNER` and
    on)."""
    return (h == 0).to(tl.int32) * top + (h == rows - 1).to(tl.int32) * (2 * bottom)


# Sizes are not specialized on: kernels compiled for one image serve all.
@triton.jit(do_not_specialize=["first", "last", "rows", "W", "top", "bottom"])
def _tail_partial(
    x_ptr,  # one image, [rows + 4 - 2·PADDING, W, Ci]
    weight_ptr,  # [4, 4, O, 5, 5, Ci]
    partial_ptr,  # [last - first, W, columns]
    first,  # the strip of rows to compute
    last,
    rows,
    W,
    top,
    bottom,
    x_row,
    Ci: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    PADDING: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    m = tl.arange(0, BLOCK_W)
    pid = tl.program_id(0)
    blocks_w = tl.cdiv(W, BLOCK_W)
    along_rows = (last - first) * blocks_w
    if pid < along_rows:  # the pixels of a tile lie along a row
        h = first + pid // blocks_w
        w = (pid % blocks_w) * BLOCK_W
        down = 0
        row_class = _border_class(h, rows, top, bottom)
        column_class = 0
        only_dx = -1
        end = 1
    else:  # they lie down a column, for one (p, dx) that meets the first or the last output column
        inside = tl.cdiv(last - first, BLOCK_W)
        blocks_h = inside + 2 * ((first == 0) | (last == rows)).to(tl.int32)
        pid -= along_rows
        pair = pid // blocks_h
        block = pid % blocks_h
        left = pair < 3
        only_dx = tl.where(left, pair + 2, pair - 3)
        w = tl.where(left, pair, W - 6 + pair)
        column_class = tl.where(W == 1, 3, tl.where(left, 1, 2))
        if block < inside:
            h = first + block * BLOCK_W
            down = 1
            row_class = 0
            end = last
        else:  # the image's first row or its last
            h = tl.where(block == inside, 0, rows - 1)
            down = 0
            row_class = _border_class(h, rows, top, bottom)
            end = ((h >= first) & (h < last) & (row_class != 0)).to(tl.int32)
        end *= ((w >= 0) & (w < W) & (left | (W > 1))).to(tl.int32)
    h_m = h + m * down
    w_m = w + m * (only_dx < 0).to(tl.int32)

    j = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    dx = j // O
    o = j % O
    mask_j = j < 5 * O
    ci = tl.arange(0, BLOCK_CI)
    weight_ptr += (row_class * 4 + column_class) * (O * 25 * Ci)
    weight_offset = o * (25 * Ci) + dx * Ci
    x_offset = h_m.to(tl.int64) * x_row + w_m * Ci
    mask_w = (w_m >= 0) & (w_m < W)

    acc = tl.zeros((BLOCK_W, BLOCK_J), tl.float32)
    CHUNKS: tl.constexpr = Ci // BLOCK_CI
    for step in range(5 * CHUNKS):
        dy = step // CHUNKS
        c0 = (step % CHUNKS) * BLOCK_CI
        row = h_m + (dy - PADDING)
        mask = mask_w & (row >= 0) & (row < rows + 4 - 2 * PADDING)
        x_step = (dy - PADDING) * x_row + c0
        x = tl.load(x_ptr + (x_offset + x_step)[:, None] + ci[None, :], mask=mask[:, None], other=0.0)
        weight = tl.load(
            weight_ptr + weight_offset[:, None] + (dy * (5 * Ci) + c0) + ci[None, :], mask=mask_j[:, None], other=0.0
        )
        acc = tl.dot(x, weight.T, acc, input_precision=PRECISION)

    if only_dx < 0:
        column = w_m[:, None] + (2 - dx)[None, :]
        mask = mask_w[:, None] & (column > 0) & (column < W - 1)
    elif down == 1:
        mask_h = (h_m < end) & (_border_class(h_m, rows, top, bottom) == 0)
        mask = mask_h[:, None] & (dx == only_dx)[None, :]
    else:
        mask = (m < end)[:, None] & (dx == only_dx)[None, :]
    partial_offset = ((h_m - first).to(tl.int64) * W + w_m) * COLUMNS
    tl.store(
        partial_ptr + partial_offset[:, None] + j[None, :],
        acc.to(partial_ptr.dtype.element_ty),
        mask=mask & mask_j[None, :],
    )


@triton.jit(do_not_specialize=["first", "rows", "W", "top", "bottom", "out_row"])
def _tail_sum(
    partial_ptr,  # [last - first, W, columns]
    bias_ptr,  # [4, 4, O]
    out_ptr,  # one image, [R·rows, R·W, 3]
    overflow_ptr,  # [1]
    first,
    rows,
    W,
    top,
    bottom,
    out_row,
    mean_r,
    mean_g,
    mean_b,
    O: tl.constexpr,  # noqa: E741
    R: tl.constexpr,
    MAX_VALUE: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_O: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    blocks_w = tl.cdiv(W, BLOCK_W)
    line = tl.program_id(0) // blocks_w
    w = (tl.program_id(0) % blocks_w) * BLOCK_W + tl.arange(0, BLOCK_W)
    h = first + line
    o = tl.arange(0, BLOCK_O)
    mask_w = w < W
    mask_o = o < O
    partial_ptr += line.to(tl.int64) * W * COLUMNS
    acc = tl.zeros((BLOCK_W, BLOCK_O), tl.float32)
    for dx in tl.static_range(5):
        p = w + (dx - 2)
        mask = ((p >= 0) & (p < W) & mask_w)[:, None] & mask_o[None, :]
        acc += tl.load(partial_ptr + p[:, None] * COLUMNS + (dx * O + o)[None, :], mask=mask, other=0.0).to(tl.float32)
    border = _border_class(h, rows, top, bottom) * 4 + _border_class(w, W, 1, 1)
    mask = mask_w[:, None] & mask_o[None, :]
    acc += tl.load(bias_ptr + border[:, None] * O + o[None, :], mask=mask, other=0.0).to(tl.float32)
    channel = o // (R * R)
    acc += tl.where(channel == 0, mean_r, tl.where(channel == 1, mean_g, mean_b))[None, :]
    broken = tl.where(mask, acc - acc, 0.0) != 0.0  # NaN and infinities alone differ from themselves
    if tl.max(tl.max(broken.to(tl.int32), 1), 0) != 0:
        tl.store(overflow_ptr, 1)
    if MAX_VALUE > 0:
        acc = tl.minimum(tl.maximum(acc, 0.0), 1.0) * MAX_VALUE
        acc = (acc + 12582912.0) - 12582912.0  # 1.5·2²³: leaves no digits behind the point, ties to even
    out_ptr += (R * h).to(tl.int64) * out_row
    offset = (o // R % R) * out_row + (o % R) * 3 + channel
    tl.store(out_ptr + (3 * R * w)[:, None] + offset[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask)


def collapsed_tail(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Sequence[float],
    shuffle: int,
    result: OutputSpec = RAW_OUTPUT,
    padding: int = 2,
    ends: tuple[bool, bool] = (True, True),
    config: Config | None = None,
    partial_bytes: int = PARTIAL_BYTES,
) -> Tensor:
    """pixel_shuffle(conv5x5(x)) + mean, border ring exact; `edsr.kernels.reference.collapsed_tail` in two kernels.

    Args:
        x: [N, Ci, H, W] channels_last, fp16, bf16 or fp32, Ci a multiple of 16.
        weight: [4, 4, 3·r², Ci, 5, 5] of x's dtype, with Ci innermost in memory (`edsr.models.folding`).
        bias: [4, 4, 3·r²].
        mean: RGB, added to the result.
        shuffle: r.
        result: What to return.
        padding: Rows of zeros above and below, 2 or 0 (x then carries them).
        ends: Whether the first and the last row of the result are the image's.
        config: Launch configuration of the first kernel, None for the one measured.
        partial_bytes: Of partial sums that are kept at a time.

    Returns:
        [N, 3, r·H', r·W] channels_last, in fp32 or result.dtype.

    Raises:
        KernelError: An operand is none of these.
    """
    n, ci, height, w = x.shape
    rows, outputs = height - 4 + 2 * padding, 3 * shuffle * shuffle
    launch.check_device("collapsed_tail", x, overflow=result.overflow)
    launch.check_operands(
        "collapsed_tail",
        x,
        maps={"x": (x, (n, ci, height, w))},
        parameters={"weight": (weight, (4, 4, outputs, ci, 5, 5)), "bias": (bias, (4, 4, outputs))},
        result=(n, 3, shuffle * rows, shuffle * w),
        channels=ci,
    )
    columns = launch.cdiv(5 * outputs, 16) * 16
    tallest = max(1, min(rows, partial_bytes // (w * columns * x.element_size())))
    partial = torch.empty((tallest, w, columns), dtype=x.dtype, device=x.device)
    out = torch.empty((n, shuffle * rows, shuffle * w, 3), dtype=result.dtype or torch.float32, device=x.device)
    overflow = result.overflow if result.overflow is not None else x.new_zeros(1, dtype=torch.int32)

    def start(config: Config) -> None:
        for image, target in zip(x, out, strict=True):
            for first in range(0, rows, tallest):
                strip = _Strip(first, min(first + tallest, rows), rows, w, *map(int, ends))
                _sum_rows(image, weight, partial, strip, padding, config)
                _sum_columns(partial, bias, target, overflow, strip, mean, shuffle, MAX_VALUE[result.dtype])

    if config is not None:
        start(config)
    else:
        key, defaults = f"{launch.DTYPE_NAMES[x.dtype]} {ci}-{outputs}", default_configs(ci, outputs, x.dtype, x.device)
        launch.run_configured("collapsed_tail", key, defaults, x.device, start)
    return out.permute(0, 3, 1, 2)


class _Strip(NamedTuple):
    """Rows of a result that are computed at once."""

    first: int
    last: int  # exclusive
    rows: int  # of the whole result
    width: int
    top: int  # whether the result's first row is the image's
    bottom: int


def _sum_rows(image: Tensor, weight: Tensor, partial: Tensor, strip: _Strip, padding: int, config: Config) -> None:
    """partial = the sums over channels and five rows. image: [Ci, H, W]."""
    first, last, rows, w, top, bottom = strip
    columns, block_w = partial.shape[2], config["BLOCK_W"]
    at_border = first == 0 or last == rows
    inner = (last - first) * launch.cdiv(w, block_w)
    border = 6 * (launch.cdiv(last - first, block_w) + 2 * at_border)
    launch.run(
        _tail_partial,
        (inner + border, launch.cdiv(columns, config["BLOCK_J"])),
        image,
        weight,
        partial,
        first,
        last,
        rows,
        w,
        top,
        bottom,
        image.stride(1),
        Ci=image.shape[0],
        O=weight.shape[2],
        PADDING=padding,
        PRECISION=precision(image.dtype),
        COLUMNS=columns,
        **config,
    )


def _sum_columns(
    partial: Tensor,
    bias: Tensor,
    out: Tensor,
    overflow: Tensor,
    strip: _Strip,
    mean: Sequence[float],
    shuffle: int,
    max_value: int,
) -> None:
    """out = the sums of five columns each, as pixels. out: [r·H, r·W, 3] of one image."""
    first, last, rows, w, top, bottom = strip
    outputs = bias.shape[2]
    # On sm_86 and 89 the 48 sums of a pixel at x4 spill in fp32 (triton 3.7).
    pixels = SUM_PIXELS // 2 if partial.dtype == torch.float32 and outputs > 32 else SUM_PIXELS
    launch.run(
        _tail_sum,
        ((last - first) * launch.cdiv(w, pixels),),
        partial,
        bias,
        out,
        overflow,
        first,
        rows,
        w,
        top,
        bottom,
        out.stride(0),
        *mean,
        O=outputs,
        R=shuffle,
        MAX_VALUE=max_value,
        BLOCK_W=pixels,
        BLOCK_O=triton.next_power_of_2(outputs),
        COLUMNS=partial.shape[2],
        num_warps=4,
    )


def default_configs(ci: int, outputs: int, dtype: torch.dtype, device: torch.device) -> list[Config]:
    """Configurations that fit this device, the best guess first, then a smaller one; tuned for none."""
    channels = next(c for c in (64, 32, 16) if ci % c == 0)
    least = {"BLOCK_W": 32, "BLOCK_J": 32, "BLOCK_CI": min(channels, 32), "num_warps": 4, "num_stages": 2}
    if dtype == torch.float32:
        blocks = {"BLOCK_W": 64, "BLOCK_J": 32, "BLOCK_CI": min(channels, 32)}
        stages = 3 if launch.is_desktop_blackwell(device) else 2  # there two spill (triton 3.7)
        return [blocks | {"num_warps": 4, "num_stages": stages}, least]
    # One block of columns for x2 (5 · 12 = 60), two for x3 (135) and x4 (240).
    blocks = {"BLOCK_W": 128, "BLOCK_J": 64 if outputs <= 12 else 128, "BLOCK_CI": channels}
    # Where registers hold the operands, four warps spill on sm_120 (triton 3.7).
    few_warps = outputs <= 12 and launch.has_asynchronous_products(device)
    configs = [blocks | {"num_warps": 4 if few_warps else 8, "num_stages": 3}, least]
    return launch.fitting(configs, lambda config: operand_bytes(config, dtype), device)


def operand_bytes(config: Config, dtype: torch.dtype) -> int:
    """Shared memory for the operands of a block of the first kernel, at most."""
    return config["num_stages"] * (config["BLOCK_W"] + config["BLOCK_J"]) * config["BLOCK_CI"] * dtype.itemsize

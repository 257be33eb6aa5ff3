"""Gradients of the 3x3 convolution, for training.

By its input (`dgrad`) it is a convolution again, of the flipped weight: taps in reverse, channels exchanged. The kernel
of `edsr.kernels.triton.conv3x3` reads the weight so; a flipped copy would be one or two launches more, for patches a
third of the convolution's time.

By the weight (`wgrad`) it is a matrix product over all pixels p, for each of nine taps (a, b):

    dweight[co, a, b, ci] = sum over p of dy[p, co] · x[p + (a - 1, b - 1), ci]
                          = sum over p of dy[p - (a - 1, 0), co] · x[p + (0, b - 1), ci].

Put the second way, the nine products of some pixels take three shifts of dy by rows and three of x by columns: six
reads from the L2 cache instead of ten or eighteen. The sum over pixels is split (split-K): a block of threads adds up
one split, for a block of channels and all taps, which fills the registers, and writes its sums in fp32; a second kernel
adds those of all splits. No order depends on chance: the same operands give the same bits.

On one H200, in microseconds for 16 images of 48 x 48 of 64 channels in fp16 (`bench.tune`): `dgrad` 12, `wgrad` 17.
Predicted, for 64 and 256 channels, of which the second have not been measured: `dgrad` 12 and 93, all of it reads from
L2. `wgrad` 14 (5 for reads, 7 to write and read the sums) and 91 (82, 7). With three taps to a block of threads
`wgrad` would take 15 and 170; with one tap 18, and 97 in blocks of 128 x 256.
"""

import math
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .conv3x3 import is_small, portable, precision
from .hopper import dispatch
from .launch import Config

ADDED = 128  # elements of a gradient that a program of the second kernel adds: as many programs as fill a GPU


# Sizes are not specialized on: a kernel compiled for one image serves all.
@triton.jit(do_not_specialize=["H", "W", "rectangles", "split"])
def _wgrad(
    x_ptr,  # [N, H, W, Ci]
    dy_ptr,  # [N, H, W, Co]
    sums_ptr,  # [splits, Co * 9 * Ci + Co]: gradients of weight [Co, 3, 3, Ci] and bias [Co]
    H,
    W,
    rectangles,  # of all images
    split,  # how many of them a program takes
    x_image,  # strides of images and rows, in elements; pixels are dense
    x_row,
    dy_image,
    dy_row,
    Ci: tl.constexpr,
    Co: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_CO: tl.constexpr,
    BLOCK_CI: tl.constexpr,
):
    # Channel blocks of one split go side by side, so that they are read from the L2 cache but once.
    blocks_ci: tl.constexpr = Ci // BLOCK_CI
    blocks_co: tl.constexpr = (Co + BLOCK_CO - 1) // BLOCK_CO
    pid = tl.program_id(0)
    block_ci = pid % blocks_ci
    pid = pid // blocks_ci
    ci = block_ci * BLOCK_CI + tl.arange(0, BLOCK_CI)
    co = (pid % blocks_co) * BLOCK_CO + tl.arange(0, BLOCK_CO)
    pid = pid // blocks_co
    mask_co = co < Co

    # Both operands are read as the matrix product wants them: dy^T with its pixels as columns, x with them as rows.
    pixel = tl.arange(0, BLOCK_H * BLOCK_W)
    i = pixel // BLOCK_W
    j = pixel % BLOCK_W
    x_offset = (i * x_row + j * Ci)[:, None] + ci[None, :]
    dy_offset = co[:, None] + (i * dy_row + j * Co)[None, :]
    blocks_w = tl.cdiv(W, BLOCK_W)
    blocks_h = tl.cdiv(H, BLOCK_H)

    # The gradient of the bias is a product with ones. A plain sum would be a use of dy besides products, for which
    # Triton (3.6, 3.7) keeps a buffer too few: on Hopper it would be written to while products still read it.
    ones = tl.full((BLOCK_H * BLOCK_W, 16), 1.0, tl.float32).to(dy_ptr.dtype.element_ty)
    bias = tl.zeros((BLOCK_CO, 16), tl.float32)
    zero = tl.zeros((BLOCK_CO, BLOCK_CI), tl.float32)
    acc = (zero, zero, zero, zero, zero, zero, zero, zero, zero)
    for r in range(pid * split, tl.minimum((pid + 1) * split, rectangles)):
        w0 = (r % blocks_w) * BLOCK_W
        h0 = (r // blocks_w % blocks_h) * BLOCK_H
        n = (r // blocks_w // blocks_h).to(tl.int64)
        x_corner = x_ptr + (n * x_image + h0.to(tl.int64) * x_row + w0 * Ci)
        dy_corner = dy_ptr + (n * dy_image + h0.to(tl.int64) * dy_row + w0 * Co)
        h = h0 + i
        w = w0 + j
        inside = (h < H) & (w < W)
        xs = ()
        for b in tl.static_range(3):
            mask = inside & (w + (b - 1) >= 0) & (w + (b - 1) < W)
            xs += (tl.load(x_corner + (b - 1) * Ci + x_offset, mask=mask[:, None], other=0.0),)
        added = ()
        for a in tl.static_range(3):
            mask = (h - (a - 1) >= 0) & (h - (a - 1) < H) & (w < W)
            dy = tl.load(dy_corner - (a - 1) * dy_row + dy_offset, mask=mask[None, :] & mask_co[:, None], other=0.0)
            if a == 1:
                bias = tl.dot(dy, ones, bias, input_precision=PRECISION)
            for b in tl.static_range(3):
                added += (tl.dot(dy, xs[b], acc[3 * a + b], input_precision=PRECISION),)
        acc = added

    sums_ptr += pid * (Co * 9 * Ci + Co)
    for tap in tl.static_range(9):
        tl.store(sums_ptr + co[:, None] * (9 * Ci) + (tap * Ci + ci)[None, :], acc[tap], mask=mask_co[:, None])
    # The sixteen columns are the same; their sum is exact.
    tl.store(sums_ptr + Co * 9 * Ci + co, tl.sum(bias, 1) / 16, mask=mask_co & (block_ci == 0))


@triton.jit(do_not_specialize=["splits"])
def _add_splits(
    sums_ptr,  # [splits, length]
    out_ptr,  # [length]
    splits,
    length,
    scale,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = element < length
    split = tl.arange(0, BLOCK_SPLITS)
    offset = split[:, None] * length + element[None, :]
    acc = tl.zeros((BLOCK_SPLITS, BLOCK), tl.float32)
    for first in range(0, splits, BLOCK_SPLITS):
        mask_split = first + split < splits
        acc += tl.load(sums_ptr + first * length + offset, mask=mask_split[:, None] & mask[None, :], other=0.0)
    tl.store(out_ptr + element, (tl.sum(acc, 0) * scale).to(out_ptr.dtype.element_ty), mask=mask)


def dgrad(
    dy: Tensor, weight: Tensor, scale: float = 1.0, mask: Tensor | None = None, skip: Tensor | None = None
) -> Tensor:
    """The gradient of `conv3x3` by its input: skip + scale * (dy * flipped weight), the product 0 where mask <= 0.

    Computed in fp32 and rounded once. All operands are in fp16, bf16 or fp32 and on one device, maps and weight
    channels_last; the rows of a map may lie apart.

    Args:
        dy: The gradient by the output, [N, Co, H, W], Co a multiple of 16.
        weight: [Co, Ci, 3, 3].
        scale: Factor on the product.
        mask: What a ReLU gave and the convolution took, [N, Ci, H, W].
        skip: A gradient to add, [N, Ci, H, W].

    Returns:
        [N, Ci, H, W].

    Raises:
        KernelError: An operand is none of these.
    """
    n, co, h, w = dy.shape
    ci = weight.shape[1]
    launch.check_operands(
        "dgrad",
        dy,
        maps={"dy": (dy, (n, co, h, w)), "mask": (mask, (n, ci, h, w)), "skip": (skip, (n, ci, h, w))},
        parameters={"weight": (weight, (co, ci, 3, 3))},
        result=(n, ci, h, w),
        channels=co,
    )
    dx = torch.empty((n, ci, h, w), dtype=dy.dtype, device=dy.device, memory_format=torch.channels_last)
    flipped = weight.transpose(0, 1)
    if mask is None and not is_small(dy, flipped) and dispatch.should_use(dy, flipped, 1):
        flipped = flipped.flip(2, 3).contiguous(memory_format=torch.channels_last)
        dispatch.conv3x3(dy, flipped, weight.new_zeros(ci), False, scale, skip, 1, dx)
    else:
        portable(dy, weight, None, False, scale, skip, 1, 1, dx, mask=mask)
    return dx


def wgrad(
    x: Tensor, dy: Tensor, scale: float = 1.0, dtype: torch.dtype = torch.float32, config: Config | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of `conv3x3` by its weight and bias, times scale: sums over all pixels of dy times x, and of dy.

    Computed in fp32, in the same order each time, and rounded once. Both operands are in fp16, bf16 or fp32, on one
    device and channels_last; the rows of a map may lie apart.

    Args:
        x: The convolution's input, [N, Ci, H, W], Ci a multiple of 16.
        dy: The gradient by its output, [N, Co, H, W], Co a multiple of 16.
        scale: Factor on both gradients.
        dtype: Of the gradients.
        config: Launch configuration, None for the one measured.

    Returns:
        ([Co, Ci, 3, 3] channels_last, [Co]), in one piece of memory.

    Raises:
        KernelError: An operand is none of these.
    """
    n, ci, h, w = x.shape
    co = dy.shape[1]
    launch.check_operands(
        "wgrad",
        x,
        maps={"x": (x, (n, ci, h, w)), "dy": (dy, (n, co, h, w))},
        parameters={},
        result=(co, ci, 3, 3),
        channels=math.gcd(ci, co),
    )
    if config is not None:
        sums = _sum_splits(x, dy, config)
    else:
        key, defaults = f"{launch.DTYPE_NAMES[x.dtype]} {ci}-{co}", default_wgrad_configs(ci, x.dtype, x.device)
        sums = launch.run_configured("wgrad", key, defaults, x.device, partial(_sum_splits, x, dy))
    gradients = torch.empty(sums.shape[1], dtype=dtype, device=x.device)
    launch.run(
        _add_splits,
        (launch.cdiv(sums.shape[1], ADDED),),
        sums,
        gradients,
        *sums.shape,
        float(scale),
        BLOCK_SPLITS=32,
        BLOCK=ADDED,
        num_warps=4,
    )
    weights = co * 9 * ci
    return gradients[:weights].view(co, 3, 3, ci).permute(0, 3, 1, 2), gradients[weights:]


def _sum_splits(x: Tensor, dy: Tensor, config: Config) -> Tensor:
    """The sums of each split, [splits, Co * 9 * Ci + Co] in fp32; as many splits as fill the GPU."""
    (n, ci, h, w), co = x.shape, dy.shape[1]
    rectangles = n * launch.cdiv(h, config["BLOCK_H"]) * launch.cdiv(w, config["BLOCK_W"])
    blocks = ci // config["BLOCK_CI"] * launch.cdiv(co, config["BLOCK_CO"])
    split = launch.cdiv(rectangles, max(1, launch.multiprocessors(x.device) // blocks))
    splits = launch.cdiv(rectangles, split)
    sums = torch.empty((splits, co * 9 * ci + co), dtype=torch.float32, device=x.device)
    launch.run(
        _wgrad,
        (splits * blocks,),
        x,
        dy,
        sums,
        h,
        w,
        rectangles,
        split,
        *launch.row_strides(x),
        *launch.row_strides(dy),
        Ci=ci,
        Co=co,
        PRECISION=precision(x.dtype),
        **config,
    )
    return sums


def default_wgrad_configs(ci: int, dtype: torch.dtype, device: torch.device) -> list[Config]:
    """Configurations that fit this device, the best guess first, then smaller ones; tuned for none."""
    channels, fp32 = next(c for c in (64, 32, 16) if ci % c == 0), dtype == torch.float32
    configs = []
    if launch.has_asynchronous_products(device) and not fp32:
        blocks = {"BLOCK_H": 2, "BLOCK_W": 16, "BLOCK_CO": 64, "BLOCK_CI": channels}
        configs.append(blocks | {"num_warps": 8 if channels == 64 else 4, "num_stages": 4})
    # Nine sums and their operands in registers: twice as many of anything would spill.
    blocks = {"BLOCK_H": 1, "BLOCK_W": 16, "BLOCK_CO": 64, "BLOCK_CI": min(channels, 32)}
    configs.append(blocks | ({"num_warps": 8, "num_stages": 2} if fp32 else {"num_warps": 4, "num_stages": 3}))
    least = {"BLOCK_H": 1, "BLOCK_W": 16, "BLOCK_CO": 32, "BLOCK_CI": 16, "num_warps": 4, "num_stages": 2}
    return launch.fitting([*configs, least], lambda config: wgrad_operand_bytes(config, dtype), device)


def wgrad_operand_bytes(config: Config, dtype: torch.dtype) -> int:
    """Shared memory for the operands of a block of `wgrad`, at most: three shifts of each."""
    pixels = config["BLOCK_H"] * config["BLOCK_W"]
    return config["num_stages"] * 3 * pixels * (config["BLOCK_CO"] + config["BLOCK_CI"]) * dtype.itemsize

"""3x3 convolution with everything that follows it in one kernel: bias, ReLU, scale, skip, pixel shuffle.

An implicit matrix product, channels by pixels: out[Co, pixels] is the sum over nine taps and Ci of
weight[Co, tap, Ci] times x[pixels + tap, Ci]. The pixels are a rectangle of BLOCK_H x BLOCK_W, so that the
nine taps read nearly the same ones. Every pixel's sum runs over taps and channels in one fixed order: the
result does not depend on where in an image, band or tile a pixel lies, bit for bit.

Which kernel computes a convolution, and with which blocks, depends on the number of pixels (`size_class`, `is_small`).
That is decided here and not in `edsr.kernels.triton.hopper.dispatch`, to which what was verified on a chip is bound.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .launch import Config

# Columns below which there is a configuration of its own. Patches for training, 48 wide as a rule, would leave a
# quarter of blocks 32 wide empty, and smaller blocks give all multiprocessors work at once.
NARROW = 64
# Pixels of all images of a batch. Below the first number blocks as large as usual leave multiprocessors without work.
# From the second on the kernels for Hopper are faster for 64 channels; for others that has not been measured. On an
# H200, 64 channels, fp16, us: 64x64 pixels 3.5 by small blocks (9.7 by Hopper's kernel), 96x96 5.3 by small ones and
# 5.2 by others (10.6), 192x192 10.7 (15.9), 256x256 16.6 (16.6), 384x384 32.8 (27.1); see docs/log.md.
FEW = 1 << 13
MANY = 1 << 16


# Sizes are not specialized on: a kernel compiled for one image serves all.
@triton.jit(do_not_specialize=["H", "W"])
def _conv3x3(
    x_ptr,  # [N, H + 2 - 2*PADDING, W, Ci]
    weight_ptr,  # [Co, 3, 3, Ci], or [Ci, 3, 3, Co] if FLIPPED: read with taps in reverse and channels exchanged
    bias_ptr,  # [Co]; a flipped convolution has none
    mask_ptr,  # [N, H, W, Co]
    skip_ptr,  # [N, H, W, Co]
    out_ptr,  # [N, H, W, Co] or [N, SHUFFLE*H, SHUFFLE*W, Co // SHUFFLE**2]
    H,
    W,
    x_image,  # strides of images and rows, in elements; pixels are dense
    x_row,
    mask_image,
    mask_row,
    skip_image,
    skip_row,
    out_image,
    out_row,
    scale,
    Ci: tl.constexpr,
    Co: tl.constexpr,
    PADDING: tl.constexpr,
    FLIPPED: tl.constexpr,
    RELU: tl.constexpr,
    SCALE: tl.constexpr,
    MASK: tl.constexpr,
    SKIP: tl.constexpr,
    SHUFFLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_CO: tl.constexpr,
    BLOCK_CI: tl.constexpr,
):
    # Channel blocks of one rectangle run side by side, so that its pixels are read from the L2 cache but once.
    blocks_co: tl.constexpr = (Co + BLOCK_CO - 1) // BLOCK_CO
    pid = tl.program_id(0)
    co = (pid % blocks_co) * BLOCK_CO + tl.arange(0, BLOCK_CO)
    pid = pid // blocks_co
    blocks_w = tl.cdiv(W, BLOCK_W)
    blocks_h = tl.cdiv(H, BLOCK_H)
    w0 = (pid % blocks_w) * BLOCK_W
    pid = pid // blocks_w
    h0 = (pid % blocks_h) * BLOCK_H
    n = (pid // blocks_h).to(tl.int64)

    # Pixels are addressed from their rectangle's corner, which is where 64 bits are needed.
    pixel = tl.arange(0, BLOCK_H * BLOCK_W)
    i = pixel // BLOCK_W
    j = pixel % BLOCK_W
    ci = tl.arange(0, BLOCK_CI)
    x_ptr += n * x_image + (h0 - PADDING).to(tl.int64) * x_row + (w0 - 1) * Ci
    x_offset = i * x_row + j * Ci
    rows = H + 2 - 2 * PADDING
    mask_co = co < Co

    acc = tl.zeros((BLOCK_CO, BLOCK_H * BLOCK_W), tl.float32)
    CHUNKS: tl.constexpr = Ci // BLOCK_CI
    for step in range(9 * CHUNKS):
        tap = step // CHUNKS
        c0 = (step % CHUNKS) * BLOCK_CI
        dy = tap // 3
        dx = tap % 3
        h = h0 + i + (dy - PADDING)
        w = w0 + j + (dx - 1)
        mask = (h >= 0) & (h < rows) & (w >= 0) & (w < W)
        offset = x_offset + (dy * x_row + dx * Ci + c0)
        x = tl.load(x_ptr + offset[:, None] + ci[None, :], mask=mask[:, None], other=0.0)
        if FLIPPED:
            weight_offset = ((c0 + ci) * (9 * Co) + (8 - tap) * Co)[None, :] + co[:, None]
        else:
            weight_offset = co[:, None] * (9 * Ci) + (tap * Ci + c0) + ci[None, :]
        weight = tl.load(weight_ptr + weight_offset, mask=mask_co[:, None], other=0.0)
        acc = tl.dot(weight, x.T, acc, input_precision=PRECISION)

    if not FLIPPED:
        acc += tl.load(bias_ptr + co, mask=mask_co, other=0.0).to(tl.float32)[:, None]
    if RELU:
        acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)  # or an overflow would end here unseen
    if SCALE:
        acc *= scale
    y = tl.trans(acc)
    mask = ((h0 + i < H) & (w0 + j < W))[:, None] & mask_co[None, :]
    if MASK:
        mask_ptr += n * mask_image + h0.to(tl.int64) * mask_row + w0 * Co
        passed = tl.load(mask_ptr + (i * mask_row + j * Co)[:, None] + co[None, :], mask=mask, other=0.0)
        y = tl.where(passed <= 0, 0.0, y)  # NaN lets through
    if SKIP:
        skip_ptr += n * skip_image + h0.to(tl.int64) * skip_row + w0 * Co
        y += tl.load(skip_ptr + (i * skip_row + j * Co)[:, None] + co[None, :], mask=mask, other=0.0).to(tl.float32)
    # Channel c*SHUFFLE² + u*SHUFFLE + v goes to channel c of the pixel u rows down and v columns on.
    AREA: tl.constexpr = SHUFFLE * SHUFFLE
    u = co // SHUFFLE % SHUFFLE
    v = co % SHUFFLE
    out_ptr += n * out_image + (SHUFFLE * h0).to(tl.int64) * out_row + w0 * (Co // SHUFFLE)
    pixels = (SHUFFLE * i) * out_row + j * (Co // SHUFFLE)
    channels = u * out_row + v * (Co // AREA) + co // AREA
    tl.store(out_ptr + pixels[:, None] + channels[None, :], y.to(out_ptr.dtype.element_ty), mask=mask)


def portable(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relu: bool,
    scale: float,
    skip: Tensor | None,
    shuffle: int,
    padding: int,
    out: Tensor,
    config: Config | None = None,
    mask: Tensor | None = None,
) -> None:
    """`edsr.kernels.triton.ops.conv3x3` by the plain Triton kernel, for operands that were checked there.

    Without a bias the weight is flipped, see `edsr.kernels.triton.conv3x3_backward.dgrad`: x has the channels that it
    gives, out those that it takes. mask: a map like out; where it is 0 or below, nothing is added to the skip.
    """
    n, ci, _, w = x.shape
    flipped = bias is None
    co, rows = weight.shape[int(flipped)], out.shape[2] // shuffle

    def start(config: Config) -> None:
        blocks = launch.cdiv(rows, config["BLOCK_H"]) * launch.cdiv(w, config["BLOCK_W"])
        launch.run(
            _conv3x3,
            (n * blocks * launch.cdiv(co, config["BLOCK_CO"]),),
            x,
            weight,
            x if bias is None else bias,
            x if mask is None else mask,
            x if skip is None else skip,
            out,
            rows,
            w,
            *launch.row_strides(x),
            *launch.row_strides(mask),
            *launch.row_strides(skip),
            *launch.row_strides(out),
            float(scale),
            Ci=ci,
            Co=co,
            PADDING=padding,
            FLIPPED=flipped,
            RELU=relu,
            SCALE=scale != 1.0,
            MASK=mask is not None,
            SKIP=skip is not None,
            SHUFFLE=shuffle,
            PRECISION=precision(x.dtype),
            **config,
        )

    if config is not None:
        return start(config)
    size = size_class(n, rows, w, padding)
    key = f"{launch.DTYPE_NAMES[x.dtype]} {ci}-{co} {size}".rstrip()
    defaults = default_configs(ci, co, shuffle, size, x.dtype, x.device)
    launch.run_configured("dgrad" if flipped else "conv3x3", key, defaults, x.device, start)


def size_class(n: int, rows: int, w: int, padding: int) -> str:
    """Maps of one class have one configuration: "few" pixels, "narrow", or "" for all others.

    A band (padding 0) is never of few pixels, so that all bands of an image, down to its last rows, are computed alike.
    """
    if padding and n * rows * w < FEW:
        return "few"
    return "narrow" if w < NARROW else ""


def is_small(x: Tensor, weight: Tensor, padding: int = 1) -> bool:
    """Whether the portable kernel is faster than those for Hopper because x is small.

    Never for bands (padding 0), as in `size_class`.
    """
    n, ci, h, w = x.shape
    return bool(padding) and ci == weight.shape[0] == 64 and n * h * w < MANY


def precision(dtype: torch.dtype) -> str:
    """How fp32 operands are multiplied: as they are, unless torch's matrix products may use tf32 as well."""
    # Not allow_tf32, which raises where the setting was made by this newer name.
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def default_configs(
    ci: int, co: int, shuffle: int, size: str, dtype: torch.dtype, device: torch.device
) -> list[Config]:
    """Configurations that fit this device, the best guess first, then smaller ones; not measured but for few pixels of
    64 channels."""
    channels = next(c for c in (64, 32, 16) if ci % c == 0)
    least = {"BLOCK_H": 4, "BLOCK_W": 16, "BLOCK_CO": 32 if co > 16 else 16, "BLOCK_CI": min(channels, 32)}
    least |= {"num_warps": 4, "num_stages": 2}
    if dtype == torch.float32:
        blocks = {"BLOCK_H": 8, "BLOCK_W": 16, "BLOCK_CO": 32 if co >= 32 else 16, "BLOCK_CI": min(channels, 32)}
        stages = 3 if launch.is_desktop_blackwell(device) else 2  # there two spill (triton 3.6)
        return [blocks | {"num_warps": 8, "num_stages": stages}, least]
    configs = []
    if launch.has_asynchronous_products(device):
        # Larger ones spill on sm_100, where the epilogue has all sums in registers at once (triton 3.7).
        narrow, hopper = size != "", launch.architecture(device) // 10 == 9
        blocks = {
            "BLOCK_H": 8 if shuffle < 3 else 4,  # or the addresses of a shuffle by 3 spill (triton 3.6)
            "BLOCK_W": 32 if hopper and not narrow else 16,
            "BLOCK_CO": 256 if hopper and narrow and co % 256 == 0 and shuffle == 1 else 128 if co >= 128 else 64,
            "BLOCK_CI": channels,
        }
        configs.append(blocks | {"num_warps": 8 if co >= 128 else 4, "num_stages": 3})
    blocks = {
        "BLOCK_H": 8,
        "BLOCK_W": 16,
        "BLOCK_CO": 128 if co >= 128 else 64 if co > 32 else 32 if co > 16 else 16,
        "BLOCK_CI": min(channels, 32),
    }
    few = {"num_warps": 4, "num_stages": 3} | registers(device)
    configs += [blocks | ({"num_warps": 8, "num_stages": 3} if co >= 128 else few), least]
    if size == "few" and co <= 64:
        blocks = {"BLOCK_H": 2, "BLOCK_W": 16, "BLOCK_CO": 64, "BLOCK_CI": channels}
        configs[:-1] = [blocks | {"num_warps": 4, "num_stages": 4}]
    return launch.fitting(configs, lambda config: operand_bytes(config, dtype), device)


def registers(device: torch.device) -> Config:
    """A limit of registers for each thread of four warps that leaves room for three blocks on a multiprocessor of a
    desktop Blackwell. Without one ptxas aims at four there, and spills a little (triton 3.7)."""
    return {"maxnreg": 168} if launch.is_desktop_blackwell(device) else {}


def operand_bytes(config: Config, dtype: torch.dtype) -> int:
    """Shared memory for the operands of a block, at most: Triton keeps one slot less where products are not
    asynchronous."""
    rows = config["BLOCK_H"] * config["BLOCK_W"] + config["BLOCK_CO"]
    return config["num_stages"] * rows * config["BLOCK_CI"] * dtype.itemsize

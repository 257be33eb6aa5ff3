"""A whole ResBlock of 64 channels in one Hopper kernel: two line buffers, one feeding the other.

Two consumers of four warps each hold the weights of one convolution. The first, `_convolve_first`, turns rows of x
into rows of relu(conv(x)), which go into a second ring in shared memory and nowhere else; the second,
`_convolve_last`, convolves those and adds x, still in the first ring. x is read from memory once, and only the
result is written.

A strip of columns is computed 128 pixels wide, of which at most 125 are of use: the result at column c of the strip
needs the row between at c-1 to c+1, and that is right where x is there, from column 0 to 126. A strip begins one
column to the left of its first result. Rows between above and below the image, and columns of theirs beside it,
are zero, as the second convolution's padding wants them.

Whether it is used: `edsr.kernels.triton.hopper.dispatch.should_use_block`. Letters and technique as in
`edsr.kernels.triton.hopper.conv64`.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma_wait

from .. import launch
from .conv64 import (
    LINEAR,
    PIXELS,
    RESULT,
    SLOT,
    SWIZZLED,
    UNIT,
    C,
    activate,
    boxed,
    load_taps,
    multiply_taps,
    release,
    segment,
    wait_empty,
    wait_full,
)
from .tma import tensor_descriptor

WIDEST = 125  # result columns of a strip
LEFT = gl.constexpr(8)  # pixels of a ring's slot before column 0 of the strip; the convolutions use the last of them
STORED = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))  # 16 bytes a thread, whole pixels in a row


@gluon.jit
def _load_all_taps(w_ptr, shared, FIRST: gl.constexpr):
    """The weight: seven taps in registers, two in shared memory, or a thread would need more than its 240."""
    co = gl.arange(0, C, layout=gl.SliceLayout(1, STORED))
    ci = gl.arange(0, C, layout=gl.SliceLayout(0, STORED))
    for tap in gl.static_range(7, 9):
        shared.index(FIRST + tap - 7).store(gl.load(w_ptr + (co * (9 * C) + tap * C)[:, None] + ci[None, :]))
    fence_async_shared()  # what was stored is now there for wgmma to read
    weights = load_taps(w_ptr, 7)
    weights += (shared.index(FIRST), shared.index(FIRST + 1))
    return weights


@gluon.jit
def _load_rows(x_desc, x_head_desc, x_ring, work, SLOTS: gl.constexpr):
    ring, full, empty = x_ring
    row, end, H, strips, valid = work
    count = 0  # rows loaded so far
    while row < end:
        n, strip, y, rows = segment(row, end, H, strips)
        left = strip * valid - 1
        for i in range(rows + 4):
            loaded = full.index(count % SLOTS)
            unit = count % SLOTS * (SLOT // UNIT)
            wait_empty(empty, count, SLOTS)
            mbarrier.expect(loaded, SLOT * C * 2)
            tma.async_copy_global_to_shared(
                x_head_desc, [n, y + i - 2, left - LEFT, 0], loaded, boxed(ring, unit, x_head_desc)
            )
            tma.async_copy_global_to_shared(
                x_desc, [n, y + i - 2, left, 0], loaded, boxed(ring, unit + LEFT // UNIT, x_desc)
            )
            count += 1
        row += rows


@gluon.jit
def _convolve_first(
    w_ptr,
    b_ptr,
    w_shared,
    x_ring,
    t_ring,
    work,
    W,
    X_SLOTS: gl.constexpr,
    T_SLOTS: gl.constexpr,
):
    x_rows, x_full, x_empty = x_ring
    t_rows, t_full, t_empty = t_ring
    row, end, H, strips, valid = work
    dtype: gl.constexpr = x_rows.dtype
    pixels = x_rows._reinterpret(dtype, [X_SLOTS * SLOT + UNIT, C], LINEAR)
    bias = gl.load(b_ptr + gl.arange(0, C, layout=gl.SliceLayout(1, RESULT)))
    weights = _load_all_taps(w_ptr, w_shared, 0)
    column = gl.arange(0, PIXELS, layout=gl.SliceLayout(0, RESULT))
    base = 0  # rows of x of the segments before
    made = 0  # rows between, of all segments
    while row < end:
        _, strip, y, rows = segment(row, end, H, strips)
        left = strip * valid - 1
        beside = (left < 0) | (left + PIXELS > W)
        for i in range(rows + 2):
            top = base + i
            wait_full(x_full, top, X_SLOTS)
            wait_full(x_full, top + 1, X_SLOTS)
            wait_full(x_full, top + 2, X_SLOTS)
            acc = multiply_taps(
                weights,
                pixels,
                top % X_SLOTS * SLOT + LEFT - 1,
                (top + 1) % X_SLOTS * SLOT + LEFT - 1,
                (top + 2) % X_SLOTS * SLOT + LEFT - 1,
            )
            acc = warpgroup_mma_wait(0, deps=(acc,))
            release(x_empty, top, X_SLOTS)
            acc = activate(acc, bias, 1.0, True)
            t_y = y - 1 + i
            outside = (t_y < 0) | (t_y >= H)
            if beside | outside:
                stop = W - left
                if outside:
                    stop = 0
                acc = gl.where(((column >= -left) & (column < stop))[None, :], acc, 0.0)
            wait_empty(t_empty, made, T_SLOTS)
            t = t_rows.index((made % T_SLOTS * PIXELS + LEFT) // UNIT)._reinterpret(dtype, [PIXELS, C], SWIZZLED)
            t.permute((1, 0)).store(acc.to(dtype))
            fence_async_shared()  # what was stored is now there for wgmma to read
            mbarrier.arrive(t_full.index(made % T_SLOTS), count=1)
            made += 1
        release(x_empty, base + rows + 2, X_SLOTS)
        release(x_empty, base + rows + 3, X_SLOTS)
        base += rows + 4
        row += rows


@gluon.jit
def _convolve_last(
    w_ptr,
    b_ptr,
    w_shared,
    scale,
    out,
    x_ring,
    t_ring,
    work,
    W,
    X_SLOTS: gl.constexpr,
    T_SLOTS: gl.constexpr,
):
    x_rows, x_full, x_empty = x_ring
    t_rows, t_full, t_empty = t_ring
    row, end, H, strips, valid = work
    dtype: gl.constexpr = x_rows.dtype
    pixels = t_rows._reinterpret(dtype, [T_SLOTS * PIXELS + 2 * UNIT, C], LINEAR)
    bias = gl.load(b_ptr + gl.arange(0, C, layout=gl.SliceLayout(1, RESULT)))
    weights = _load_all_taps(w_ptr, w_shared, 2)
    out_ptr, out_image, out_row = out
    column = gl.arange(0, PIXELS, layout=gl.SliceLayout(1, STORED))
    offset = column[:, None] * C + gl.arange(0, C, layout=gl.SliceLayout(0, STORED))[None, :]
    base = 0  # rows of x of the segments before
    used = 0  # rows between, of the segments before
    while row < end:
        n, strip, y, rows = segment(row, end, H, strips)
        left = strip * valid - 1
        mask = ((column >= 1) & (column <= valid) & (column < W - left))[:, None]
        for count in range(base, base + 2):  # the first two rows of x are the other consumer's alone
            wait_full(x_full, count, X_SLOTS)
            release(x_empty, count, X_SLOTS)
        for i in range(rows):
            top = used + i
            wait_full(t_full, top, T_SLOTS)
            wait_full(t_full, top + 1, T_SLOTS)
            wait_full(t_full, top + 2, T_SLOTS)
            acc = multiply_taps(
                weights,
                pixels,
                top % T_SLOTS * PIXELS + LEFT - 1,
                (top + 1) % T_SLOTS * PIXELS + LEFT - 1,
                (top + 2) % T_SLOTS * PIXELS + LEFT - 1,
            )
            acc = warpgroup_mma_wait(0, deps=(acc,))
            release(t_empty, top, T_SLOTS)
            # The other consumer has used this row of x for the last time, in row top + 2 between. The result is put
            # together in its place, to leave in whole pixels.
            middle = base + i + 2
            wait_full(x_full, middle, X_SLOTS)  # it is there, but only who waited may count on seeing it
            unit = middle % X_SLOTS * (SLOT // UNIT) + LEFT // UNIT
            x = x_rows.index(unit)._reinterpret(dtype, [PIXELS, C], SWIZZLED)
            acc = activate(acc, bias, scale, False) + x.permute((1, 0)).load(RESULT).to(gl.float32)
            x.permute((1, 0)).store(acc.to(dtype))
            result = x.load(STORED)
            fence_async_shared()  # TMA overwrites what was stored
            release(x_empty, middle, X_SLOTS)
            pixel = gl.cast(n, gl.int64) * out_image + gl.cast(y + i, gl.int64) * out_row + left
            gl.store(out_ptr + pixel * C + offset, result, mask=mask)
        release(t_empty, used + rows, T_SLOTS)
        release(t_empty, used + rows + 1, T_SLOTS)
        for count in range(base + rows + 2, base + rows + 4):  # and so are the last two
            wait_full(x_full, count, X_SLOTS)
            release(x_empty, count, X_SLOTS)
        base += rows + 4
        used += rows + 2
        row += rows


@gluon.jit(do_not_specialize=["out_image", "out_row", "rows_per_block", "valid"])
def resblock_c64(
    x_desc,  # [N, H, W, 64] in boxes of 128 pixels
    x_head_desc,  # the same in boxes of 8 pixels
    w1_ptr,  # [64, 9, 64]
    b1_ptr,  # [64]
    w2_ptr,  # [64, 9, 64]
    b2_ptr,  # [64]
    out_ptr,  # [N, H, W, 64]
    out_image,  # pixels from one image, and from one row, of out to the next
    out_row,
    rows_per_block,
    valid,  # result columns of a strip, at most 125
    scale,
    X_SLOTS: gl.constexpr,
    T_SLOTS: gl.constexpr,
):
    """out = x + scale * (relu(x * weight1 + bias1) * weight2 + bias2), the row between rounded to x's dtype.

    X_SLOTS: at least 5: a row stays from its first use by the first convolution until it is added, two rows between
    later, and by then the first convolution has used two more. T_SLOTS: at least 3, the rows of a convolution.
    """
    gl.static_assert(X_SLOTS >= 5)
    gl.static_assert(T_SLOTS >= 3)
    H = x_desc.shape[1]
    W = x_desc.shape[2]
    strips = (W + valid - 1) // valid
    row = gl.program_id(0) * rows_per_block
    end = gl.minimum(row + rows_per_block, x_desc.shape[0] * strips * H)

    # Shifted views reach one pixel beyond either end of a row: into its neighbor's, and beyond the last slot. What
    # they find there only goes into columns that are not of use.
    dtype: gl.constexpr = x_desc.dtype
    x_rows = gl.allocate_shared_memory(dtype, [X_SLOTS * (SLOT // UNIT) + 1, UNIT, C], SWIZZLED)
    t_rows = gl.allocate_shared_memory(dtype, [T_SLOTS * (PIXELS // UNIT) + 2, UNIT, C], SWIZZLED)
    w_shared = gl.allocate_shared_memory(dtype, [4, C, C], SWIZZLED)  # two taps of either weight
    x_full = gl.allocate_shared_memory(gl.int64, [X_SLOTS, 1], mbarrier.MBarrierLayout())
    x_empty = gl.allocate_shared_memory(gl.int64, [X_SLOTS, 1], mbarrier.MBarrierLayout())
    t_full = gl.allocate_shared_memory(gl.int64, [T_SLOTS, 1], mbarrier.MBarrierLayout())
    t_empty = gl.allocate_shared_memory(gl.int64, [T_SLOTS, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(X_SLOTS):
        mbarrier.init(x_full.index(slot), count=1)  # the loader announces what is to come
        mbarrier.init(x_empty.index(slot), count=2)  # each consumer releases
    for slot in gl.static_range(T_SLOTS):
        mbarrier.init(t_full.index(slot), count=1)  # the first consumer has stored
        mbarrier.init(t_empty.index(slot), count=1)  # the second releases
    fence_async_shared()  # TMA must find the barriers initialized

    x_ring = (x_rows, x_full, x_empty)
    t_ring = (t_rows, t_full, t_empty)
    work = (row, end, H, strips, valid)
    out = (out_ptr, out_image, out_row)
    gl.warp_specialize(
        [
            (_convolve_first, (w1_ptr, b1_ptr, w_shared, x_ring, t_ring, work, W, X_SLOTS, T_SLOTS)),
            (_convolve_last, (w2_ptr, b2_ptr, w_shared, scale, out, x_ring, t_ring, work, W, X_SLOTS, T_SLOTS)),
            (_load_rows, (x_desc, x_head_desc, x_ring, work, X_SLOTS)),
        ],
        [4, 1],  # warps of all but the first
        [240, 24],  # registers of their threads; together with the first's 240 the file is full
    )


def resblock(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """x + scale * (relu(x * weight1 + bias1) * weight2 + bias2), in fp32, rounded after either convolution.

    x: [N, 64, H, W], weights: [64, 64, 3, 3], biases: [64]; all of one dtype, fp16 or bf16, maps and weights
    channels_last. out: where to write, of x's shape, not overlapping x. For operands that
    `edsr.kernels.triton.hopper.dispatch.supports_block` has accepted.
    """
    if out is None:
        out = torch.empty_like(x, memory_format=torch.channels_last)
    default = {"X_SLOTS": 7, "T_SLOTS": 4, "num_warps": 4, "maxnreg": 168}
    n, c, h, w = x.shape
    valid = launch.cdiv(w, launch.cdiv(w, WIDEST))  # strips of equal width
    rows = n * h * launch.cdiv(w, valid)
    rows_per_block = launch.cdiv(rows, launch.multiprocessors(x.device))
    launch.run(
        resblock_c64,
        (launch.cdiv(rows, rows_per_block),),
        tensor_descriptor(x, 128),
        tensor_descriptor(x, 8),
        weight1,
        bias1,
        weight2,
        bias2,
        out,
        out.stride(0) // c,
        out.stride(2) // c,
        rows_per_block,
        valid,
        float(scale),
        **launch.config("resblock", launch.DTYPE_NAMES[x.dtype], default, x.device),
    )
    return out

"""3x3 convolution of 64 channels on Hopper: input rows pass once through a line buffer in shared memory.

out^T[64 channels, 128 pixels] is the sum over the nine taps of weight[64, 64] times x^T[64, 128 pixels], x taken one
pixel to the left, in place or one to the right, from the row above, the same or the one below. The pixels are the
columns of the matrix instruction (wgmma m64n128k16), the channels its rows.

A block of threads computes a run of output rows, 128 pixels wide, from top to bottom. Four parts run side by side:
- `_load_rows`, one warp, copies input rows into a ring of slots by TMA, whose zeros beyond the border are the padding;
- two `_multiply`, four warps each, take alternate output rows. All nine taps of the weight stay in registers, and
  the nine operands are views of the ring, shifted by whole pixels: nothing is copied to form them;
- `_load_skip`, one warp, copies the row to be added to where the result is going to be put together.

What makes the shifted views possible: TMA and wgmma derive the 128-byte swizzle from the address itself, so that an
operand may begin at any pixel of a row. Ordinary loads and stores derive it from where the view begins: they may only
use views that begin at a multiple of 8 pixels (1,024 B, the period of the swizzle).

Should a chip behave otherwise (`edsr.kernels.triton.hopper.probe` finds out), COPIES = 3 keeps each row three
times, one pixel apart, so that every operand begins where the swizzle does: three times the traffic from the L2
cache, and room for four rows.

TURNS: the two `_multiply` compute by turns instead of at the same time: while one's products run, the other puts its
results together. Left to themselves they may fall into step, and the matrix unit idles while both are at their results.

Letters: N images, H rows, W columns. Maps are [N, H, W, 64], weights [64 out, 9 taps, 64 in].
"""

import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .. import launch
from .tma import tensor_descriptor

C = gl.constexpr(64)
PIXELS = gl.constexpr(128)  # of a row, computed at once
SLOT = gl.constexpr(136)  # pixels of an input row in the ring: 128, one more on either side, up to a multiple of 8
UNIT = gl.constexpr(8)  # pixels in which rings are allocated, so that a slot begins where the swizzle begins anew

_mma = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16])
RESULT = gl.constexpr(_mma)
WEIGHT = gl.constexpr(gl.DotOperandLayout(operand_index=0, parent=_mma, k_width=2))
SWIZZLED = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
LINEAR = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))  # for counting in pixels only


@gluon.jit
def segment(row, end, H, strips):
    """(image, strip, first row y, rows) of the longest run from `row` on in one strip of one image.

    Rows of output are numbered down a strip of columns, then strip by strip, then image by image.
    """
    strip = row // H
    y = row - strip * H
    n = strip // strips
    return n, strip - n * strips, y, gl.minimum(H - y, end - row)


@gluon.jit
def boxed(ring, unit, desc):
    """The memory of a ring from one of its units on, in the shape of a descriptor's box."""
    return ring.index(unit)._reinterpret(desc.dtype, desc.block_shape, desc.layout)


@gluon.jit
def shifted(pixels, first):
    """[64, 128]: the 128 pixels from `first` on, as the right operand of wgmma (see above: not for loads or stores)."""
    return pixels.index(first)._reinterpret(pixels.dtype, [PIXELS, C], SWIZZLED).permute((1, 0))


# A ring's slots are taken in turns: item `count` is the (count // SLOTS)-th in slot count % SLOTS. A barrier has only
# the parity of its phase, so whoever releases an item must have seen it full: else it could run ahead until the
# parity of two turns ago looks like that of the next, or release a slot twice while another still reads it.


@gluon.jit
def wait_full(full, count, SLOTS: gl.constexpr):
    """Waits until item `count` has arrived."""
    mbarrier.wait(full.index(count % SLOTS), (count // SLOTS) & 1)


@gluon.jit
def wait_empty(empty, count, SLOTS: gl.constexpr):
    """Waits until the item before item `count` in its slot has been released; a slot's first item finds it free."""
    mbarrier.wait(empty.index(count % SLOTS), ((count // SLOTS) & 1) ^ 1)


@gluon.jit
def release(empty, count, SLOTS: gl.constexpr, pred=True):
    """Signals that the caller is done with item `count`, unless `pred` is false."""
    mbarrier.arrive(empty.index(count % SLOTS), count=1, pred=pred)


@gluon.jit
def load_taps(w_ptr, TAPS: gl.constexpr):
    """The first TAPS taps of the weight, in registers as the left operand of wgmma."""
    co = gl.arange(0, C, layout=gl.SliceLayout(1, WEIGHT))
    ci = gl.arange(0, C, layout=gl.SliceLayout(0, WEIGHT))
    weights = ()
    for tap in gl.static_range(TAPS):
        weights += (gl.load(w_ptr + (co * (9 * C) + tap * C)[:, None] + ci[None, :]),)
    return weights


@gluon.jit
def multiply_taps(weights, pixels, above, same, below, STEP: gl.constexpr = 1):
    """Starts the nine products of a row; the three rows of input begin at these pixels. Nothing waits yet.

    STEP: pixels of the ring from a row's operand to the one a column to its right.
    """
    starts = (above, same, below)
    acc = gl.zeros([C, PIXELS], gl.float32, layout=RESULT)
    for tap in gl.static_range(9):
        x = shifted(pixels, starts[tap // 3] + tap % 3 * STEP)
        acc = warpgroup_mma(weights[tap], x, acc, use_acc=tap > 0, is_async=True)
    return acc


@gluon.jit
def activate(acc, bias, scale, RELU: gl.constexpr):
    """scale * relu(acc + bias) in fp32. acc: [channels, pixels], bias: [channels]. NaN stays NaN."""
    acc += bias.to(gl.float32)[:, None]
    if RELU:
        acc = gl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return acc * scale


@gluon.jit
def _load_rows(x_desc, x_tail_desc, padding, x_ring, work, SLOTS: gl.constexpr, COPIES: gl.constexpr):
    slot: gl.constexpr = SLOT if COPIES == 1 else COPIES * PIXELS
    ring, full, empty = x_ring
    row, end, H, strips = work
    count = 0  # rows loaded so far
    while row < end:
        n, strip, y, rows = segment(row, end, H, strips)
        left = strip * PIXELS - 1
        for i in range(rows + 2):
            loaded = full.index(count % SLOTS)
            unit = count % SLOTS * (slot // UNIT)
            wait_empty(empty, count, SLOTS)
            mbarrier.expect(loaded, slot * C * 2)
            for copy in gl.static_range(COPIES):
                target = boxed(ring, unit + copy * (PIXELS // UNIT), x_desc)
                tma.async_copy_global_to_shared(x_desc, [n, y + i - padding, left + copy, 0], loaded, target)
            if COPIES == 1:  # what the copy a pixel further on would bring, and more, to a multiple of 8
                target = boxed(ring, unit + PIXELS // UNIT, x_tail_desc)
                tma.async_copy_global_to_shared(x_tail_desc, [n, y + i - padding, left + PIXELS, 0], loaded, target)
            count += 1
        row += rows


@gluon.jit
def _load_skip(skip_desc, stages, work, SKIP: gl.constexpr):
    if SKIP:
        stage, full, empty = stages
        row, end, H, strips = work
        count = 0  # output rows so far; the consumers' stages take turns like the slots of a ring
        while row < end:
            n, strip, y, rows = segment(row, end, H, strips)
            for i in range(rows):
                loaded = full.index(count % 2)
                wait_empty(empty, count, 2)
                mbarrier.expect(loaded, PIXELS * C * 2)
                tma.async_copy_global_to_shared(
                    skip_desc, [n, y + i, strip * PIXELS, 0], loaded, boxed(stage, count % 2, skip_desc)
                )
                count += 1
            row += rows


@gluon.jit
def _multiply(
    CONSUMER: gl.constexpr,
    w_ptr,
    b_ptr,
    scale,
    out_desc,
    x_ring,
    stages,
    turns,
    work,
    SLOTS: gl.constexpr,
    COPIES: gl.constexpr,
    RELU: gl.constexpr,
    SKIP: gl.constexpr,
    TURNS: gl.constexpr,
):
    slot: gl.constexpr = SLOT if COPIES == 1 else COPIES * PIXELS
    step: gl.constexpr = 1 if COPIES == 1 else PIXELS
    ring, full, empty = x_ring
    stage, skip_full, skip_empty = stages
    row, end, H, strips = work
    pixels = ring._reinterpret(out_desc.dtype, [SLOTS * slot, C], LINEAR)
    staged = stage.index(CONSUMER).permute((1, 0))
    bias = gl.load(b_ptr + gl.arange(0, C, layout=gl.SliceLayout(1, RESULT)))
    weights = load_taps(w_ptr, 9)
    base = 0  # input rows of the segments before
    done = 0  # output rows of the segments before, this consumer's and the other's
    if TURNS and CONSUMER == 1:
        release(turns, 0, 2)  # the first turn is free
    while row < end:
        n, strip, y, rows = segment(row, end, H, strips)
        kept = base  # the first row of input not released yet
        wait_full(full, base, SLOTS)  # a consumer that begins with the second row of output releases it unused
        for i in range((done + CONSUMER) % 2, rows, 2):
            top = base + i
            wait_full(full, top, SLOTS)
            wait_full(full, top + 1, SLOTS)
            wait_full(full, top + 2, SLOTS)
            above, same, below = top % SLOTS * slot, (top + 1) % SLOTS * slot, (top + 2) % SLOTS * slot
            if TURNS:
                wait_full(turns, done + i, 2)
            acc = multiply_taps(weights, pixels, above, same, below, step)
            # While the products run, the store of this consumer's previous row finishes reading the stage.
            tma.store_wait(0)
            if SKIP:
                release(skip_empty, done + i, 2, pred=done + i >= 2)
            if TURNS:
                # The last product is to run while the other consumer takes note.
                acc = warpgroup_mma_wait(1, deps=(acc,))
                release(turns, done + i + 1, 2)
            acc = warpgroup_mma_wait(0, deps=(acc,))
            for count in range(kept, top + 2):  # its next row of output begins two further down
                release(empty, count, SLOTS)
            kept = top + 2
            acc = activate(acc, bias, scale, RELU)
            if SKIP:
                wait_full(skip_full, done + i, 2)
                acc += staged.load(RESULT).to(gl.float32)
            staged.store(acc.to(out_desc.dtype))
            fence_async_shared()  # what was stored is now there for TMA to read
            tma.async_copy_shared_to_global(out_desc, [n, y + i, strip * PIXELS, 0], boxed(stage, CONSUMER, out_desc))
        for count in range(kept, base + rows + 2):  # what only the other consumer uses
            wait_full(full, count, SLOTS)
            release(empty, count, SLOTS)
        base += rows + 2
        done += rows
        row += rows
    tma.store_wait(0)  # shared memory must outlive the last store's reading


@gluon.jit(do_not_specialize=["rows_per_block", "padding"])
def conv3x3_c64(
    x_desc,  # [N, H + 2 - 2*padding, W, 64] in boxes of 128 pixels
    x_tail_desc,  # the same in boxes of 8 pixels
    w_ptr,  # [64, 9, 64]
    b_ptr,  # [64]
    skip_desc,  # [N, H, W, 64] in boxes of 128 pixels; anything without SKIP
    out_desc,  # [N, H, W, 64] in boxes of 128 pixels
    rows_per_block,
    padding,
    scale,
    SLOTS: gl.constexpr,
    COPIES: gl.constexpr,
    RELU: gl.constexpr,
    SKIP: gl.constexpr,
    TURNS: gl.constexpr = False,
):
    """out = skip + scale * relu(x * weight + bias), in fp32, rounded once.

    SLOTS: at least 4. A consumer that starts a segment on its second row holds one row that it does not need, and
    three that it does. COPIES: 1 or 3, of each row of x in the ring. TURNS: whether consumers compute by turns.
    """
    gl.static_assert(SLOTS >= 4)
    slot: gl.constexpr = SLOT if COPIES == 1 else COPIES * PIXELS
    H = out_desc.shape[1]
    strips = (out_desc.shape[2] + PIXELS - 1) // PIXELS
    row = gl.program_id(0) * rows_per_block
    end = gl.minimum(row + rows_per_block, out_desc.shape[0] * strips * H)

    ring = gl.allocate_shared_memory(out_desc.dtype, [SLOTS * (slot // UNIT), UNIT, C], SWIZZLED)
    stage = gl.allocate_shared_memory(out_desc.dtype, [2, PIXELS, C], SWIZZLED)
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    skip_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    skip_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        mbarrier.init(full.index(slot), count=1)  # the loader announces what is to come
        mbarrier.init(empty.index(slot), count=2)  # each consumer releases
    for consumer in gl.static_range(2):
        mbarrier.init(skip_full.index(consumer), count=1)
        mbarrier.init(skip_empty.index(consumer), count=1)
    turns = ()
    if TURNS:
        turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
        for consumer in gl.static_range(2):
            mbarrier.init(turns.index(consumer), count=1)  # the other consumer signals the turn of this one
    fence_async_shared()  # TMA must find the barriers initialized

    x_ring = (ring, full, empty)
    stages = (stage, skip_full, skip_empty)
    work = (row, end, H, strips)
    gl.warp_specialize(
        [
            (
                _multiply,
                (0, w_ptr, b_ptr, scale, out_desc, x_ring, stages, turns, work, SLOTS, COPIES, RELU, SKIP, TURNS),
            ),
            (
                _multiply,
                (1, w_ptr, b_ptr, scale, out_desc, x_ring, stages, turns, work, SLOTS, COPIES, RELU, SKIP, TURNS),
            ),
            (_load_rows, (x_desc, x_tail_desc, padding, x_ring, work, SLOTS, COPIES)),
            (_load_skip, (skip_desc, stages, work, SKIP)),
        ],
        [4, 1, 1],  # warps of all but the first
        [240, 24, 24],  # registers of their threads; together with the first's 240 the file is full
    )


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor, relu: bool, scale: float, skip: Tensor | None, padding: int, out: Tensor
) -> None:
    """out = skip + scale * relu(x * weight + bias); operands as of `edsr.kernels.triton.hopper.dispatch.conv3x3`."""
    default = {"SLOTS": 10, "num_warps": 4, "maxnreg": 168}
    config = launch.config("hopper_conv64", launch.DTYPE_NAMES[x.dtype], default, x.device)
    _launch(x, weight, bias, relu, scale, skip, padding, out, COPIES=1, **config)


def convolve_copies(
    x: Tensor, weight: Tensor, bias: Tensor, relu: bool, scale: float, skip: Tensor | None, padding: int, out: Tensor
) -> None:
    """`convolve` with each row kept three times, one pixel apart."""
    options = {"SLOTS": 4, "num_warps": 4, "maxnreg": 168}  # more rows would not fit
    _launch(x, weight, bias, relu, scale, skip, padding, out, COPIES=3, **options)


def _launch(x, weight, bias, relu, scale, skip, padding, out, **options) -> None:
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

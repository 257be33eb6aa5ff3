"""3x3 convolution of many channels on Hopper: the line buffer of `conv64`, with the weights streamed.

A tile is 128 channels of two output rows of 128 pixels. Its four input rows pass through a ring of slots in chunks of
64 channels, and serve all nine taps as shifted views; the weights of one tap and chunk, [128 out, 64 in], pass through
a ring of their own. Four parts run side by side: one warp loads input, one loads weights, and two consumers of four
warps each compute 64 of the 128 channels. The grid is as large as the GPU; a block takes tile after tile, the channels
of the same pixels one after another, so that their input comes from the L2 cache.

HELD: a consumer takes the weights of a tap into registers, once for both rows, instead of having each product read
them from shared memory: 80 bytes a clock of operands instead of 96, of the 128 that there are, TMA's 24 included.

Letters: N images, H rows, W columns, Ci and Co channels in and out. Maps are [N, H, W, C], weights [Co, 9 taps, Ci].
"""

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
from .conv64 import (
    LINEAR,
    PIXELS,
    RESULT,
    SLOT,
    SWIZZLED,
    UNIT,
    WEIGHT,
    activate,
    boxed,
    release,
    shifted,
    wait_empty,
    wait_full,
)
from .tma import descriptor, tensor_descriptor

CHUNK = gl.constexpr(64)  # input channels at once: as many as one period of the swizzle holds
CHANNELS = gl.constexpr(128)  # output channels of a tile
CONSUMED = gl.constexpr(64)  # output channels of one consumer
ROWS = gl.constexpr(2)  # output rows of a tile


@gluon.jit
def _place(tile, out_desc):
    """(image, first row, first column, first channel) of a tile; channels run fastest, then columns, then rows."""
    parts = out_desc.shape[3] // CHANNELS
    strips = (out_desc.shape[2] + PIXELS - 1) // PIXELS
    pairs = (out_desc.shape[1] + ROWS - 1) // ROWS
    column = tile // parts
    pair = column // strips
    n = pair // pairs
    return n, (pair - n * pairs) * ROWS, (column - pair * strips) * PIXELS, (tile - column * parts) * CHANNELS


@gluon.jit
def _load_rows(x_desc, x_tail_desc, padding, out_desc, x_ring, work, SLOTS: gl.constexpr):
    ring, full, empty = x_ring
    tiles, chunks = work
    count = 0  # rows loaded so far
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        n, y, column, _ = _place(tile, out_desc)
        for chunk in range(chunks):
            for i in range(ROWS + 2):
                loaded = full.index(count % SLOTS)
                unit = count % SLOTS * (SLOT // UNIT)
                wait_empty(empty, count, SLOTS)
                mbarrier.expect(loaded, SLOT * CHUNK * 2)
                tma.async_copy_global_to_shared(
                    x_desc, [n, y + i - padding, column - 1, chunk * CHUNK], loaded, boxed(ring, unit, x_desc)
                )
                tma.async_copy_global_to_shared(
                    x_tail_desc,
                    [n, y + i - padding, column - 1 + PIXELS, chunk * CHUNK],
                    loaded,
                    boxed(ring, unit + PIXELS // UNIT, x_tail_desc),
                )
                count += 1


@gluon.jit
def _load_weights(w_desc, out_desc, w_ring, work, SLOTS: gl.constexpr):
    ring, full, empty = w_ring
    tiles, chunks = work
    count = 0  # weights of a tap and chunk loaded so far
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        _, _, _, co = _place(tile, out_desc)
        for chunk in range(chunks):
            for tap in range(9):
                loaded = full.index(count % SLOTS)
                wait_empty(empty, count, SLOTS)
                mbarrier.expect(loaded, CHANNELS * CHUNK * 2)
                tma.async_copy_global_to_shared(
                    w_desc,
                    [co, (tap * chunks + chunk) * CHUNK],
                    loaded,
                    boxed(ring, count % SLOTS * (CHANNELS // CONSUMED), w_desc),
                )
                count += 1


@gluon.jit
def _take(w_ring, step, CONSUMER: gl.constexpr, SLOTS: gl.constexpr, HELD: gl.constexpr):
    """A consumer's weights of a tap and chunk, [64 out, 64 in]: in registers, their slot free again, or as they lie."""
    weights, full, empty = w_ring
    wait_full(full, step, SLOTS)
    weight = weights.index(step % SLOTS * (CHANNELS // CONSUMED) + CONSUMER)
    if HELD:
        weight = weight.load(WEIGHT)
        release(empty, step, SLOTS)
    return weight


@gluon.jit
def _multiply(
    CONSUMER: gl.constexpr,
    b_ptr,
    scale,
    maps,
    x_ring,
    w_ring,
    stages,
    work,
    X_SLOTS: gl.constexpr,
    W_SLOTS: gl.constexpr,
    RELU: gl.constexpr,
    SKIP: gl.constexpr,
    HELD: gl.constexpr,
):
    rows, x_full, x_empty = x_ring
    w_empty = w_ring[2]
    stage, skip_full = stages
    skip_desc, out_desc = maps
    tiles, chunks = work
    pixels = rows._reinterpret(out_desc.dtype, [X_SLOTS * SLOT, CHUNK], LINEAR)
    upper: gl.constexpr = ROWS * CONSUMER  # this consumer's stages of the tile's two rows
    lower: gl.constexpr = ROWS * CONSUMER + 1
    upper_staged = stage.index(upper).permute((1, 0))
    lower_staged = stage.index(lower).permute((1, 0))
    loaded = skip_full.index(CONSUMER)
    row = 0  # input rows of the chunks before
    step = 0  # taps before, over all chunks
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        n, y, column, co = _place(tile, out_desc)
        co += CONSUMER * CONSUMED
        if SKIP:
            # Both stages are free once the previous tile's stores have read them: fetch what is to be added.
            tma.store_wait(0)
            mbarrier.expect(loaded, ROWS * PIXELS * CONSUMED * 2)
            tma.async_copy_global_to_shared(skip_desc, [n, y, column, co], loaded, boxed(stage, upper, skip_desc))
            tma.async_copy_global_to_shared(skip_desc, [n, y + 1, column, co], loaded, boxed(stage, lower, skip_desc))
        upper_acc = gl.zeros([CONSUMED, PIXELS], gl.float32, layout=RESULT)
        lower_acc = gl.zeros([CONSUMED, PIXELS], gl.float32, layout=RESULT)
        for _ in range(chunks):
            for dy in gl.static_range(3):
                upper_row = row + dy
                lower_row = row + dy + 1
                wait_full(x_full, upper_row, X_SLOTS)
                wait_full(x_full, lower_row, X_SLOTS)
                for dx in gl.static_range(3):
                    if not HELD or dy + dx == 0:
                        weight = _take(w_ring, step, CONSUMER, W_SLOTS, HELD)
                    x = shifted(pixels, upper_row % X_SLOTS * SLOT + dx)
                    upper_acc = warpgroup_mma(weight, x, upper_acc, is_async=True)
                    x = shifted(pixels, lower_row % X_SLOTS * SLOT + dx)
                    lower_acc = warpgroup_mma(weight, x, lower_acc, is_async=True)
                    if HELD:
                        # Into registers of their own while the products run. With waits for fewer of these ptxas finds
                        # no registers, and has every product wait for the one before.
                        if dy + dx < 4:
                            weight = _take(w_ring, step + 1, CONSUMER, W_SLOTS, HELD)
                        upper_acc, lower_acc = warpgroup_mma_wait(0, deps=(upper_acc, lower_acc))
                    else:
                        # With no more than these two products under way, those of the tap before have been read in
                        # full: its weights may go, and so may the rows of input whose last tap it was. (A whole turn is
                        # added to what may be negative; the slot is the same.)
                        upper_acc, lower_acc = warpgroup_mma_wait(2, deps=(upper_acc, lower_acc))
                        release(w_empty, step - 1 + W_SLOTS, W_SLOTS, pred=step > 0)
                    if dx == 0:
                        if dy == 0:
                            release(x_empty, row - 2 + X_SLOTS, X_SLOTS, pred=row > 0)
                        release(x_empty, row + dy - 1 + X_SLOTS, X_SLOTS, pred=row + dy > 0)
                    step += 1
            row += ROWS + 2
        if not HELD:
            upper_acc, lower_acc = warpgroup_mma_wait(0, deps=(upper_acc, lower_acc))
        bias = gl.load(b_ptr + co + gl.arange(0, CONSUMED, layout=gl.SliceLayout(1, RESULT)))
        upper_acc = activate(upper_acc, bias, scale, RELU)
        lower_acc = activate(lower_acc, bias, scale, RELU)
        if SKIP:
            wait_full(skip_full, 2 * (tile // gl.num_programs(0)) + CONSUMER, 2)
            upper_acc += upper_staged.load(RESULT).to(gl.float32)
            lower_acc += lower_staged.load(RESULT).to(gl.float32)
        else:
            tma.store_wait(0)  # the previous tile's stores have read the stages
        upper_staged.store(upper_acc.to(out_desc.dtype))
        lower_staged.store(lower_acc.to(out_desc.dtype))
        fence_async_shared()  # what was stored is now there for TMA to read
        # A second row below the image is cut off by TMA.
        tma.async_copy_shared_to_global(out_desc, [n, y, column, co], boxed(stage, upper, out_desc))
        tma.async_copy_shared_to_global(out_desc, [n, y + 1, column, co], boxed(stage, lower, out_desc))
    tma.store_wait(0)  # shared memory must outlive the last stores' reading


@gluon.jit(do_not_specialize=["padding"])
def conv3x3_wide(
    x_desc,  # [N, H + 2 - 2*padding, W, Ci] in boxes of 128 pixels, 64 channels; Ci a multiple of 64
    x_tail_desc,  # the same in boxes of 8 pixels, 64 channels
    w_desc,  # [Co, 9 * Ci] in boxes of 128, 64; Co a multiple of 128
    b_ptr,  # [Co]
    skip_desc,  # [N, H, W, Co] in boxes of 128 pixels, 64 channels; anything without SKIP
    out_desc,  # [N, H, W, Co] in boxes of 128 pixels, 64 channels
    padding,
    scale,
    X_SLOTS: gl.constexpr,
    W_SLOTS: gl.constexpr,
    RELU: gl.constexpr,
    SKIP: gl.constexpr,
    HELD: gl.constexpr = False,
):
    """out = skip + scale * relu(x * weight + bias), in fp32, rounded once.

    HELD: whether the weights of a tap are multiplied from registers.
    X_SLOTS: at least 4: the first products of a chunk need two rows before the last two of the chunk before are
    released. W_SLOTS: at least 2, for the same reason.
    """
    gl.static_assert(X_SLOTS >= 4)
    gl.static_assert(W_SLOTS >= 2)
    strips = (out_desc.shape[2] + PIXELS - 1) // PIXELS
    pairs = (out_desc.shape[1] + ROWS - 1) // ROWS
    tiles = out_desc.shape[0] * pairs * strips * (out_desc.shape[3] // CHANNELS)
    chunks = x_desc.shape[3] // CHUNK

    dtype: gl.constexpr = out_desc.dtype
    rows = gl.allocate_shared_memory(dtype, [X_SLOTS * (SLOT // UNIT), UNIT, CHUNK], SWIZZLED)
    weights = gl.allocate_shared_memory(dtype, [W_SLOTS * (CHANNELS // CONSUMED), CONSUMED, CHUNK], SWIZZLED)
    stage = gl.allocate_shared_memory(dtype, [2 * ROWS, PIXELS, CONSUMED], SWIZZLED)
    x_full = gl.allocate_shared_memory(gl.int64, [X_SLOTS, 1], mbarrier.MBarrierLayout())
    x_empty = gl.allocate_shared_memory(gl.int64, [X_SLOTS, 1], mbarrier.MBarrierLayout())
    w_full = gl.allocate_shared_memory(gl.int64, [W_SLOTS, 1], mbarrier.MBarrierLayout())
    w_empty = gl.allocate_shared_memory(gl.int64, [W_SLOTS, 1], mbarrier.MBarrierLayout())
    skip_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(X_SLOTS):
        mbarrier.init(x_full.index(slot), count=1)  # the loader announces what is to come
        mbarrier.init(x_empty.index(slot), count=2)  # each consumer releases
    for slot in gl.static_range(W_SLOTS):
        mbarrier.init(w_full.index(slot), count=1)
        mbarrier.init(w_empty.index(slot), count=2)
    for consumer in gl.static_range(2):
        mbarrier.init(skip_full.index(consumer), count=1)  # the consumer itself announces it
    fence_async_shared()  # TMA must find the barriers initialized

    x_ring = (rows, x_full, x_empty)
    w_ring = (weights, w_full, w_empty)
    stages = (stage, skip_full)
    maps = (skip_desc, out_desc)
    work = (tiles, chunks)
    gl.warp_specialize(
        [
            (_multiply, (0, b_ptr, scale, maps, x_ring, w_ring, stages, work, X_SLOTS, W_SLOTS, RELU, SKIP, HELD)),
            (_multiply, (1, b_ptr, scale, maps, x_ring, w_ring, stages, work, X_SLOTS, W_SLOTS, RELU, SKIP, HELD)),
            (_load_rows, (x_desc, x_tail_desc, padding, out_desc, x_ring, work, X_SLOTS)),
            (_load_weights, (w_desc, out_desc, w_ring, work, W_SLOTS)),
        ],
        [4, 1, 1],  # warps of all but the first
        [240, 24, 24],  # registers of their threads; together with the first's 240 the file is full
    )


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor, relu: bool, scale: float, skip: Tensor | None, padding: int, out: Tensor
) -> None:
    """out = skip + scale * relu(x * weight + bias); operands as of `edsr.kernels.triton.hopper.dispatch.conv3x3`."""
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
        **launch.config("hopper_conv256", f"{launch.DTYPE_NAMES[x.dtype]} {ci}-{co}", default, x.device),
    )

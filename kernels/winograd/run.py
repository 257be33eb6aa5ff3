"""The compiled kernels called on tensors: filters transformed, convolutions, gradients of weights.

Everything here takes fp32 on the CPU, maps dense in rows of NHWC pixels, numbers of channels divisible by 16.
"""

import ctypes
import logging
import struct
import threading
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..allocator import KEPT_IN_TRAINING, LINE, empty_feature_map
from .threads import run_parallel
from .transforms import TILE

logger = logging.getLogger(__name__)
TILES = 12  # in a block, at least: all weights are read once for each block, and those of most layers fit no L2 cache
CHUNK, CHUNKS = 64, 16  # tiles at least that a gradient's sums are made of, and how many such sums at most


def missing_requirement() -> str:
    """What this machine lacks to run the kernels; "" if nothing, as far as is known before they are compiled."""
    try:
        from .jit import NativeError, this_machine
    except ImportError:
        return "the package llvmlite is not installed"
    except OSError as error:  # it is, but its library cannot be loaded
        return f"llvmlite cannot be used: {error}"
    try:
        this_machine()
    except NativeError as error:
        return str(error)
    return ""


def compile_ahead(training: bool = False) -> str:
    """Compiles the kernels, unless this machine's cache has them. Logs it at level INFO.

    Args:
        training: whether to compile the kernels for gradients, too; they are an object file of their own.

    Returns:
        Why the kernels cannot be had, "" if they can.
    """
    if reason := missing_requirement():
        return reason
    from .jit import NativeError, load

    try:
        load(training)
    except NativeError as error:
        return str(error)
    return ""


@cache
def kernels(training: bool = False):
    """The compiled kernels; None where there are none, and a warning the first time."""
    if reason := compile_ahead(training):
        logger.warning("%s: PyTorch computes", reason)
        return None
    from .jit import load

    return load(training)


# --- filters


class Filter(NamedTuple):
    """u: U of `codegen`. outputs: channels out, filled up to whole vectors with zeros."""

    u: Tensor
    outputs: int


class _Kept(NamedTuple):
    state: tuple
    filter: Filter


_kept = WeakTensorKeyDictionary()  # weight -> _Kept
_keeping = threading.Lock()
SAMPLED = 32  # values of a weight that are compared, because fused optimizers write without telling


def transformed(weight: Tensor, part: tuple[int, ...] = ()) -> Filter:
    """`transform`, kept as long as the weight is, until it is written to. part: indices of the filter, always the same,
    in a tensor that has several."""
    state = _state(weight)
    with _keeping:
        found = _kept.get(weight)
        if found is None or found.state != state:
            found = _kept[weight] = _Kept(state, transform(weight.detach()[part]))
        return found.filter


def _state(x: Tensor) -> tuple:
    """Changes when x is written to. Tensors made in inference mode do not count; for them, values have to do."""
    values = x.detach().as_strided((min(SAMPLED, x.numel()),), (max(1, x.numel() // SAMPLED),)).tolist()
    return x.data_ptr(), 0 if x.is_inference() else x._version, *values


def transform(weight: Tensor, turned: bool = False) -> Filter:
    """[Co, Ci, r, r], in any layout, in Winograd's domain. turned: by half a turn, inputs and outputs exchanged, which
    is what the gradient of the input takes."""
    shape = kernels().shape
    if not turned:
        weight = filled(weight, shape.lanes)
    outputs, inputs, taps, _ = weight.shape
    output, input_, row, column = weight.stride()
    first = weight.data_ptr()
    if turned:
        first += weight.element_size() * (taps - 1) * (row + column)
        output, input_, row, column = input_, output, -row, -column
        inputs, outputs = outputs, inputs
    # NumPy's: what PyTorch allocates leaves holes that glibc before 2.38 does not fill, 30 MB in the end.
    u = torch.from_numpy(np.empty(TILE * TILE * inputs * outputs, np.float32))
    _call(
        f"filter{taps}x{taps}",
        weight=first,
        u=u.data_ptr(),
        next_input=0,
        inputs=inputs,
        outputs=outputs // shape.lanes,
        input=input_,
        output=output,
        row=row,
        column=column,
    )
    return Filter(u, outputs)


def filled(x: Tensor, multiple: int) -> Tensor:
    """x with zeros after it in its first axis, up to a multiple."""
    fill = -len(x) % multiple
    return torch.cat([x, x.new_zeros(fill, *x.shape[1:])]) if fill else x


# --- convolutions


def convolve(
    x: Tensor,
    filter_: Filter,
    bias: Tensor | None,
    taps: int,
    y: Tensor,
    padding: int,
    skip: Tensor | None = None,
    relu: bool = False,
    scale: float = 1.0,
    masks: bool = False,
) -> Tensor:
    """y = skip + scale * relu(x * filter + bias), bias None for 0. masks: 0 where skip <= 0, and nothing is added.

    Gives y.
    """
    n, inputs, height, width = x.shape
    outputs, y_height = y.shape[1:3]
    if y.numel() == 0:
        return y
    lanes = kernels().shape.lanes
    bias = torch.zeros(outputs) if bias is None else filled(bias.detach().contiguous(), outputs)
    groups, floats = _block(inputs, outputs)
    # What is smaller will still be in the caches when the next layer reads it.
    past_caches = kernels().non_temporal and y.numel() * y.itemsize > torch.get_num_threads() * _l2_bytes()
    aligned = y.data_ptr() % LINE == 0 and all(y.stride(i) * y.itemsize % LINE == 0 for i in (0, 2))
    _call(
        f"conv{taps}x{taps}",
        floats,
        training=masks,
        x=x.data_ptr(),
        weight=filter_.u.data_ptr(),
        bias=bias.data_ptr(),
        y=y.data_ptr(),
        skip=0 if skip is None else skip.data_ptr(),
        next_block=0,
        height=height,
        width=width,
        x_row=x.stride(2),
        y_height=y_height,
        y_row=y.stride(2),
        skip_row=0 if skip is None else skip.stride(2),
        images=n,
        x_image=x.stride(0),
        y_image=y.stride(0),
        skip_image=0 if skip is None else skip.stride(0),
        masks=masks,
        padding=padding,
        past_caches=past_caches and aligned,
        inputs=inputs // lanes,
        outputs=outputs // lanes,
        groups=groups,
        floor=0.0 if relu else -float("inf"),
        scale=scale,
    )
    return y


@cache
def _l2_bytes() -> int:
    from .jit import l2_bytes

    return l2_bytes()


@cache
def _block(inputs: int, outputs: int) -> tuple[int, int]:
    """(groups of tiles in a block, floats of a thread's scratch): an eighth of the L2 cache, or TILES tiles.

    The rest is for weights, and for what comes next.
    """
    from .codegen import scratch_floats

    shape = kernels().shape
    one = 4 * scratch_floats(shape, inputs, outputs, 1)
    groups = max(TILES // shape.tiles, _l2_bytes() // 8 // one)
    return groups, scratch_floats(shape, inputs, outputs, groups)


# --- gradients of weights


def wgrad(x: Tensor, dy: Tensor, taps: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Of y = scale * (x * weight + bias), padded to the size of x: dw [Co, Ci, r, r], channels_last, and db [Co].

    x: [N, Ci, H, W]. dy: [N, Co, H, W]. The bits are the same for any number of threads.
    """
    n, inputs, height, width = x.shape
    outputs = dy.shape[1]
    shape = kernels().shape
    dw = torch.zeros(outputs, inputs, taps, taps).to(memory_format=torch.channels_last)
    if x.numel() == 0:
        return dw, torch.zeros(outputs)
    m = TILE - taps + 1
    tiles = n * -(-height // m) * -(-width // m)
    groups, floats = _gradient_block(inputs, outputs)
    chunk, chunks = _chunks(tiles, inputs, outputs)
    sums = empty_feature_map((chunks, TILE * TILE, outputs, inputs), x.dtype, kept=KEPT_IN_TRAINING)  # of no layout
    bias_sums = torch.empty(chunks, outputs)
    _call(
        f"wgrad{taps}x{taps}",
        floats,
        training=True,
        x=x.data_ptr(),
        dy=dy.data_ptr(),
        sums=sums.data_ptr(),
        bias_sums=bias_sums.data_ptr(),
        next_chunk=0,
        images=n,
        height=height,
        width=width,
        x_row=x.stride(2),
        x_image=x.stride(0),
        dy_height=height,
        dy_row=dy.stride(2),
        dy_image=dy.stride(0),
        padding=taps // 2,
        inputs=inputs // shape.lanes,
        outputs=outputs // shape.lanes,
        groups=groups,
        chunk=chunk,
    )
    _call(
        f"wgrad_end{taps}x{taps}",
        TILE * TILE * shape.lanes,
        training=True,
        sums=sums.data_ptr(),
        dw=dw.data_ptr(),
        next_output=0,
        chunks=chunks,
        inputs=inputs // shape.lanes,
        outputs=outputs // shape.lanes,
        scale=scale,
    )
    return dw, bias_sums.sum(0).mul_(scale)


def _chunks(tiles: int, inputs: int, outputs: int) -> tuple[int, int]:
    """(tiles of a chunk, chunks): a power of two of them, by the shape alone, so that threads change no bits."""
    least, chunks = max(CHUNK, _worth(inputs, outputs)), 1
    while chunks < CHUNKS and tiles >= 2 * chunks * least:
        chunks *= 2
    chunk = -(-tiles // chunks)
    return chunk, -(-tiles // chunk)


def _worth(inputs: int, outputs: int) -> int:
    """Tiles whose V and W are as much memory as S, which is read and written for each block and chunk."""
    return inputs * outputs // (inputs + outputs)


@cache
def _gradient_block(inputs: int, outputs: int) -> tuple[int, int]:
    """As `_block`: half of the L2 cache; or what S is worth, where that is in no L2 cache anyway."""
    from .codegen import scratch_floats

    shape = kernels().shape
    one = 4 * scratch_floats(shape, inputs, outputs, 1)
    groups = max(1, _l2_bytes() // 2 // one, _worth(inputs, outputs) // 2 // shape.tiles)
    return groups, scratch_floats(shape, inputs, outputs, groups)


# --- calls


def _call(name: str, floats: int = 1, training: bool = False, **fields: float) -> None:
    """A kernel on all threads. floats: of a thread's scratch. fields: all of its task's. training: whether it is one
    of those that are compiled for that alone."""
    layout, names = _layout(name)
    task = (ctypes.c_int64 * len(names))()
    layout.pack_into(task, 0, *map(fields.__getitem__, names))
    run_parallel(kernels(training).functions[name], ctypes.addressof(task), floats, torch.get_num_threads())


@cache
def _layout(name: str) -> tuple[struct.Struct, Sequence[str]]:
    from .codegen import TASKS

    names = TASKS[name[:-3]]
    return struct.Struct("=" + "".join("f4x" if n in ("floor", "scale") else "q" for n in names)), names

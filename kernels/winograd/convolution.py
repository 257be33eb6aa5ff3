"""Convolutions of tensors by the compiled kernels: filters are transformed, then applied.

Tensors here are fp32 on the CPU, rows of feature maps contiguous NHWC pixels, numbers of channels divisible by 16.
"""

import threading
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..allocator import CACHE_LINE
from .runtime import call_kernel, kernels, l2_bytes
from .transforms import TILE

if TYPE_CHECKING:
    from .tiles import Shape

MIN_BLOCK_TILES = 12  # all weights are read once for each block, and those of most layers do not fit the L2 cache
SAMPLED_VALUES = 32  # of a weight, which are compared, because fused optimizers do not count their writes


# --- filters


class TransformedFilter(NamedTuple):
    """A filter in Winograd's domain.

    u: U as in `codegen`. outputs: channels out, filled up to whole vectors with zeros.
    """

    u: Tensor
    outputs: int


class _Entry(NamedTuple):
    fingerprint: tuple
    filter: TransformedFilter


_transformed = WeakTensorKeyDictionary()  # weight -> _Entry
_lock = threading.Lock()


def transformed_filter(weight: Tensor, part: tuple[int, ...] = ()) -> TransformedFilter:
    """`transform_filter`, kept as long as the weight, and made again when the weight has been written to.

    part: indices of the filter in a tensor that holds several; always the same for one tensor.
    """
    fingerprint = _fingerprint(weight)
    with _lock:
        found = _transformed.get(weight)
        if found is None or found.fingerprint != fingerprint:
            found = _transformed[weight] = _Entry(fingerprint, transform_filter(weight.detach()[part]))
        return found.filter


def _fingerprint(x: Tensor) -> tuple:
    """Changes when x is written to. Tensors made in inference mode have no version; for them, values have to do."""
    values = x.detach().as_strided((min(SAMPLED_VALUES, x.numel()),), (max(1, x.numel() // SAMPLED_VALUES),)).tolist()
    return x.data_ptr(), 0 if x.is_inference() else x._version, *values


def transform_filter(weight: Tensor, flipped: bool = False) -> TransformedFilter:
    """A filter taken into Winograd's domain.

    Args:
        weight: [Co, Ci, r, r] of 3x3 or 5x5 taps, in any layout.
        flipped: whether to reverse the taps and exchange inputs and outputs, for the gradient of the input.
    """
    lanes = kernels().shape.lanes
    if not flipped:
        weight = pad_to_multiple(weight, lanes)
    outputs, inputs, taps, _ = weight.shape
    output, input_, row, column = weight.stride()
    first = weight.data_ptr()
    if flipped:
        first += weight.element_size() * (taps - 1) * (row + column)
        output, input_, row, column = input_, output, -row, -column
        inputs, outputs = outputs, inputs
    # NumPy's: what PyTorch allocates leaves holes that glibc before 2.38 does not fill, 30 MB in the end.
    u = torch.from_numpy(np.empty(TILE * TILE * inputs * outputs, np.float32))
    call_kernel(
        f"filter{taps}x{taps}",
        weight=first,
        u=u.data_ptr(),
        next_input=0,
        inputs=inputs,
        outputs=outputs // lanes,
        input=input_,
        output=output,
        row=row,
        column=column,
    )
    return TransformedFilter(u, outputs)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """x with zeros after it in its first axis, up to a multiple."""
    fill = -len(x) % multiple
    return torch.cat([x, x.new_zeros(fill, *x.shape[1:])]) if fill else x


# --- convolutions


def convolve(
    x: Tensor,
    filter_: TransformedFilter,
    bias: Tensor | None,
    taps: int,
    y: Tensor,
    padding: int,
    skip: Tensor | None = None,
    relu: bool = False,
    scale: float = 1.0,
    masks: bool = False,
) -> Tensor:
    """y = skip + scale * relu(x * filter + bias).

    Args:
        x: [N, Ci, H, W].
        bias: None for 0.
        taps: 3 or 5.
        y: [N, Co, H - taps + 1 + 2·padding, W], which is written to and returned.
        padding: rows of zeros above and below; those left and right keep the width.
        skip: like y. May be y itself.
        masks: whether the skip is a mask: nothing is added, and y is 0 where skip <= 0.
    """
    n, inputs, height, width = x.shape
    outputs, y_height = y.shape[1:3]
    if y.numel() == 0:
        return y
    compiled = kernels()
    lanes = compiled.shape.lanes
    bias = torch.zeros(outputs) if bias is None else pad_to_multiple(bias.detach().contiguous(), outputs)
    groups, scratch = _block_size(compiled.shape, inputs, outputs)
    # What is smaller will still be in the caches when the next layer reads it; a skip written over is in them already.
    large = y.numel() * y.itemsize > torch.get_num_threads() * l2_bytes()
    aligned = y.data_ptr() % CACHE_LINE == 0 and all(y.stride(i) * y.itemsize % CACHE_LINE == 0 for i in (0, 2))
    call_kernel(
        f"conv{taps}x{taps}",
        scratch,
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
        non_temporal=compiled.non_temporal and large and aligned and skip is not y,
        inputs=inputs // lanes,
        outputs=outputs // lanes,
        groups=groups,
        floor=0.0 if relu else -float("inf"),
        scale=scale,
    )
    return y


@cache
def _block_size(shape: "Shape", inputs: int, outputs: int) -> tuple[int, int]:
    """(groups of tiles in a block, floats of a thread's scratch): an eighth of the L2 cache, or MIN_BLOCK_TILES tiles.

    The rest is for weights, and for what comes next.
    """
    from .codegen import scratch_floats

    group_bytes = 4 * scratch_floats(shape, inputs, outputs, 1)
    groups = max(MIN_BLOCK_TILES // shape.tiles, l2_bytes() // 8 // group_bytes)
    return groups, scratch_floats(shape, inputs, outputs, groups)

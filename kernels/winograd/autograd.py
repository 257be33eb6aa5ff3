"""Every op of the network that is trained on a CPU, differentiable, under the names of `edsr.kernels.reference`.

All three products of a training step use Winograd's algorithm: the convolution, the gradient of its input, which is a
convolution with the flipped filter, and the gradient of its filter. PyTorch computes what the kernels do not support
(see `should_use`).
"""

from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import autograd, reference
from ..allocator import MAX_FREE_IN_TRAINING, empty_feature_map
from ..reference import collapsed_tail, head, tail
from .convolution import convolve, transform_filter
from .ops import CHANNELS, should_use
from .runtime import call_kernel, kernels, l2_bytes
from .transforms import TILE

if TYPE_CHECKING:
    from .tiles import Shape

__all__ = ["collapsed_tail", "conv3x3", "conv5x5", "head", "resblock", "tail"]


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    relu: bool = False,
    scale: float = 1.0,
    skip: Tensor | None = None,
    shuffle: int = 1,
    padding: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """pixel_shuffle(skip + scale * relu(x * weight + bias)), as `edsr.kernels.reference.conv3x3`.

    PyTorch computes it where a ReLU comes with scale, skip or shuffle, which no EDSR has, for bands (padding 0), and
    where `out` is given.
    """
    alone = not relu or (scale == 1.0 and skip is None and shuffle == 1)
    if padding != 1 or out is not None or not alone or not should_use(x, weight, bias, skip, gradients=True):
        return reference.conv3x3(x, weight, bias, relu, scale, skip, shuffle, padding, out)
    return autograd.Conv.apply(Products, x, weight, bias, relu, scale, skip, shuffle)  # pyright: ignore[reportReturnType]


def conv5x5(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `edsr.kernels.reference.conv5x5`, for any number of output channels."""
    outputs = len(bias)
    if fill := -outputs % CHANNELS:
        weight, bias = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, fill)), F.pad(bias, (0, fill))
    if not should_use(x, weight, bias, gradients=True):
        return F.conv2d(x, weight, bias, padding=2)[:, :outputs]
    y = autograd.Conv.apply(Products, x, weight, bias, False, 1.0, None, 1)
    return y[:, :outputs]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]


def resblock(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    scale: float = 1.0,
    out: Tensor | None = None,
    *,
    reuse: bool = False,
) -> Tensor:
    """x + scale * conv3x3(relu(conv3x3(x))), as `edsr.kernels.reference.resblock`, whether or not x may be reused."""
    layers = (weight1, bias1), (weight2, bias2)
    if out is not None or not all(should_use(x, *layer, gradients=True) for layer in layers):
        return reference.resblock(x, weight1, bias1, weight2, bias2, scale, out)
    return autograd.ResBlock.apply(Products, x, weight1, bias1, weight2, bias2, scale)  # pyright: ignore[reportReturnType]


class Products:
    """The three products that `edsr.kernels.autograd` needs, for weights of 3x3 or 5x5 taps."""

    @staticmethod
    def convolve(
        x: Tensor, weight: Tensor, bias: Tensor, relu: bool, scale: float, skip: Tensor | None, shuffle: int
    ) -> Tensor:
        y = _convolve(x, weight, bias, relu=relu, scale=scale, skip=skip)
        return F.pixel_shuffle(y, shuffle) if shuffle > 1 else y

    @staticmethod
    def dgrad(
        dy: Tensor, weight: Tensor, scale: float = 1.0, mask: Tensor | None = None, skip: Tensor | None = None
    ) -> Tensor:
        other = skip if mask is None else mask
        return _convolve(dy, weight, None, flipped=True, scale=scale, skip=other, masks=mask is not None)

    @staticmethod
    def wgrad(x: Tensor, dy: Tensor, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return wgrad(x, dy, weight.shape[2], scale)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, flipped: bool = False, **epilogue) -> Tensor:
    # Transformed each time: weights change with every step, and fused optimizers do not count their writes.
    filter_, taps = transform_filter(weight.detach(), flipped), weight.shape[2]
    y = empty_feature_map((len(x), filter_.outputs, *x.shape[2:]), x.dtype, max_free=MAX_FREE_IN_TRAINING)
    return convolve(x, filter_, bias, taps, y, taps // 2, **epilogue)


# --- the gradient of a filter

MIN_SPLIT_TILES = 64
MAX_SPLITS = 16  # each has an S of its own in memory


def wgrad(x: Tensor, dy: Tensor, taps: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The gradients of y = scale * (x * weight + bias), padded to the size of x, by weight and bias.

    Args:
        x: [N, Ci, H, W].
        dy: [N, Co, H, W].
        taps: 3 or 5.

    Returns:
        dw [Co, Ci, r, r], channels_last, and db [Co]. Their bits are the same for any number of threads.
    """
    n, inputs, height, width = x.shape
    outputs = dy.shape[1]
    dw = torch.zeros(outputs, inputs, taps, taps).to(memory_format=torch.channels_last)
    if x.numel() == 0:
        return dw, torch.zeros(outputs)
    m = TILE - taps + 1
    tiles = n * -(-height // m) * -(-width // m)
    shape = kernels().shape
    groups, scratch = _block_size(shape, inputs, outputs)
    tiles_per_split, splits = split_tiles(tiles, inputs, outputs)
    size = splits, TILE * TILE, outputs, inputs  # only memory: the kernels have a layout of their own
    sums = empty_feature_map(size, x.dtype, max_free=MAX_FREE_IN_TRAINING)
    bias_sums = torch.empty(splits, outputs)
    call_kernel(
        f"wgrad{taps}x{taps}",
        scratch,
        training=True,
        x=x.data_ptr(),
        dy=dy.data_ptr(),
        sums=sums.data_ptr(),
        bias_sums=bias_sums.data_ptr(),
        next_split=0,
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
        tiles_per_split=tiles_per_split,
    )
    call_kernel(
        f"wgrad_end{taps}x{taps}",
        TILE * TILE * shape.lanes,
        training=True,
        sums=sums.data_ptr(),
        dw=dw.data_ptr(),
        next_output=0,
        splits=splits,
        inputs=inputs // shape.lanes,
        outputs=outputs // shape.lanes,
        scale=scale,
    )
    return dw, bias_sums.sum(0).mul_(scale)


def split_tiles(tiles: int, inputs: int, outputs: int) -> tuple[int, int]:
    """How the sum over tiles is split (split-K), from the shape alone: the number of threads must not change any bit.

    Args:
        tiles: of all images.
        inputs: channels in.
        outputs: channels out.

    Returns:
        Tiles per split, and the number of splits, a power of two unless the last ones would be empty.
    """
    min_tiles, splits = max(MIN_SPLIT_TILES, _break_even_tiles(inputs, outputs)), 1
    while splits < MAX_SPLITS and tiles >= 2 * splits * min_tiles:
        splits *= 2
    tiles_per_split = -(-tiles // splits)
    return tiles_per_split, -(-tiles // tiles_per_split)


def _break_even_tiles(inputs: int, outputs: int) -> int:
    """How many tiles have V and W as large as S, which is read and written for each block of a split."""
    return inputs * outputs // (inputs + outputs)


@cache
def _block_size(shape: "Shape", inputs: int, outputs: int) -> tuple[int, int]:
    """(groups of tiles in a block, floats of a thread's scratch).

    A block fills half of the L2 cache; where S exceeds the cache anyway, it has half of the break-even tiles.
    """
    from .codegen import scratch_floats

    group_bytes = 4 * scratch_floats(shape, inputs, outputs, 1)
    groups = max(1, l2_bytes() // 2 // group_bytes, _break_even_tiles(inputs, outputs) // 2 // shape.tiles)
    return groups, scratch_floats(shape, inputs, outputs, groups)

"""The ops of `kernels.reference` for CPUs, in fp32, the 3x3 and 5x5 convolutions by Winograd's algorithm.

A quarter of the multiplications of direct convolution (3x3; nine 25ths for 5x5), all of a tile's steps inside the L2
cache, bias, ReLU, scale and skip before it is written, on as many threads as PyTorch has. The error is no more than
twice that of PyTorch in fp32. Needs llvmlite, and AVX2, AVX-512 or NEON; what the kernels do not serve (other dtypes,
numbers of channels not divisible by 16, gradients, maps not channels_last) goes to `kernels.reference`.
"""

import ctypes
import importlib
import logging
import struct
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from kernels import reference
from kernels.memory import LINE, empty_map
from kernels.reference import AS_COMPUTED, INNER, Result, head, tail
from kernels.winograd_cpu.threads import run_everywhere
from kernels.winograd_cpu.transforms import TILE, matrices

__all__ = ["collapsed_tail", "conv3x3", "head", "ready", "resblock", "tail", "trouble"]

log = logging.getLogger(__name__)
CHANNELS = 16  # their numbers are multiples of it
TILES = 6  # in a block, at least: all weights are read once for each block


def trouble() -> str:
    """Why the kernels cannot run on this machine; empty if they can, as far as is known before they are compiled."""
    try:
        native = importlib.import_module("kernels.winograd_cpu.native")
    except ImportError:
        return "the package llvmlite is not installed"
    except OSError as error:  # it is, but its library cannot be loaded
        return f"llvmlite cannot be used: {error}"
    try:
        native.this_machine()
    except native.NativeError as error:
        return str(error)
    return ""


def ready(say: Callable[[str], None]) -> str:
    """Compiles the kernels unless that has been done on this machine; as `trouble` when that has been tried.

    say: gets a line if they are compiled.
    """
    reason = trouble()
    if not reason:
        native = importlib.import_module("kernels.winograd_cpu.native")
        try:
            native.load(say)
        except native.NativeError as error:
            return str(error)
    return reason


@cache
def _kernels():
    """The kernels, or None where there are none, which is told once."""
    reason = ready(log.info)
    if reason:
        log.warning("%s: PyTorch computes", reason)
        return None
    return importlib.import_module("kernels.winograd_cpu.native").load()


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
    """As `kernels.reference.conv3x3`. out may be skip's memory, pixel by pixel, but not x's.

    The weight's transform is kept as long as the weight, and made again when the weight is written to.
    """
    if not _serves(x, weight, bias, skip, None if shuffle > 1 else out):
        return reference.conv3x3(x, weight, bias, relu, scale, skip, shuffle, padding, out)
    n, _, height, width = x.shape
    size = (n, weight.shape[0], height - 2 + 2 * padding, width)
    y = empty_map(size, x.dtype) if out is None or shuffle > 1 else out
    _convolve("conv3x3", x, _transformed(weight, bias, 3), y, padding, skip, relu, scale)
    if shuffle > 1:
        y = F.pixel_shuffle(y, shuffle)
        return y if out is None else out.copy_(y)
    return y


def resblock(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """x + scale * conv3x3(relu(conv3x3(x))), as `kernels.reference.resblock`; out may be x."""
    y = conv3x3(x, weight1, bias1, relu=True)
    return conv3x3(y, weight2, bias2, scale=scale, skip=x, out=out)


def collapsed_tail(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Sequence[float],
    shuffle: int,
    result: Result = AS_COMPUTED,
    padding: int = 2,
    ends: tuple[bool, bool] = (True, True),
) -> Tensor:
    """As `kernels.reference.collapsed_tail`; the ring in the same thin strips."""
    if not _serves(x, weight[INNER, INNER], bias[INNER, INNER], outputs=False):
        return reference.collapsed_tail(x, weight, bias, mean, shuffle, result, padding, ends)
    n, _, height, width = x.shape
    kept = _transformed(weight, bias, 5)
    y = empty_map((n, kept.outputs, height - 4 + 2 * padding, width), x.dtype)
    _convolve("conv5x5", x, kept, y, padding)
    y = y[:, : weight.shape[2]]
    reference.ring_conv5x5(y, x, weight, bias, padding, *ends)
    return reference.finish(F.pixel_shuffle(y, shuffle), mean, result)


# --- operands


def _serves(x: Tensor, weight: Tensor, bias: Tensor, *maps: Tensor | None, outputs: bool = True) -> bool:
    """Whether the kernels do this convolution. outputs: whether the number of channels out must be theirs, too."""
    operands = [t for t in (x, weight, bias, *maps) if t is not None]
    return (
        all(t.dtype == torch.float32 and t.device.type == "cpu" for t in operands)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in operands))
        and not any(size % CHANNELS for size in (weight.shape[:2] if outputs else weight.shape[1:2]))
        and all(_channels_last(t) for t in (x, *maps) if t is not None)
        and _kernels() is not None
    )


def _channels_last(x: Tensor) -> bool:
    """Whether rows are dense runs of NHWC pixels; rows and pictures may lie apart."""
    _, c, _, w = x.shape
    return (c == 1 or x.stride(1) == 1) and (w == 1 or x.stride(3) == c)


class _Weights(NamedTuple):
    """weight: U of `codegen`. outputs: channels out, filled up to whole vectors with zeros; bias has as many."""

    weight: Tensor
    bias: Tensor
    outputs: int
    state: tuple


_kept = WeakTensorKeyDictionary()  # weight -> _Weights
_keeping = threading.Lock()


def _transformed(weight: Tensor, bias: Tensor, taps: int) -> _Weights:
    """U and bias of a convolution, made when they are first asked for. For 5x5 of the inner border class."""
    state = (_version(weight), _version(bias))
    with _keeping:
        found = _kept.get(weight)
        if found is None or found.state != state:
            inner = (weight, bias) if taps == 3 else (weight[INNER, INNER], bias[INNER, INNER])
            found = _kept[weight] = _Weights(*_arranged(*inner, taps), state)
        return found


def _version(x: Tensor) -> tuple[int, int]:
    """Changes when x is written to. Tensors made in inference mode do not count; they are taken to stay as they are."""
    return x.data_ptr(), 0 if x.is_inference() else x._version


def _arranged(weight: Tensor, bias: Tensor, taps: int) -> tuple[Tensor, Tensor, int]:
    """G g Gᵀ, composed in fp64 and rounded once, in the order of `codegen`'s U; bias; channels out."""
    shape = _kernels().shape
    g = matrices(TILE - taps + 1, taps)[1]
    outputs, inputs = weight.shape[:2]
    taps_first = weight.detach().numpy().transpose(2, 3, 1, 0).reshape(taps * taps, -1)
    # In NumPy: what PyTorch allocates leaves holes that glibc before 2.38 does not fill, 30 MB in the end.
    u = (np.kron(g, g) @ taps_first.astype(np.float64)).reshape(TILE * TILE, inputs, outputs)
    fill = -outputs % shape.lanes  # to whole vectors
    u = np.pad(u, ((0, 0), (0, 0), (0, fill)))
    width = shape.lanes * shape.vectors
    strips = [u[..., i : i + width].astype(np.float32).ravel() for i in range(0, outputs, width)]
    return torch.from_numpy(np.concatenate(strips)), F.pad(bias.detach(), (0, fill)), outputs + fill


# --- execution

_layout = struct.Struct("=17q f4x f4x")  # `codegen.TASK`


def _convolve(
    name: str,
    x: Tensor,
    weights: _Weights,
    y: Tensor,
    padding: int,
    skip: Tensor | None = None,
    relu: bool = False,
    scale: float = 1.0,
) -> None:
    """y = skip + scale * relu(x * weight + bias), picture by picture."""
    kernels = _kernels()
    n, inputs, height, width = x.shape
    outputs, y_height = y.shape[1:3]
    if y.numel() == 0:
        return
    groups, floats = _block(inputs, outputs)
    task = (ctypes.c_int64 * (_layout.size // 8))()
    threads = torch.get_num_threads()
    # What is smaller will still be in the caches when the next layer reads it.
    past_caches = kernels.past_caches and y[0].numel() * y.itemsize > threads * _l2_bytes()
    for i in range(n):
        _layout.pack_into(
            task,
            0,
            x[i].data_ptr(),
            weights.weight.data_ptr(),
            weights.bias.data_ptr(),
            y[i].data_ptr(),
            0 if skip is None else skip[i].data_ptr(),
            0,
            height,
            width,
            x.stride(2),
            y_height,
            y.stride(2),
            0 if skip is None else skip.stride(2),
            padding,
            past_caches and not (y[i].data_ptr() % LINE or y.stride(2) * y.itemsize % LINE),
            inputs // kernels.shape.lanes,
            outputs // kernels.shape.lanes,
            groups,
            0.0 if relu else -float("inf"),
            scale,
        )
        run_everywhere(kernels.functions[name], ctypes.addressof(task), floats, threads)


@cache
def _l2_bytes() -> int:
    return importlib.import_module("kernels.winograd_cpu.native").l2_bytes()


@cache
def _block(inputs: int, outputs: int) -> tuple[int, int]:
    """(groups of tiles in a block, floats of a thread's scratch): an eighth of the L2 cache.

    The rest is for weights, and for what comes next.
    """
    codegen = importlib.import_module("kernels.winograd_cpu.codegen")
    shape = _kernels().shape
    one = 4 * codegen.scratch_floats(shape, inputs, outputs, 1)
    groups = max(TILES // shape.tiles, _l2_bytes() // 8 // one)
    return groups, codegen.scratch_floats(shape, inputs, outputs, groups)

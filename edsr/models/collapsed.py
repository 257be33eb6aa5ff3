"""Training on the collapsed tail: the step's network is the plain one, its linear end done as one 5x5 convolution.

What `edsr.models.folding` does once before inference, here under autograd and cheaply enough for every step:
upsampler and tail, composed into the weights of `edsr.kernels.reference.collapsed_tail`, from which the gradient goes
back to their own. Exact, border classes included; parameters stay the plain network's.

In rows alone, a way from an output to an input goes through taps of the tail and of each upsampler convolution, one
each, and counts if no row on it lies outside the image. Columns are the same, and independent. So weights are
composed by products over channels, with matrices of zeros and ones on either axis between that say which taps meet.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edsr.kernels import RAW_OUTPUT, OutputSpec, conv5x5, ringed_conv5x5, to_output

from .edsr import EDSR
from .folding import BORDER_CLASSES

COLLAPSED_FROM = 1024  # LR pixels of one process's patches in a step
_TAPS = (-1, 0, 1)
Maps = list[tuple[Tensor, Tensor]]
Grid = list[list[Tensor]]  # by border class of row and of column
_Way = tuple[int, tuple[int, ...]]  # output row within its pixel; rows passed, in pixels from that pixel


class CollapsedEDSR(EDSR):
    """`model` itself, sharing its parameters under their names, but for how it gets from body to image.

    For training: `model` is on its device. Composes anew at each forward, in at least fp32 and without waiting for the
    device, then rounds to the dtype of the parameters. Ops may have a `conv5x5` of their own, see `reference.conv5x5`.
    """

    def __init__(self, model: EDSR):
        nn.Module.__init__(self)
        self.config = model.config
        self.head, self.body, self.body_end = model.head, model.body, model.body_end
        self.upsampler, self.tail = model.upsampler, model.tail
        kind = model.tail.weight
        # No buffers: DistributedDataParallel would send them round, and a graph needs them where they are.
        self._maps = maps(model.config.shuffle_factors, torch.promote_types(kind.dtype, torch.float32), kind.device)

    def reconstruct(self, x: Tensor, ops: Any, result: OutputSpec = RAW_OUTPUT) -> Tensor:
        weights, biases = compose(self, self._maps, x.dtype)
        y = ringed_conv5x5(x, weights, biases, getattr(ops, "conv5x5", conv5x5))
        return to_output(F.pixel_shuffle(y, self.config.scale), self.config.mean, result)


def worth_collapsing(device: torch.device, pixels: int) -> bool:
    """Whether a step of so many LR pixels is faster on the collapsed tail, as far as that was measured."""
    # Time of a step on the plain tail by that on the collapsed one, x2 / x3 / x4, by the LR pixels of a batch; one
    # thread of a Zen 4 (AVX-512), PyTorch's convolutions, 64 features: 1024 pixels 1.05 / 1.17 / 1.26, 2304 pixels
    # 1.12 / 1.23 / 1.49, 36,864 pixels 1.14 / - / 1.73; 256 features, 1024 pixels: 1.22 / - / 1.25. But 64 features and
    # 64 pixels: 0.90 / - / 0.61, as composing takes some 3 / 9 / 30 ms. On GPUs nobody has measured it.
    return device.type == "cpu" and pixels >= COLLAPSED_FROM


def compose(model: EDSR, maps: Maps, dtype: torch.dtype) -> tuple[Grid, Grid]:
    """`edsr.models.folding.collapse`, differentiable, without the taps that lie outside the image: (weights, biases).

    Each by border class of row and of column: [3·s², C, 5, 5] with C innermost in memory, with 3 taps for 5 in a first
    or last row or column and 1 in an only one; [3·s²]. maps: of the network, see `maps`, in whose dtype all is
    computed, then rounded to `dtype`.
    """
    kind = maps[0][0].dtype
    weight = model.tail.weight.to(kind).permute(2, 3, 0, 1)  # [row tap, column tap, color, channel between layers]
    bias = model.tail.bias  # then [output row, output column, color]
    assert bias is not None
    bias = bias.to(kind)
    layers = zip(reversed(model.upsampler), reversed(model.config.shuffle_factors), maps, strict=True)
    for layer, r, (to_taps, to_outputs) in layers:
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        n, _, colors, inner = weight.shape
        outer = layer.in_channels
        weight = weight.reshape(-1, inner)
        constant = (weight @ layer.bias.to(kind).view(inner, r * r)).view(n, n, colors, r, r)
        bias = bias + _on_both_axes(to_outputs, constant.permute(0, 3, 1, 4, 2))
        taps = layer.weight.to(kind).view(inner, r, r, outer, 3, 3).permute(0, 1, 4, 2, 5, 3)
        product = (weight @ taps.reshape(inner, -1)).view(n, n, colors, 3 * r, 3 * r, outer)
        weight = _on_both_axes(to_taps, product.permute(0, 3, 1, 4, 2, 5))
    s = model.config.scale
    lengths = [length for length, _, _ in BORDER_CLASSES.values()]
    weights = [
        [_weight(part, s).to(dtype) for part in rows.split([s * length for length in lengths], 1)]
        for rows in weight.split([s * length for length in lengths])
    ]
    biases = [[part.permute(2, 0, 1).flatten().to(dtype) for part in rows.split(s, 1)] for rows in bias.split(s)]
    return weights, biases


def _weight(part: Tensor, s: int) -> Tensor:
    """[s·h, s·w, 3, C] -> [3·s², C, h, w], C innermost in memory."""
    rows, columns, colors, c = part.shape
    h, w = rows // s, columns // s
    part = part.view(s, h, s, w, colors, c).permute(4, 0, 2, 1, 3, 5)
    return part.reshape(colors * s * s, h, w, c).permute(0, 3, 1, 2)


def _on_both_axes(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix [O, I·J] times x [I, J, I, J, ...] in rows and in columns: [O, O, ...]."""
    rest = x.shape[4:]
    i = matrix.shape[1]
    x = (matrix @ x.reshape(i, -1)).view(matrix.shape[0], i, -1)
    return (matrix @ x).view(matrix.shape[0], matrix.shape[0], *rest)


def maps(shuffles: Sequence[int], dtype: torch.dtype, device: torch.device) -> Maps:
    """For each upsampler convolution, from the tail's on: how its taps and how its bias go on, in matrices of 0 and 1.

    Columns: (way so far, row within r, its 3 taps); (way so far, row within r). Rows: of all matrices for taps but the
    last, the ways there are; of the last, for each border class, (output row within s, taps that `compose` gives);
    for biases (border class, output row within s).
    """
    found = []
    ways: list[_Way] = [(0, (tap,)) for tap in _TAPS]
    size = 1  # output rows to a row of the map in which ways end
    for k, r in reversed([*enumerate(shuffles)]):
        ends = [(way, n * r + row) for n, before in enumerate(ways) for way, row in _coarser(before, size, r)]
        size *= r
        on = [((start, (*at, at[-1] + tap)), 3 * column + tap + 1) for (start, at), column in ends for tap in _TAPS]
        whole = size
        for coarse in reversed(shuffles[:k]):
            ends = [(way, column) for before, column in ends for way, _ in _coarser(before, whole, coarse)]
            whole *= coarse
        to_outputs = torch.zeros(4, whole, len(ways) * r)
        for border, (length, here, _) in BORDER_CLASSES.items():
            for start, _, column in _inside(ends, length, here):
                to_outputs[border, start, column] = 1
        if k > 0:
            columns, ways = 3 * len(ways) * r, list(dict.fromkeys(way for way, _ in on))
            to_taps = torch.zeros(len(ways), columns)
            for way, column in on:
                to_taps[ways.index(way), column] = 1
        else:
            windows = []
            for length, here, _ in BORDER_CLASSES.values():
                window = torch.zeros(size, length, 3 * len(ways) * r)
                for start, seen, column in _inside(on, length, here):
                    window[start, seen, column] = 1
                windows.append(window.flatten(0, 1))
            to_taps = torch.cat(windows)
        found.append((to_taps.to(device, dtype), to_outputs.flatten(0, 1).to(device, dtype)))
    return found


def _coarser(way: _Way, size: int, r: int) -> Iterator[tuple[_Way, int]]:
    """`way` as seen from a pixel of r rows, begun in each of them, and the row within its pixel in which it ends."""
    start, trail = way
    for within in range(r):
        yield (within * size + start, tuple((within + at) // r for at in trail)), (within + trail[-1]) % r


def _inside(ways: list[tuple[_Way, int]], length: int, here: int) -> Iterator[tuple[int, int, int]]:
    """Of ways from row `here` of an image of `length` those that stay inside: (output row, where it ends, column)."""
    for (start, trail), column in ways:
        if all(0 <= here + at < length for at in trail):
            yield start, here + trail[-1], column

"""Training with a collapsed tail: the plain network, whose linear end is computed as one 5x5 convolution.

`edsr.models.folding` does this once before inference; here it is done under autograd, cheaply enough for every step.
Upsampler and tail are composed into the weights of `edsr.kernels.reference.collapsed_tail`, and the gradient flows
back to their own weights. It is exact, border classes included, and the parameters remain the plain network's.

Along rows, a path from an output to an input passes one tap of the tail and one of each upsampler convolution, and
counts if no row on it lies outside the image. Columns are the same, and independent. So the weights are composed by
matrix products over channels, and between them, on either axis, by matrices of zeros and ones that say which taps meet.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edsr.kernels import RAW_OUTPUT, Ops, OutputSpec, conv5x5, ringed_conv5x5, to_output

from .edsr import EDSR, M
from .folding import BORDER_CLASSES
from .network import weight_and_bias

COLLAPSED_FROM = 1024  # LR pixels of one process's patches in a step
_TAPS = (-1, 0, 1)
TapMatrices = list[tuple[Tensor, Tensor]]
ClassGrid = list[list[Tensor]]  # by border class of row and of column
_Path = tuple[int, tuple[int, ...]]  # output row within its pixel; rows passed, relative to that pixel


class CollapsedEDSR(EDSR):
    """`model` with another way from features to the image. It shares the parameters, under the same names.

    For training. The weights are composed at every forward pass, in at least fp32 and without waiting for the device,
    then rounded to the dtype of the parameters. Operations may have a `conv5x5` of their own, see
    `edsr.kernels.reference.conv5x5`.

    Args:
        model: The plain network, already on its device.
    """

    def __init__(self, model: EDSR):
        nn.Module.__init__(self)
        self.config = model.config
        self.head, self.entry, self.body, self.body_end = model.head, model.entry, model.body, model.body_end
        self.upsampler, self.tail = model.upsampler, model.tail
        weight = model.tail.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        # Not buffers: DistributedDataParallel would broadcast them, and a CUDA graph needs them to stay in place.
        self._matrices = tap_matrices(model.config.shuffle_factors, dtype, weight.device)

    def reconstruct(self, x: M, ops: Ops[M], result: OutputSpec = RAW_OUTPUT) -> Tensor:
        assert isinstance(x, Tensor)  # training knows no bands
        weights, biases = compose(self, self._matrices, x.dtype)
        y = ringed_conv5x5(x, weights, biases, getattr(ops, "conv5x5", conv5x5))
        return to_output(F.pixel_shuffle(y, self.config.scale), self.config.mean, result)


def worth_collapsing(device: torch.device, pixels: int) -> bool:
    """Whether a training step on so many LR pixels is faster with the collapsed tail, as far as that was measured."""
    # Time of a step with the plain tail over that with the collapsed one, x2 / x3 / x4, by LR pixels of a batch; one
    # thread of a Zen 4 (AVX-512), PyTorch's convolutions, 64 features: 1024 pixels 1.05 / 1.17 / 1.26, 2304 pixels
    # 1.12 / 1.23 / 1.49, 36,864 pixels 1.14 / - / 1.73; 256 features, 1024 pixels: 1.22 / - / 1.25. But 64 features and
    # 64 pixels: 0.90 / - / 0.61, because composing takes some 3 / 9 / 30 ms. On GPUs nobody has measured it.
    return device.type == "cpu" and pixels >= COLLAPSED_FROM


def compose(model: EDSR, matrices: TapMatrices, dtype: torch.dtype) -> tuple[ClassGrid, ClassGrid]:
    """`edsr.models.folding.collapse`, differentiable and without the taps that lie outside the image.

    Args:
        model: The network whose upsampler and tail are composed.
        matrices: What `tap_matrices` gives for it. Everything is computed in their dtype.
        dtype: What the results are rounded to.

    Returns:
        Weights and biases, each by border class of row and of column. Weights are [3·s², C, 5, 5] with C innermost in
        memory, with 3 taps instead of 5 in a first or last row or column, and 1 in an only one. Biases are [3·s²].
    """
    kind = matrices[0][0].dtype
    weight, bias = weight_and_bias(model.tail)
    weight = weight.to(kind).permute(2, 3, 0, 1)  # [row tap, column tap, color, channel between layers]
    bias = bias.to(kind)  # then [output row, output column, color]
    layers = zip(reversed(model.upsampler), reversed(model.config.shuffle_factors), matrices, strict=True)
    for layer, r, (to_taps, to_outputs) in layers:
        layer_weight, layer_bias = weight_and_bias(layer)
        n, _, colors, inner = weight.shape
        outer = layer_weight.shape[1]
        weight = weight.reshape(-1, inner)
        constant = (weight @ layer_bias.to(kind).view(inner, r * r)).view(n, n, colors, r, r)
        bias = bias + _on_both_axes(to_outputs, constant.permute(0, 3, 1, 4, 2))
        taps = layer_weight.to(kind).view(inner, r, r, outer, 3, 3).permute(0, 1, 4, 2, 5, 3)
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


def tap_matrices(shuffle_factors: Sequence[int], dtype: torch.dtype, device: torch.device) -> TapMatrices:
    """Matrices of 0 and 1 that say how the taps and the bias of each upsampler convolution go on to the output.

    Returns:
        A pair for each upsampler convolution, from the one next to the tail on: for its taps and for its bias. The
        columns of the first stand for (path so far, row within r, its 3 taps), those of the second for (path so far,
        row within r). The rows of the first stand for the paths there are then; in the last pair, for each border
        class, for (output row within s, taps that `compose` gives). The rows of the second stand for (border class,
        output row within s).
    """
    found = []
    paths: list[_Path] = [(0, (tap,)) for tap in _TAPS]
    size = 1  # output rows to a row of the map in which paths end
    for k, r in reversed([*enumerate(shuffle_factors)]):
        ends = [(path, n * r + row) for n, before in enumerate(paths) for path, row in _coarsen(before, size, r)]
        size *= r
        longer = [((start, (*at, at[-1] + tap)), 3 * column + tap + 1) for (start, at), column in ends for tap in _TAPS]
        scale = size
        for coarse in reversed(shuffle_factors[:k]):
            ends = [(path, column) for before, column in ends for path, _ in _coarsen(before, scale, coarse)]
            scale *= coarse
        to_outputs = torch.zeros(4, scale, len(paths) * r)
        for border, (length, here, _) in BORDER_CLASSES.items():
            for start, _, column in _inside(ends, length, here):
                to_outputs[border, start, column] = 1
        if k > 0:
            columns, paths = 3 * len(paths) * r, list(dict.fromkeys(path for path, _ in longer))
            to_taps = torch.zeros(len(paths), columns)
            for path, column in longer:
                to_taps[paths.index(path), column] = 1
        else:
            windows = []
            for length, here, _ in BORDER_CLASSES.values():
                window = torch.zeros(size, length, 3 * len(paths) * r)
                for start, seen, column in _inside(longer, length, here):
                    window[start, seen, column] = 1
                windows.append(window.flatten(0, 1))
            to_taps = torch.cat(windows)
        found.append((to_taps.to(device, dtype), to_outputs.flatten(0, 1).to(device, dtype)))
    return found


def _coarsen(path: _Path, size: int, r: int) -> Iterator[tuple[_Path, int]]:
    """`path` in pixels of r rows, begun in each of them, and the row within its pixel in which it ends."""
    start, trail = path
    for within in range(r):
        yield (within * size + start, tuple((within + at) // r for at in trail)), (within + trail[-1]) % r


def _inside(paths: list[tuple[_Path, int]], length: int, here: int) -> Iterator[tuple[int, int, int]]:
    """Of paths from row `here` of an image of `length`, those that stay inside: (output row, where it ends, column)."""
    for (start, trail), column in paths:
        if all(0 <= here + at < length for at in trail):
            yield start, here + trail[-1], column

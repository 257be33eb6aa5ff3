"""Folding a network before inference: the same function with less work.

The residual scale goes into the second convolution of each block. Upsampler and tail, which are linear from the body to
the image, become one 5x5 convolution from C to 3·s² channels followed by one pixel shuffle: 12.4 % (s = 2), 12.4 % (3)
and 10.0 % (4) of their multiplications at C = 64.

The 5x5 convolution differs only in the outermost ring of LR pixels, because the plain network pads with zeros at high
resolution, too. So there are sixteen sets of weights, for a pixel whose row is inner, first, last or the only one, and
whose column likewise.
"""

import copy
from dataclasses import replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edsr.kernels import FIRST, INNER, LAST, ONLY, RAW_OUTPUT, Ops, OutputSpec, load_ops

from .edsr import EDSR, M, ResBlock
from .network import Network, undo, weight_and_bias

N = TypeVar("N", bound=Network)

# Border class -> (length of an image that has such a pixel, that pixel, where its window starts in the 5 taps).
BORDER_CLASSES = {
    INNER: (5, 2, 0),
    FIRST: (3, 0, 2),
    LAST: (3, 2, 0),
    ONLY: (1, 0, 2),
}


class FoldedEDSR(EDSR):
    """An EDSR for inference, with the same output to rounding as the model it is made from.

    Its tail is composed in fp64 and stored in the dtype and on the device of `model`, which is left untouched.

    Attributes:
        tail_weight: [4, 4, 3·s², C, 5, 5], indexed by the border class of row and column; C is innermost in memory.
        tail_bias: [4, 4, 3·s²], likewise.
    """

    tail_weight: Tensor
    tail_bias: Tensor

    def __init__(self, model: EDSR):
        nn.Module.__init__(self)
        self.config = replace(model.config, residual_scale=1.0)
        self.head = copy.deepcopy(model.head)
        self.entry = copy.deepcopy(model.entry)
        self.body = copy.deepcopy(model.body)
        self.body_end = copy.deepcopy(model.body_end)
        with torch.no_grad():
            for block in self.body:
                assert isinstance(block, ResBlock)
                for p in block.conv2.parameters():
                    p.copy_(p.double() * block.residual_scale)
                block.residual_scale = 1.0
        weight, bias = collapse(model)
        kind = model.tail.weight
        self.register_buffer("tail_weight", _channels_innermost(weight.to(kind.device, kind.dtype)))
        self.register_buffer("tail_bias", bias.to(kind.device, kind.dtype))
        self.requires_grad_(False)
        self.eval()

    def reconstruct(self, x: M, ops: Ops[M], result: OutputSpec = RAW_OUTPUT) -> Tensor:
        c = self.config
        return ops.collapsed_tail(x, self.tail_weight, self.tail_bias, c.mean, c.scale, result)

    def dihedral(self, flip_rows: bool, flip_columns: bool, swap: bool) -> "FoldedEDSR":
        result = super().dihedral(flip_rows, flip_columns, swap)
        assert isinstance(result, FoldedEDSR)
        r = self.config.scale
        # [row class, column class, color, row and column of a pixel's r x r, channel, row and column of the kernel]
        weight = self.tail_weight.unflatten(2, (3, r, r))
        bias = self.tail_bias.unflatten(2, (3, r, r))
        for rows, columns in ((0, 1), (3, 4), (6, 7)):
            weight = undo(weight, (rows, columns), flip_rows, flip_columns, swap, classes=rows == 0)
        for rows, columns in ((0, 1), (3, 4)):
            bias = undo(bias, (rows, columns), flip_rows, flip_columns, swap, classes=rows == 0)
        result.tail_weight = _channels_innermost(weight.flatten(2, 4))
        result.tail_bias = bias.flatten(2, 4).contiguous()
        return result


def fold(model: Network) -> Network:
    """A copy of a network for inference, with the same output to rounding and less work."""
    return FoldedEDSR(model) if isinstance(model, EDSR) else model.folded()


def dihedral(model: N, flip_rows: bool = False, flip_columns: bool = False, swap: bool = False) -> N:
    """The network that does what `model` does between transforming an image and transforming the result back.

    It is the weights that are transformed, so an image can be streamed row by row through all eight of the
    self-ensemble (section 3.4 of the paper). Flips come first, then the swap.

    Args:
        model: What `fold` gave, left untouched.
        flip_rows: Whether the image is flipped upside down.
        flip_columns: Whether it is flipped left to right.
        swap: Whether rows and columns change places.
    """
    return model.dihedral(flip_rows, flip_columns, swap)  # pyright: ignore[reportReturnType]


def _channels_innermost(weight: Tensor) -> Tensor:
    """[4, 4, 3·s², C, 5, 5] with C innermost in memory, as in a channels_last weight."""
    return weight.permute(0, 1, 2, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4)


@torch.inference_mode(False)
@torch.no_grad()
def collapse(model: EDSR) -> tuple[Tensor, Tensor]:
    """Upsampler and tail as one 5x5 convolution: weight [4, 4, 3·s², C, 5, 5] and bias [4, 4, 3·s²] in fp64.

    The first two axes are the border classes of row and column (`edsr.kernels.INNER` and so on).
    """
    s, c = model.config.scale, model.config.features
    device = model.tail.weight.device
    kind = {"dtype": torch.float64, "device": "cpu" if device.type == "mps" else device}  # MPS has no fp64
    plain = EDSR.__new__(EDSR)  # what `reconstruct` needs, without the body
    nn.Module.__init__(plain)
    plain.config = model.config
    plain.upsampler, plain.tail = copy.deepcopy(model.upsampler), copy.deepcopy(model.tail)
    plain.to(**kind)
    outputs = 3 * s * s
    mean = torch.tensor(model.config.mean, **kind).repeat_interleave(s * s)
    each_output = torch.eye(outputs, **kind).view(outputs, 3, s, s)
    weight = torch.zeros(4, 4, outputs, c, 5, 5, **kind)
    bias = torch.zeros(4, 4, outputs, **kind)
    for row_class, (height, i, top) in BORDER_CLASSES.items():
        for column_class, (width, j, left) in BORDER_CLASSES.items():
            rows, columns = slice(i * s, (i + 1) * s), slice(j * s, (j + 1) * s)  # of one pixel
            chosen = torch.zeros(outputs, 3, height * s, width * s, **kind)
            chosen[:, :, rows, columns] = each_output
            matrix = _transposed(plain, chosen)
            weight[row_class, column_class, :, :, top : top + height, left : left + width] = matrix
            constant = plain.reconstruct(torch.zeros(1, c, height, width, **kind), load_ops("torch"))
            bias[row_class, column_class] = constant[0, :, rows, columns].reshape(outputs) - mean
    return weight, bias


def _transposed(model: EDSR, y: Tensor) -> Tensor:
    """The transpose of `EDSR.reconstruct`'s matrix times y, [N, 3, s·H, s·W] -> [N, C, H, W]: its row for one output.

    Autograd would compute it, too, but with it PyTorch imports sympy: half a second and 60 MB.
    """
    x = F.conv_transpose2d(y, model.tail.weight, padding=1)
    for layer, r in reversed(list(zip(model.upsampler, model.config.shuffle_factors, strict=True))):
        weight, _ = weight_and_bias(layer)
        x = F.conv_transpose2d(F.pixel_unshuffle(x, r), weight, padding=1)
    return x

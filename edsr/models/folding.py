"""Exact algebra before inference: the same function in less work.

Residual scale goes into the second convolution of each block. Upsampler and tail, linear from the body
to the image, become one 5x5 convolution from C to 3·s² channels followed by one pixel shuffle: 12.4 %
(s = 2), 12.4 % (3) and 10.0 % (4) of their multiplications at C = 64.

Only in the outermost ring of LR pixels does the 5x5 convolution differ, because the plain network pads
with zeros at high resolution too. So there are sixteen sets of weights, for a pixel whose row is inner,
first, last or the only one, and whose column is likewise.
"""

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edsr.kernels import FIRST, INNER, LAST, ONLY, RAW_OUTPUT, load_ops

from .edsr import EDSR, ResBlock

reference = load_ops("torch")

# Border class -> (an image's length in which some pixel has it, that pixel, where its window starts in 5 taps).
BORDER_CLASSES = {
    INNER: (5, 2, 0),
    FIRST: (3, 0, 2),
    LAST: (3, 2, 0),
    ONLY: (1, 0, 2),
}


class FoldedEDSR(EDSR):
    """An EDSR with the same output as the one it is made from, to rounding, for inference only.

    Composed in fp64, stored in the dtype, device and memory format of `model`, which is left untouched.
    """

    tail_weight: Tensor
    tail_bias: Tensor

    def __init__(self, model: EDSR):
        nn.Module.__init__(self)
        self.config = replace(model.config, residual_scale=1.0)
        self.head = copy.deepcopy(model.head)
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

    def reconstruct(self, x, ops, result=RAW_OUTPUT):
        c = self.config
        return ops.collapsed_tail(x, self.tail_weight, self.tail_bias, c.mean, c.scale, result)


def dihedral(model: FoldedEDSR, flip_rows: bool = False, flip_columns: bool = False, swap: bool = False) -> FoldedEDSR:
    """The network that does to an image what `model` does to it turned, and turns the result back.

    The turn: rows flipped, columns flipped, then rows and columns swapped, each if asked for. Instead it is the weights
    that are turned, so that an image can be streamed row by row through all eight (section 3.4 of the paper).
    """
    back = copy.deepcopy(model)
    with torch.no_grad():
        for module in back.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(_turn_back(module.weight.clone(), (2, 3), flip_rows, flip_columns, swap))
        r = model.config.scale
        # [row class, column class, color, row and column of a pixel's r x r, channel, row and column of the kernel]
        weight = model.tail_weight.unflatten(2, (3, r, r))
        bias = model.tail_bias.unflatten(2, (3, r, r))
        for rows, columns in ((0, 1), (3, 4), (6, 7)):
            weight = _turn_back(weight, (rows, columns), flip_rows, flip_columns, swap, classes=rows == 0)
        for rows, columns in ((0, 1), (3, 4)):
            bias = _turn_back(bias, (rows, columns), flip_rows, flip_columns, swap, classes=rows == 0)
        back.tail_weight = _channels_innermost(weight.flatten(2, 4))
        back.tail_bias = bias.flatten(2, 4).contiguous()
    return back


def _turn_back(
    x: Tensor, axes: tuple[int, int], flip_rows: bool, flip_columns: bool, swap: bool, classes: bool = False
) -> Tensor:
    """The turn undone in two axes of x; in axes of border classes a flip exchanges first and last alone."""
    x = x.transpose(*axes) if swap else x
    for axis, flip in zip(axes, (flip_rows, flip_columns), strict=True):
        if flip and classes:
            order = [INNER, LAST, FIRST, ONLY]
            x = x.index_select(axis, torch.tensor(order, device=x.device))
        elif flip:
            x = x.flip(axis)
    return x


def _channels_innermost(weight: Tensor) -> Tensor:
    """[4, 4, 3·s², C, 5, 5] with C innermost in memory, as in a channels_last weight."""
    return weight.permute(0, 1, 2, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4)


@torch.inference_mode(False)
@torch.no_grad()
def collapse(model: EDSR) -> tuple[Tensor, Tensor]:
    """Upsampler and tail as one 5x5 convolution: ([4, 4, 3·s², C, 5, 5], [4, 4, 3·s²]) in fp64.

    The first two axes are the border classes of row and column (`edsr.kernels.reference.INNER` and on).
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
            nothing = plain.reconstruct(torch.zeros(1, c, height, width, **kind), reference)
            bias[row_class, column_class] = nothing[0, :, rows, columns].reshape(outputs) - mean
    return weight, bias


def _transposed(model: EDSR, y: Tensor) -> Tensor:
    """The transpose of `EDSR.reconstruct`'s matrix times y, [N, 3, s·H, s·W] -> [N, C, H, W]: for an output, its row.

    As differentiating would give it, by which PyTorch imports sympy: half a second and 60 MB.
    """
    x = F.conv_transpose2d(y, model.tail.weight, padding=1)
    for layer, r in reversed(list(zip(model.upsampler, model.config.shuffle_factors, strict=True))):
        assert isinstance(layer, nn.Conv2d)
        x = F.conv_transpose2d(F.pixel_unshuffle(x, r), layer.weight, padding=1)
    return x

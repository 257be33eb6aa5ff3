"""Every op of the network that is trained on a CPU, differentiable, under the names of `edsr.kernels.reference`.

All three products of a step are Winograd's: the convolution, the gradient of its input, which is a convolution with the
turned filter, and the gradient of its filter. What the kernels do not serve (`edsr.kernels.winograd.ops`) PyTorch does.
"""

import torch.nn.functional as F
from torch import Tensor

from .. import autograd, reference
from ..allocator import KEPT_IN_TRAINING, empty_feature_map
from ..reference import collapsed_tail, head, tail
from . import run
from .ops import CHANNELS, should_use

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

    PyTorch does it where there is a ReLU beside anything else, which no EDSR has, for bands (padding 0) and for `out`.
    """
    alone = not relu or (scale == 1.0 and skip is None and shuffle == 1)
    if padding != 1 or out is not None or not alone or not should_use(x, weight, bias, skip, gradients=True):
        return reference.conv3x3(x, weight, bias, relu, scale, skip, shuffle, padding, out)
    return autograd.Conv.apply(_Products, x, weight, bias, relu, scale, skip, shuffle)  # pyright: ignore[reportReturnType]


def conv5x5(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `edsr.kernels.reference.conv5x5`, of any number of channels out."""
    outputs = len(bias)
    if fill := -outputs % CHANNELS:
        weight, bias = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, fill)), F.pad(bias, (0, fill))
    if not should_use(x, weight, bias, gradients=True):
        return F.conv2d(x, weight, bias, padding=2)[:, :outputs]
    y = autograd.Conv.apply(_Products, x, weight, bias, False, 1.0, None, 1)
    return y[:, :outputs]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]


def resblock(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """x + scale * conv3x3(relu(conv3x3(x))), as `edsr.kernels.reference.resblock`."""
    layers = (weight1, bias1), (weight2, bias2)
    if out is not None or not all(should_use(x, *layer, gradients=True) for layer in layers):
        return reference.resblock(x, weight1, bias1, weight2, bias2, scale, out)
    return autograd.ResBlock.apply(_Products, x, weight1, bias1, weight2, bias2, scale)  # pyright: ignore[reportReturnType]


class _Products:
    """What `edsr.kernels.autograd` computes with: 3x3 or 5x5 taps, as the weight has."""

    @staticmethod
    def convolve(
        x: Tensor, weight: Tensor, bias: Tensor, relu: bool, scale: float, skip: Tensor | None, shuffle: int
    ) -> Tensor:
        y = _convolved(x, weight, bias, relu=relu, scale=scale, skip=skip)
        return F.pixel_shuffle(y, shuffle) if shuffle > 1 else y

    @staticmethod
    def dgrad(
        dy: Tensor, weight: Tensor, scale: float = 1.0, mask: Tensor | None = None, skip: Tensor | None = None
    ) -> Tensor:
        other = skip if mask is None else mask
        return _convolved(dy, weight, None, turned=True, scale=scale, skip=other, masks=mask is not None)

    @staticmethod
    def wgrad(x: Tensor, dy: Tensor, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return run.wgrad(x, dy, weight.shape[2], scale)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool = False, **epilogue) -> Tensor:
    # Made each time: weights change from step to step, and fused optimizers do not tell.
    filter_, taps = run.transform(weight.detach(), turned), weight.shape[2]
    y = empty_feature_map((len(x), filter_.outputs, *x.shape[2:]), x.dtype, kept=KEPT_IN_TRAINING)
    return run.convolve(x, filter_, bias, taps, y, taps // 2, **epilogue)

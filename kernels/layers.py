"""What networks other than EDSR are made of: convolutions of any odd size, bicubic upscaling, luma, and both ends.

`Layers` is to them what `edsr.kernels.interface.Ops` is to EDSR: a network is written against it once, and hands each
map on to the next operation. `TensorLayers` computes on tensors, with the kernels of a backend where it has any for a
layer (3x3, channels in multiples of 16), otherwise by PyTorch; `edsr.inference.streaming` has one for bands.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .interface import RAW_OUTPUT, Ops, OutputSpec, TensorOps
from .reference import subtract_mean, to_output

M = TypeVar("M")  # a feature map

CHANNELS = 16  # numbers of channels that the kernels take are multiples of this
BICUBIC_RADIUS = 2  # LR pixels in each direction that bicubic upscaling looks at
NO_MEAN = (0.0, 0.0, 0.0)
# ITU-R BT.601, as MATLAB's rgb2ycbcr: luma in 16/255 .. 235/255 of R, G and B in 0..1.
LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
LUMA_BLACK = 16 / 255
LUMA_GAIN = 255 / 219  # what R, G and B rise by where luma rises by 1 and chroma stays


class Layers(Ops[M], Protocol[M]):
    """The operations, over feature maps of type M; those of EDSR among them."""

    def enter(self, x: Tensor, mean: Sequence[float] = NO_MEAN) -> M:
        """x - mean as a map of three channels in at least fp32: the image, [N, 3, H, W] as `Ops.head` takes it."""
        ...

    def conv(
        self,
        x: M,
        weight: Tensor,
        bias: Tensor,
        relu: bool = False,
        slope: Tensor | None = None,
        skip: M | None = None,
        shuffle: int = 1,
    ) -> M:
        """pixel_shuffle(skip + activation(x * weight + bias)), in the weight's dtype.

        Args:
            x: [N, Ci, H, W].
            weight: [Co, Ci, k, k], k odd; what is beyond the map is zero.
            bias: [Co].
            relu: Whether the activation is a ReLU.
            slope: [1] or [Co]; the activation is then a PReLU (He et al. 2015).
            skip: [N, Co, H, W].
            shuffle: Factor r of the pixel shuffle.
        """
        ...

    def bicubic(self, x: M, scale: int) -> M:
        """[N, C, s·H, s·W], as `edsr.images.matlab_bicubic` upscales; x is in at least fp32."""
        ...

    def luma(self, x: M) -> M:
        """[N, 1, H, W] in 16/255 .. 235/255 of RGB in 0..1 (BT.601)."""
        ...

    def chroma(self, x: M) -> M:
        """[N, 3, H, W]: RGB without its luma, which `leave` adds."""
        ...

    def leave(
        self,
        x: M,
        mean: Sequence[float] = NO_MEAN,
        result: OutputSpec = RAW_OUTPUT,
        tanh: bool = False,
        image: M | None = None,
    ) -> Tensor:
        """The image from a map, computed in at least fp32: x + mean.

        Args:
            x: [N, 3, H, W], or luma [N, 1, H, W], by which that of `image` rises while its chroma stays.
            mean: Of R, G and B, in 0..1.
            result: Dtype of the output, and whether to look for overflow.
            tanh: Whether x becomes (tanh(x) + 1) / 2.
            image: [N, 3, H, W], which x is added to.
        """
        ...


def as_layers(ops: Ops[M]) -> Layers[M]:
    """The layers of which `ops` is a part: its own, or those of a backend."""
    return cast(Layers[M], ops if hasattr(ops, "bicubic") else TensorLayers(cast(TensorOps, ops)))


class TensorLayers:
    """`Layers` on tensors. What a backend has is its own: `head`, `conv3x3` and so on.

    Args:
        ops: The backend's, as `edsr.kernels.load_ops` or `load_training_ops` gives it.
    """

    def __init__(self, ops: TensorOps):
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def enter(self, x: Tensor, mean: Sequence[float] = NO_MEAN) -> Tensor:
        return subtract_mean(x, mean, torch.float64 if x.dtype == torch.float64 else torch.float32)

    def conv(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        relu: bool = False,
        slope: Tensor | None = None,
        skip: Tensor | None = None,
        shuffle: int = 1,
        padding: int | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """As `Layers.conv`. padding: rows of zeros above and below, all by default. out: where to write."""
        x, radius = x.to(weight.dtype), weight.shape[2] // 2
        rows = radius if padding is None else padding
        if radius == 1 and not any(channels % CHANNELS for channels in weight.shape[:2]):
            x, skip = _channels_innermost(x), None if skip is None else _channels_innermost(skip)
            if slope is None:
                return self._ops.conv3x3(x, weight, bias, relu, 1.0, skip, shuffle, rows, out)
            y = self._ops.conv3x3(x, weight, bias, padding=rows)
        else:
            y = F.conv2d(x, weight, bias, padding=(rows, radius))
        if relu:
            y = F.relu(y)
        elif slope is not None:
            y = F.prelu(y, slope)
        if skip is not None:
            y = y + skip
        if shuffle > 1:
            y = F.pixel_shuffle(y, shuffle)
        return y if out is None else out.copy_(y)

    def bicubic(self, x: Tensor, scale: int, edges: tuple[bool, bool] = (True, True)) -> Tensor:
        """As `Layers.bicubic`. edges: whether the first and the last row are the image's; without, two rows at that
        side are only looked at."""
        weight = bicubic_weight(scale, x.dtype, x.device)
        top, bottom = (BICUBIC_RADIUS * int(edge) for edge in edges)
        n, channels = x.shape[:2]
        x = F.pad(x, (BICUBIC_RADIUS, BICUBIC_RADIUS, top, bottom), mode="replicate")
        y = F.conv2d(x.reshape(n * channels, 1, *x.shape[2:]), weight)
        y = F.pixel_shuffle(y, scale)
        return y.view(n, channels, *y.shape[2:])

    def luma(self, x: Tensor) -> Tensor:
        red, green, blue = x.unbind(1)
        return (LUMA_BLACK + LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]

    def chroma(self, x: Tensor) -> Tensor:
        return x - LUMA_GAIN * self.luma(x)

    def leave(
        self,
        x: Tensor,
        mean: Sequence[float] = NO_MEAN,
        result: OutputSpec = RAW_OUTPUT,
        tanh: bool = False,
        image: Tensor | None = None,
    ) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if tanh:
            x = (torch.tanh(x) + 1) / 2
        if x.shape[1] == 1:
            x = x * LUMA_GAIN
        return to_output(x if image is None else x + image, mean, result)


def _channels_innermost(x: Tensor) -> Tensor:
    """A map as the kernels take it; PyTorch's convolution of a single channel may give another."""
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


@cache
@torch.inference_mode(False)
def bicubic_weight(scale: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[s², 1, 5, 5]: the taps of each of the s x s pixels that an LR pixel becomes, in the order of a pixel shuffle."""
    # An output pixel lies (i + 0.5) / s - 0.5 LR pixels from the LR pixel's center.
    taps = torch.arange(-BICUBIC_RADIUS, BICUBIC_RADIUS + 1, dtype=torch.float64)
    place = ((torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5)[:, None]
    d = (taps - place).abs()
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2  # Keys' cubic with a = -0.5
    lines = torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
    lines /= lines.sum(1, keepdim=True)
    return torch.einsum("iy,jx->ijyx", lines, lines).reshape(scale * scale, 1, 5, 5).to(device, dtype)

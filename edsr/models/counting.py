"""How much work a network is, counted by sending it an area in the place of a feature map."""

from typing import Any, cast

import torch
from torch import Tensor

from edsr.kernels import Layers

from .network import Network


class _Counter:
    """`edsr.kernels.Layers` over areas in LR pixels: adds up what convolutions multiply. Interpolation is left out."""

    def __init__(self) -> None:
        self.total = 0

    def conv(self, x: int, weight: Tensor, *_: Any, shuffle: int = 1, **__: Any) -> int:
        self.total += x * weight.numel()
        return x * shuffle**2

    conv3x3 = conv

    def head(self, x: int, weight: Tensor, *_: Any) -> int:
        return self.conv(x, weight)

    def resblock(self, x: int, weight1: Tensor, bias1: Tensor, weight2: Tensor, *_: Any, **__: Any) -> int:
        return self.conv(self.conv(x, weight1), weight2)

    def tail(self, x: int, weight: Tensor, *_: Any) -> Tensor:
        self.conv(x, weight)
        return torch.empty(0)

    def enter(self, x: int, *_: Any) -> int:
        return x

    luma = chroma = enter

    def bicubic(self, x: int, scale: int) -> int:
        return x * scale**2

    def leave(self, *_: Any, **__: Any) -> Tensor:
        return torch.empty(0)


def multiply_adds(model: Network) -> int:
    """Multiply-adds of one forward pass, for each LR pixel, by the convolutions as they are."""
    counter = _Counter()
    whole = model.folded() if getattr(model.config, "normalized", False) else model
    whole(cast(Tensor, 1), cast(Layers[int], counter))
    return counter.total

"""What all recorders of a forward pass have in common: EDSR's operations, by those of `edsr.kernels.Layers`.

Networks are written against `edsr.kernels.Ops` and `Layers`, over maps of any type: here a map is the name of a value.
So a graph is the network's own, layer by layer, without a tracer; rows and columns are free.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from edsr.errors import ExportError
from edsr.kernels import INNER, NO_MEAN, RAW_OUTPUT, OutputSpec


class Recorder:
    """Half of `edsr.kernels.Layers` over names of values; the other half writes layers of one format.

    Args:
        half: Whether weights are stored in fp16.
        span: The value that is white: 1 or 255.
    """

    def __init__(self, half: bool, span: float):
        self.half, self.span = half, span

    def head(self, x: str, weight: Tensor, bias: Tensor, mean: Sequence[float]) -> str:
        return self.conv(self.enter(x, mean), weight, bias)

    def conv3x3(
        self,
        x: str,
        weight: Tensor,
        bias: Tensor,
        relu: bool = False,
        scale: float = 1.0,
        skip: str | None = None,
        shuffle: int = 1,
    ) -> str:
        return self.conv(x, weight, bias, relu, None, skip, shuffle, scale)

    def resblock(
        self,
        x: str,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        scale: float = 1.0,
        *,
        reuse: bool = False,
    ) -> str:
        y = self.conv3x3(x, weight1, bias1, relu=True)
        return self.conv3x3(y, weight2, bias2, scale=scale, skip=x)

    def tail(self, x: str, weight: Tensor, bias: Tensor, mean: Sequence[float], result: OutputSpec) -> Tensor:
        return self.leave(self.conv(x, weight, bias), mean, result)

    def collapsed_tail(
        self, x: str, weight: Tensor, bias: Tensor, mean: Sequence[float], shuffle: int, result: OutputSpec
    ) -> Tensor:
        """With the weights of inner pixels everywhere, which is not exact in the outermost ring of pixels."""
        inner = weight[INNER, INNER], bias[INNER, INNER]
        return self.leave(self.conv(x, *inner, shuffle=shuffle), mean, result)

    def enter(self, x: str, mean: Sequence[float] = NO_MEAN) -> str:
        raise NotImplementedError

    def conv(
        self,
        x: str,
        weight: Tensor,
        bias: Tensor,
        relu: bool = False,
        slope: Tensor | None = None,
        skip: str | None = None,
        shuffle: int = 1,
        scale: float = 1.0,
    ) -> str:
        """As `Layers.conv`; the convolution's result, after its activation, is multiplied by `scale`."""
        raise NotImplementedError

    def leave(
        self,
        x: str,
        mean: Sequence[float] = NO_MEAN,
        result: OutputSpec = RAW_OUTPUT,
        tanh: bool = False,
        image: str | None = None,
    ) -> Tensor:
        raise NotImplementedError


def as_half(values: np.ndarray) -> np.ndarray:
    """fp32 as fp16. Raises ExportError for a number that fp16 does not hold."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if np.isinf(half).any():
        raise ExportError("a weight is too large for fp16; write fp32 instead", misuse=True)
    return half

"""The interface every backend implements: the network's operations, what comes out of the tails, and border classes."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

TO_UNIT = {
    torch.uint8: 1 / 255,
    torch.uint16: 1 / 65535,
    torch.float32: 1.0,
    torch.float64: 1.0,
}  # factors that bring an image's values to 0..1, by its dtype
MAX_VALUE = {torch.uint8: 255, torch.uint16: 65535, None: 0}  # of the output, by its dtype; 0: as computed


class OutputSpec(NamedTuple):
    """What a tail returns.

    Attributes:
        dtype: None for values as computed, in at least fp32 and not clamped; torch.uint8 or torch.uint16 for values
            clamped to 0..1, stretched to the full range and rounded to nearest.
        overflow: An int32 tensor [1] that is set to 1 where a value is NaN or infinite, None to go without.
    """

    dtype: torch.dtype | None = None
    overflow: Tensor | None = None


RAW_OUTPUT = OutputSpec()

INNER, FIRST, LAST, ONLY = range(4)  # border class of a row or column: 1 = first of the image, 2 = last, 3 = both

M = TypeVar("M")  # the type of a feature map


class Ops(Protocol[M]):
    """The operations a network is written against, over feature maps of type M.

    The network hands each map on to the next operation and never looks into it. So M may be a tensor, or whatever else
    an implementation passes between its operations, such as the rows of a map that are there so far. The image is
    a tensor at both ends. `edsr.kernels.reference` says what each operation computes.
    """

    def head(self, x: Tensor, weight: Tensor, bias: Tensor, mean: Sequence[float]) -> M:
        """conv3x3(x - mean), from the image to features."""
        ...

    def conv3x3(
        self,
        x: M,
        weight: Tensor,
        bias: Tensor,
        relu: bool = False,
        scale: float = 1.0,
        skip: M | None = None,
        shuffle: int = 1,
    ) -> M:
        """pixel_shuffle(skip + scale * relu(conv3x3(x)))."""
        ...

    def resblock(
        self,
        x: M,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        scale: float = 1.0,
        *,
        reuse: bool = False,
    ) -> M:
        """x + scale * conv3x3(relu(conv3x3(x))). reuse: x is not needed any more, so the result may take its memory."""
        ...

    def tail(self, x: M, weight: Tensor, bias: Tensor, mean: Sequence[float], result: OutputSpec) -> Tensor:
        """conv3x3(x) + mean, from features to the image."""
        ...

    def collapsed_tail(
        self, x: M, weight: Tensor, bias: Tensor, mean: Sequence[float], shuffle: int, result: OutputSpec
    ) -> Tensor:
        """pixel_shuffle(conv5x5(x)) + mean, with weights of their own in the outermost ring of pixels."""
        ...


class TensorOps(Ops[Tensor], Protocol):
    """What every backend is: `Ops` on tensors [N, C, H, W], which also computes bands of an image.

    A band brings the rows above and below itself along and takes none of zeros (`padding`), and its result can be
    written straight to where it belongs (`out`).
    """

    def head(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Sequence[float],
        padding: tuple[int, int] = (1, 1),
        out: Tensor | None = None,
    ) -> Tensor: ...

    def conv3x3(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        relu: bool = False,
        scale: float = 1.0,
        skip: Tensor | None = None,
        shuffle: int = 1,
        padding: int = 1,
        out: Tensor | None = None,
    ) -> Tensor: ...

    def resblock(
        self,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        scale: float = 1.0,
        out: Tensor | None = None,
        *,
        reuse: bool = False,
    ) -> Tensor: ...

    def tail(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Sequence[float],
        result: OutputSpec = RAW_OUTPUT,
        padding: int = 1,
    ) -> Tensor: ...

    def collapsed_tail(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Sequence[float],
        shuffle: int,
        result: OutputSpec = RAW_OUTPUT,
        padding: int = 2,
        ends: tuple[bool, bool] = (True, True),
    ) -> Tensor: ...

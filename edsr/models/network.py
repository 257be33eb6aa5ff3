"""What all networks are: a config that says how they are executed, and a forward pass written once.

Pixel values are RGB in 0..1 at both ends of every network, whatever it computes with inside.
"""

import copy
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edsr.kernels import FIRST, INNER, LAST, ONLY, RAW_OUTPUT, Ops, OutputSpec


class NetworkConfig(Protocol):
    """The shape of a network; a frozen dataclass.

    Attributes:
        scale: How many times larger the network makes images.
        scales: Those that it has been made for; `Network.at` chooses another.
        architecture: What kind of network it is, a key of `edsr.models.ARCHITECTURES`.
        features: Channels of its widest map.
        receptive_radius: How many LR pixels in each direction an output pixel can depend on.
        map_scale: How many times wider than the LR image its widest map is.
        late_rows: Rows of LR pixels that its longest skip connection waits for.
        remembered_rows: What a stream of bands remembers, in rows of the widest map's channels, as wide as the LR
            image.
    """

    @property
    def scale(self) -> int: ...
    @property
    def scales(self) -> tuple[int, ...]: ...
    @property
    def architecture(self) -> str: ...
    @property
    def features(self) -> int: ...
    @property
    def receptive_radius(self) -> int: ...
    @property
    def map_scale(self) -> int: ...
    @property
    def late_rows(self) -> int: ...
    @property
    def remembered_rows(self) -> int: ...
    def describe(self) -> str:
        """The shape in words: "16 blocks of 64 features"."""
        ...


class Network(nn.Module):
    """A network. `forward` never touches a feature map itself: it hands each to the next operation of `ops`.

    Attributes:
        config: Its shape.
    """

    config: Any

    def forward(self, x: Tensor, ops: Ops[Any] | None = None, result: OutputSpec = RAW_OUTPUT) -> Tensor:
        """Upscales images.

        Args:
            x: [N, 3, H, W] RGB in 0..1, or uint8 or uint16 of full range.
            ops: What executes the network; PyTorch by default.
            result: Dtype of the output, and whether to look for overflow.

        Returns:
            [N, 3, s·H, s·W] RGB, as `result` says.
        """
        raise NotImplementedError

    def at(self, scale: int) -> "Network":
        """The network for another of its scales; they share all parameters.

        Raises:
            ValueError: It has no such scale.
        """
        if scale not in self.config.scales:
            raise ValueError(f"the network is for {', '.join(f'x{s}' for s in self.config.scales)}, not x{scale}")
        if scale == self.config.scale:
            return self
        other = copy.copy(self)
        other.config = replace(self.config, scale=scale)
        return other

    def folded(self) -> "Network":
        """A copy for inference, with the same output to rounding and less work."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    def dihedral(self, flip_rows: bool, flip_columns: bool, swap: bool) -> "Network":
        """Of a folded network, see `edsr.models.dihedral`."""
        result = copy.deepcopy(self)
        with torch.no_grad():
            for module in result.modules():
                if isinstance(module, nn.Conv2d):
                    _transform(module, flip_rows, flip_columns, swap)
        return result


class ShuffledConv(nn.Conv2d):
    """A convolution whose outputs a pixel shuffle by `shuffle` spreads over pixels."""

    def __init__(self, inputs: int, features: int, shuffle: int, kernel: int = 3):
        super().__init__(inputs, features * shuffle * shuffle, kernel, padding=kernel // 2)
        self.shuffle = shuffle


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Those of a convolution made by `conv`."""
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None
    return layer.weight, layer.bias


def check_network(model: object) -> None:
    """Raises TypeError unless that is a network."""
    if not isinstance(model, Network):
        raise TypeError(f"the model is a network, as edsr.load_model gives it, not {type(model).__name__}")


def _transform(layer: nn.Conv2d, flip_rows: bool, flip_columns: bool, swap: bool) -> None:
    """Turns a convolution, and the pixels that a shuffle after it makes."""
    layer.weight.copy_(undo(layer.weight.clone(), (2, 3), flip_rows, flip_columns, swap))
    r = getattr(layer, "shuffle", 1)
    for values in (layer.weight, layer.bias) if r > 1 else ():
        assert values is not None
        turned = undo(values.clone().unflatten(0, (-1, r, r)), (1, 2), flip_rows, flip_columns, swap)
        values.copy_(turned.flatten(0, 2))


def undo(
    x: Tensor, axes: tuple[int, int], flip_rows: bool, flip_columns: bool, swap: bool, classes: bool = False
) -> Tensor:
    """Undoes the transform in two axes of x. Along border classes a flip exchanges only first and last."""
    x = x.transpose(*axes) if swap else x
    for axis, flip in zip(axes, (flip_rows, flip_columns), strict=True):
        if flip and classes:
            order = [INNER, LAST, FIRST, ONLY]
            x = x.index_select(axis, torch.tensor(order, device=x.device))
        elif flip:
            x = x.flip(axis)
    return x

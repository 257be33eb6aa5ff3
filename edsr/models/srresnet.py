"""SRResNet (Ledig et al., CVPR 2017, figure 4): residual blocks with batch normalization; SRGAN's generator.

Pixels are RGB in 0..1 at both ends. (The paper's output is in -1..1: the same network with other last weights.)
"""

import math
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edsr.kernels import RAW_OUTPUT, Layers, Ops, OutputSpec, as_layers, load_ops

from .network import Network, ShuffledConv, conv, weight_and_bias

M = TypeVar("M")  # a feature map

OUTER_KERNEL = 9  # of the first and the last convolution
EPSILON = 1e-5  # of batch normalizations


@dataclass(frozen=True)
class SRResNetConfig:
    """The shape of a network.

    Attributes:
        scale: 2, 3 or 4.
        blocks: How many residual blocks.
        features: Channels between them.
        normalized: Whether there are batch normalizations: always in training, not once they are folded.
        mean: RGB in 0..1, subtracted before the first convolution. The paper's network has none; some others have.
        tanh: Whether the output is (tanh(y) + 1) / 2, as some implementations have it.

    Raises:
        ValueError: No network has such a shape.
    """

    scale: int = 4
    blocks: int = 16
    features: int = 64
    normalized: bool = True
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tanh: bool = False

    def __post_init__(self):
        if self.scale not in (2, 3, 4):
            raise ValueError(f"scale must be 2, 3 or 4, not {self.scale}")
        if self.blocks < 0 or self.features < 1:
            raise ValueError(f"blocks must be 0 or more and features 1 or more, not {self.blocks} and {self.features}")

    @property
    def architecture(self) -> str:
        return "srresnet"

    @property
    def scales(self) -> tuple[int, ...]:
        return (self.scale,)

    @property
    def shuffle_factors(self) -> tuple[int, ...]:
        """Pixel-shuffle factors of the upsampler, in order: (2,), (3,) or (2, 2)."""
        return (2, 2) if self.scale == 4 else (self.scale,)

    @property
    def receptive_radius(self) -> int:
        outer, area, end = OUTER_KERNEL // 2, 1, 0.0
        for r in self.shuffle_factors:
            end, area = end + 1 / area, area * r
        return outer + 2 * self.blocks + 1 + math.ceil(end + outer / area)

    @property
    def map_scale(self) -> int:
        return self.scale

    @property
    def late_rows(self) -> int:
        return 2 * self.blocks + 1

    @property
    def remembered_rows(self) -> int:
        return 4 * self.late_rows + 8 + 2 * (OUTER_KERNEL // 2) * self.scale + 4 * self.scale

    def describe(self) -> str:
        return f"{self.blocks} blocks of {self.features} features"


class BatchNorm(nn.Module):
    """nn.BatchNorm2d without its counter of batches: running statistics are always exponential averages."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, EPSILON)


class Block(nn.Module):
    """x + bn2(conv2(prelu(bn1(conv1(x))))). Folded, there are no bn1 and bn2."""

    def __init__(self, features: int, normalized: bool):
        super().__init__()
        self.conv1, self.conv2 = conv(features, features), conv(features, features)
        self.slope = nn.Parameter(torch.full((1,), 0.25))
        if normalized:
            self.bn1, self.bn2 = BatchNorm(features), BatchNorm(features)

    def forward(self, x: M, layers: Layers[M]) -> M:
        """Of a folded network."""
        y = layers.conv(x, *weight_and_bias(self.conv1), slope=self.slope)
        return layers.conv(y, *weight_and_bias(self.conv2), skip=x)

    def whole(self, x: Tensor, layers: Layers[Tensor]) -> Tensor:
        """With its normalizations, which know no bands."""
        y = F.prelu(self.bn1(layers.conv(x, *weight_and_bias(self.conv1))), self.slope)
        return self.bn2(layers.conv(y, *weight_and_bias(self.conv2))) + x


class SRResNet(Network):
    """The network. With batch normalizations it takes whole images alone; `folded`, bands, too.

    State: `head`, `head_slope`, `body.B.conv1`, `bn1`, `slope`, `conv2`, `bn2` (block B), `body_end`, `bn`,
    `upsampler.S` and `slopes.S` (stage S), `tail`.
    """

    config: SRResNetConfig

    def __init__(self, config: SRResNetConfig):
        super().__init__()
        self.config = config
        c = config.features
        self.head = conv(3, c, OUTER_KERNEL)
        self.head_slope = nn.Parameter(torch.full((1,), 0.25))
        self.body = nn.ModuleList(Block(c, config.normalized) for _ in range(config.blocks))
        self.body_end = conv(c, c)
        if config.normalized:
            self.bn = BatchNorm(c)
        self.upsampler = nn.ModuleList(ShuffledConv(c, c, r) for r in config.shuffle_factors)
        self.slopes = nn.ParameterList(nn.Parameter(torch.full((1,), 0.25)) for _ in config.shuffle_factors)
        self.tail = conv(c, 3, OUTER_KERNEL)

    def forward(self, x: Tensor, ops: Ops[Any] | None = None, result: OutputSpec = RAW_OUTPUT) -> Tensor:
        layers = as_layers(load_ops("torch") if ops is None else ops)
        start = layers.conv(layers.enter(x, self.config.mean), *weight_and_bias(self.head), slope=self.head_slope)
        y = start
        for block in self.body:
            assert isinstance(block, Block)
            y = block.whole(y, layers) if self.config.normalized else block(y, layers)
        if self.config.normalized:
            y = self.bn(layers.conv(y, *weight_and_bias(self.body_end))) + start
        else:
            y = layers.conv(y, *weight_and_bias(self.body_end), skip=start)
        for layer, slope in zip(self.upsampler, self.slopes, strict=True):
            assert isinstance(layer, ShuffledConv)
            y = layers.conv(y, *weight_and_bias(layer), slope=slope, shuffle=layer.shuffle)
        y = layers.conv(y, *weight_and_bias(self.tail))
        return layers.leave(y, result=result, tanh=self.config.tanh)

    def folded(self) -> "SRResNet":
        """Batch normalizations, which are affine once training is over, go into the convolutions before them."""
        result = super().folded()
        assert isinstance(result, SRResNet)
        if self.config.normalized:
            result.config = replace(self.config, normalized=False)
            for part in (*result.body, result):
                for layer, norm in ("conv1", "bn1"), ("conv2", "bn2"), ("body_end", "bn"):
                    if hasattr(part, norm):
                        _fold_norm(getattr(part, layer), getattr(part, norm))
                        delattr(part, norm)
        return result


@torch.no_grad()
def _fold_norm(layer: nn.Conv2d, norm: BatchNorm) -> None:
    """Makes the convolution what it and the batch normalization after it are together."""
    assert layer.bias is not None
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + EPSILON)
    layer.weight.copy_(layer.weight.double() * factor[:, None, None, None])
    layer.bias.copy_((layer.bias.double() - norm.running_mean.double()) * factor + norm.bias.double())

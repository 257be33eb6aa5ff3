"""SRCNN (Dong et al., ECCV 2014 and arXiv:1501.00092): three convolutions on the luma of a bicubic-upscaled image.

Chroma is upscaled by bicubic interpolation. The paper's convolutions are unpadded in training; here, as in all common
implementations, they are zero-padded.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edsr.kernels import RAW_OUTPUT, Ops, OutputSpec, as_layers, load_ops

from .network import Network, conv, weight_and_bias

FEATURES = (64, 32)


@dataclass(frozen=True)
class SRCNNConfig:
    """The shape of a network.

    Attributes:
        scale: 2, 3 or 4.
        kernels: Sides of the three convolutions: (9, 1, 5) or (9, 5, 5) in the paper.

    Raises:
        ValueError: No network has such a shape.
    """

    scale: int = 2
    kernels: tuple[int, int, int] = (9, 1, 5)

    def __post_init__(self):
        if self.scale not in (2, 3, 4):
            raise ValueError(f"scale must be 2, 3 or 4, not {self.scale}")
        if len(self.kernels) != 3 or not all(1 <= k <= 15 and k % 2 for k in self.kernels):
            raise ValueError(f"kernels must be three odd numbers of 15 or less, not {self.kernels}")

    @property
    def architecture(self) -> str:
        return "srcnn"

    @property
    def scales(self) -> tuple[int, ...]:
        return (self.scale,)

    @property
    def features(self) -> int:
        return FEATURES[0]

    @property
    def receptive_radius(self) -> int:
        return 2 + -(-sum(k // 2 for k in self.kernels) // self.scale)  # bicubic, then in HR pixels

    @property
    def map_scale(self) -> int:
        return self.scale

    @property
    def late_rows(self) -> int:
        return 0

    @property
    def remembered_rows(self) -> int:
        return 4 + self.scale * sum(k // 2 for k in self.kernels[1:])

    def describe(self) -> str:
        return "-".join(map(str, self.kernels))


class SRCNN(Network):
    """The network. State: `convs.0`, `convs.1` and `convs.2`, on luma in 16/255 .. 235/255."""

    config: SRCNNConfig

    def __init__(self, config: SRCNNConfig):
        super().__init__()
        self.config = config
        channels = (1, *FEATURES, 1)
        self.convs = nn.ModuleList(conv(channels[i], channels[i + 1], k) for i, k in enumerate(config.kernels))

    def forward(self, x: Tensor, ops: Ops[Any] | None = None, result: OutputSpec = RAW_OUTPUT) -> Tensor:
        layers = as_layers(load_ops("torch") if ops is None else ops)
        image = layers.bicubic(layers.enter(x), self.config.scale)
        y = layers.conv(layers.luma(image), *weight_and_bias(self.convs[0]), relu=True)
        y = layers.conv(y, *weight_and_bias(self.convs[1]), relu=True)
        y = layers.conv(y, *weight_and_bias(self.convs[2]))
        return layers.leave(y, result=result, image=layers.chroma(image))

"""VDSR (Kim et al., CVPR 2016): twenty convolutions that correct the luma of a bicubic-upscaled image.

One network serves several scales, as the paper trains it. Chroma is upscaled by bicubic interpolation.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edsr.kernels import RAW_OUTPUT, Ops, OutputSpec, as_layers, load_ops

from .network import Network, conv, weight_and_bias


@dataclass(frozen=True)
class VDSRConfig:
    """The shape of a network.

    Attributes:
        scale: 2, 3 or 4: the one that is used.
        depth: How many convolutions.
        features: Channels between them.
        all_scales: Those that the network was trained for, ascending.

    Raises:
        ValueError: No network has such a shape.
    """

    scale: int = 2
    depth: int = 20
    features: int = 64
    all_scales: tuple[int, ...] = (2, 3, 4)

    def __post_init__(self):
        if list(self.all_scales) != sorted({*self.all_scales} & {2, 3, 4}) or self.scale not in self.all_scales:
            raise ValueError(f"scales must be of 2, 3 and 4, x{self.scale} among them, not {self.all_scales}")
        if self.depth < 2 or self.features < 1:
            raise ValueError(f"depth must be 2 or more and features 1 or more, not {self.depth} and {self.features}")

    @property
    def architecture(self) -> str:
        return "vdsr"

    @property
    def scales(self) -> tuple[int, ...]:
        return self.all_scales

    @property
    def receptive_radius(self) -> int:
        return 2 + -(-self.depth // self.scale)  # bicubic, then in HR pixels

    @property
    def map_scale(self) -> int:
        return self.scale

    @property
    def late_rows(self) -> int:
        return 0

    @property
    def remembered_rows(self) -> int:
        return 4 + self.scale * (2 * self.depth + self.depth * 3 // self.features)

    def describe(self) -> str:
        return f"{self.depth} convolutions of {self.features} features"


class VDSR(Network):
    """The network. State: `convs.I`, from luma in 16/255 .. 235/255 to its correction."""

    config: VDSRConfig

    def __init__(self, config: VDSRConfig):
        super().__init__()
        self.config = config
        channels = (1, *[config.features] * (config.depth - 1), 1)
        self.convs = nn.ModuleList(conv(*channels[i : i + 2]) for i in range(config.depth))
        for layer in self.convs:  # He et al. 2015, as the paper
            nn.init.kaiming_normal_(weight_and_bias(layer)[0], nonlinearity="relu")
            nn.init.zeros_(weight_and_bias(layer)[1])

    def forward(self, x: Tensor, ops: Ops[Any] | None = None, result: OutputSpec = RAW_OUTPUT) -> Tensor:
        layers = as_layers(load_ops("torch") if ops is None else ops)
        image = layers.bicubic(layers.enter(x), self.config.scale)
        y = layers.luma(image)
        for layer in self.convs[:-1]:
            y = layers.conv(y, *weight_and_bias(layer), relu=True)
        y = layers.conv(y, *weight_and_bias(self.convs[-1]))
        return layers.leave(y, result=result, image=image)

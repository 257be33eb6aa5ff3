"""EDSR (Lim et al., CVPRW 2017): the network, written once against a handful of ops.

Pixel values are RGB in 0..1 at both ends; inside, they are the same values minus `EDSRConfig.mean`. That is the only
value range of this project: checkpoints in 0..255 are converted when they are loaded (`edsr.weights`), exactly, because
the network is homogeneous: dividing every bias by 255 divides the output by 255.
"""

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from edsr.kernels import RAW_OUTPUT, Ops, OutputSpec, as_layers, load_ops

from .network import Network, conv, weight_and_bias

M = TypeVar("M")  # a feature map, of whatever type the operations hand on

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)  # RGB, of full range; from the authors' code
SCALES = (2, 3, 4)


@dataclass(frozen=True)
class EDSRConfig:
    """The shape of a network.

    Attributes:
        scale: 2, 3 or 4.
        blocks: How many residual blocks.
        features: Channels between them.
        residual_scale: Factor on each block's branch; 0.1 keeps wide networks trainable (section 3.3 of the paper).
        mean: RGB in 0..1, subtracted before the head and added after the tail.

    Raises:
        ValueError: No network has such a shape.
    """

    scale: int = 2
    blocks: int = 16
    features: int = 64
    residual_scale: float = 1.0
    mean: tuple[float, float, float] = DIV2K_MEAN

    def __post_init__(self):
        if self.scale not in SCALES:
            raise ValueError(f"scale must be 2, 3 or 4, not {self.scale}")
        if self.blocks < 0 or self.features < 1:
            raise ValueError(f"blocks must be 0 or more and features 1 or more, not {self.blocks} and {self.features}")

    @property
    def architecture(self) -> str:
        return "edsr"

    @property
    def scales(self) -> tuple[int, ...]:
        return (self.scale,)

    @property
    def map_scale(self) -> int:
        return 1

    @property
    def late_rows(self) -> int:
        return self.receptive_radius - 4

    @property
    def remembered_rows(self) -> int:
        return 4 * self.late_rows + 8

    def describe(self) -> str:
        return f"{self.blocks} blocks of {self.features} features"

    @property
    def shuffle_factors(self) -> tuple[int, ...]:
        """Pixel-shuffle factors of the upsampler, in order: (2,), (3,) or (2, 2)."""
        return (2, 2) if self.scale == 4 else (self.scale,)

    @property
    def receptive_radius(self) -> int:
        """How many input pixels in each direction an output pixel can depend on (upsampler and tail: 2)."""
        return 1 + 2 * self.blocks + 1 + 2


PRESETS = {  # table 1 of the paper
    "edsr-baseline": EDSRConfig(blocks=16, features=64, residual_scale=1.0),
    "edsr": EDSRConfig(blocks=32, features=256, residual_scale=0.1),
}


class ResBlock(nn.Module):
    """x + residual_scale * conv2(relu(conv1(x))): figure 2(c) of the paper, without batch normalization."""

    def __init__(self, features: int, residual_scale: float, kernel: int = 3):
        super().__init__()
        self.conv1 = conv(features, features, kernel)
        self.conv2 = conv(features, features, kernel)
        self.residual_scale = residual_scale

    def forward(self, x: M, ops: Ops[M], reuse: bool = False) -> M:
        """reuse: x is not needed any more (see `Ops.resblock`)."""
        if self.conv1.kernel_size != (3, 3):
            assert self.residual_scale == 1
            layers = as_layers(ops)
            y = layers.conv(x, *weight_and_bias(self.conv1), relu=True)
            return layers.conv(y, *weight_and_bias(self.conv2), skip=x)
        layers = *weight_and_bias(self.conv1), *weight_and_bias(self.conv2)
        return ops.resblock(x, *layers, self.residual_scale, reuse=reuse)


class EDSR(Network):
    """The network of figure 3 of the paper.

    `forward` never touches a feature map itself: it hands each to the next operation of `ops`, which may be a backend
    (`edsr.kernels.load_ops`), or an object that remembers rows between calls (`edsr.inference.streaming.StreamingOps`).
    """

    config: EDSRConfig

    def __init__(self, config: EDSRConfig):
        super().__init__()
        self.config = config
        c = config.features
        self.head = conv(3, c)
        self.entry = nn.ModuleList()  # blocks before the body, inside no skip: MDSR has some
        self.body = nn.ModuleList(ResBlock(c, config.residual_scale) for _ in range(config.blocks))
        self.body_end = conv(c, c)
        self.upsampler = nn.ModuleList(conv(c, r * r * c) for r in config.shuffle_factors)
        self.tail = conv(c, 3)

    def forward(self, x: Tensor, ops: Ops[M] | None = None, result: OutputSpec = RAW_OUTPUT) -> Tensor:
        if ops is None:
            return self.forward(x, load_ops("torch"), result)
        start = ops.head(x, *weight_and_bias(self.head), self.config.mean)
        for block in self.entry:
            start = block(start, ops)
        y = start
        for block in self.body:
            y = block(y, ops, reuse=y is not start)  # the long skip needs start
        y = ops.conv3x3(y, *weight_and_bias(self.body_end), skip=start)
        return self.reconstruct(y, ops, result)

    def reconstruct(self, x: M, ops: Ops[M], result: OutputSpec = RAW_OUTPUT) -> Tensor:
        """From features to the image: the linear end, which `edsr.models.folding` replaces by one convolution."""
        for layer, r in zip(self.upsampler, self.config.shuffle_factors, strict=True):
            x = ops.conv3x3(x, *weight_and_bias(layer), shuffle=r)
        return ops.tail(x, *weight_and_bias(self.tail), self.config.mean, result)

"""MDSR (Lim et al., CVPRW 2017, figure 5 and table 1): EDSR for several scales at once.

Head, body and tail are shared; each scale has two residual blocks of 5x5 convolutions before the body, which bring what
it sees to one scale, and an upsampler after it.
"""

from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from .edsr import EDSR, EDSRConfig, ResBlock
from .network import ShuffledConv, conv

ENTRY_BLOCKS, ENTRY_KERNEL = 2, 5


@dataclass(frozen=True)
class MDSRConfig(EDSRConfig):
    """As EDSRConfig.

    Attributes:
        all_scales: Those that the network has parts for, ascending; `scale` is the one that is used.

    Raises:
        ValueError: No network has such a shape.
    """

    blocks: int = 80
    all_scales: tuple[int, ...] = (2, 3, 4)

    def __post_init__(self):
        super().__post_init__()
        if list(self.all_scales) != sorted({*self.all_scales} & {2, 3, 4}) or self.scale not in self.all_scales:
            raise ValueError(f"scales must be of 2, 3 and 4, x{self.scale} among them, not {self.all_scales}")

    @property
    def architecture(self) -> str:
        return "mdsr"

    @property
    def scales(self) -> tuple[int, ...]:
        return self.all_scales

    @property
    def receptive_radius(self) -> int:
        return super().receptive_radius + 2 * ENTRY_BLOCKS * (ENTRY_KERNEL // 2)


class MDSR(EDSR):
    """The network. What EDSR has once and this one for each scale, `entry` and `upsampler`, is that of `config.scale`.

    State: `head`, `entries.I.B.conv1` and `conv2` (scale I of `config.scales`, block B), `body.B...`, `body_end`,
    `upsamplers.I.S` (stage S), `tail`.
    """

    def __init__(self, config: MDSRConfig):
        nn.Module.__init__(self)
        self.config = config
        c = config.features
        self.head = conv(3, c)
        self.entries = nn.ModuleList(
            nn.ModuleList(ResBlock(c, 1.0, ENTRY_KERNEL) for _ in range(ENTRY_BLOCKS)) for _ in config.scales
        )
        self.body = nn.ModuleList(ResBlock(c, config.residual_scale) for _ in range(config.blocks))
        self.body_end = conv(c, c)
        self.upsamplers = nn.ModuleList(
            nn.ModuleList(ShuffledConv(c, c, r) for r in EDSRConfig(scale).shuffle_factors) for scale in config.scales
        )
        self.tail = conv(c, 3)

    @property
    def entry(self) -> nn.ModuleList:
        return self._of_scale(self.entries)

    @property
    def upsampler(self) -> nn.ModuleList:
        return self._of_scale(self.upsamplers)

    def _of_scale(self, parts: nn.ModuleList) -> nn.ModuleList:
        return cast(Any, parts[self.config.scales.index(self.config.scale)])

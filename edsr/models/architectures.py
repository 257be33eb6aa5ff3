"""The networks by name, and what builds each."""

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from .edsr import EDSR, PRESETS
from .mdsr import MDSR, MDSRConfig
from .network import Network, NetworkConfig
from .srcnn import SRCNN, SRCNNConfig
from .srresnet import SRResNet, SRResNetConfig
from .vdsr import VDSR, VDSRConfig

ARCHITECTURES: dict[str, type[Network]] = {
    "edsr": EDSR,
    "mdsr": MDSR,
    "srcnn": SRCNN,
    "vdsr": VDSR,
    "srresnet": SRResNet,
}

TITLES = {"edsr": "EDSR", "mdsr": "MDSR", "srcnn": "SRCNN", "vdsr": "VDSR", "srresnet": "SRResNet"}
"""What the papers call them."""

_OTHERS: dict[str, Any] = {
    "mdsr-baseline": MDSRConfig(blocks=16),
    "mdsr": MDSRConfig(blocks=80),
    "srcnn": SRCNNConfig(),
    "srcnn-955": SRCNNConfig(kernels=(9, 5, 5)),
    "vdsr": VDSRConfig(),
    "srresnet": SRResNetConfig(),
    "srgan": SRResNetConfig(),
}
NETWORKS: Mapping[str, Any] = ChainMap(_OTHERS, PRESETS)
"""The config of each name that `train --model` takes. "srgan" is SRResNet, trained against a discriminator."""


def build_network(config: NetworkConfig) -> Network:
    """A network of that shape, with random weights."""
    return ARCHITECTURES[config.architecture](config)  # pyright: ignore[reportArgumentType]: each takes its own config

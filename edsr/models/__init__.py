"""The networks."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .architectures import ARCHITECTURES as ARCHITECTURES
    from .architectures import NETWORKS as NETWORKS
    from .architectures import TITLES as TITLES
    from .architectures import build_network as build_network
    from .collapsed import CollapsedEDSR as CollapsedEDSR
    from .collapsed import worth_collapsing as worth_collapsing
    from .counting import multiply_adds as multiply_adds
    from .discriminator import Discriminator as Discriminator
    from .edsr import DIV2K_MEAN as DIV2K_MEAN
    from .edsr import EDSR as EDSR
    from .edsr import PRESETS as PRESETS
    from .edsr import SCALES as SCALES
    from .edsr import EDSRConfig as EDSRConfig
    from .folding import FoldedEDSR as FoldedEDSR
    from .folding import dihedral as dihedral
    from .folding import fold as fold
    from .mdsr import MDSR as MDSR
    from .mdsr import MDSRConfig as MDSRConfig
    from .network import Network as Network
    from .network import NetworkConfig as NetworkConfig
    from .network import check_network as check_network
    from .srcnn import SRCNN as SRCNN
    from .srcnn import SRCNNConfig as SRCNNConfig
    from .srresnet import SRResNet as SRResNet
    from .srresnet import SRResNetConfig as SRResNetConfig
    from .vdsr import VDSR as VDSR
    from .vdsr import VDSRConfig as VDSRConfig
    from .vgg import VGG19Features as VGG19Features

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "architectures": ["ARCHITECTURES", "NETWORKS", "TITLES", "build_network"],
        "collapsed": ["CollapsedEDSR", "worth_collapsing"],
        "counting": ["multiply_adds"],
        "discriminator": ["Discriminator"],
        "edsr": ["DIV2K_MEAN", "EDSR", "EDSRConfig", "PRESETS", "SCALES"],
        "folding": ["FoldedEDSR", "dihedral", "fold"],
        "mdsr": ["MDSR", "MDSRConfig"],
        "network": ["Network", "NetworkConfig", "check_network"],
        "srcnn": ["SRCNN", "SRCNNConfig"],
        "srresnet": ["SRResNet", "SRResNetConfig"],
        "vdsr": ["VDSR", "VDSRConfig"],
        "vgg": ["VGG19Features"],
    },
)

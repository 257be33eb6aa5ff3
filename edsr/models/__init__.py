"""The networks."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .collapsed import CollapsedEDSR as CollapsedEDSR
    from .collapsed import worth_collapsing as worth_collapsing
    from .edsr import DIV2K_MEAN as DIV2K_MEAN
    from .edsr import EDSR as EDSR
    from .edsr import PRESETS as PRESETS
    from .edsr import SCALES as SCALES
    from .edsr import EDSRConfig as EDSRConfig
    from .edsr import check_network as check_network
    from .folding import FoldedEDSR as FoldedEDSR
    from .folding import dihedral as dihedral

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "collapsed": ["CollapsedEDSR", "worth_collapsing"],
        "edsr": ["DIV2K_MEAN", "EDSR", "EDSRConfig", "PRESETS", "SCALES", "check_network"],
        "folding": ["FoldedEDSR", "dihedral"],
    },
)

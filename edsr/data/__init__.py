"""Training images: found, decoded once, cut into patches."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .dataset import hold_back as hold_back
    from .dataset import load as load
    from .degradation import Degradation as Degradation
    from .degradation import degraded as degraded
    from .degradation import parse as parse
    from .patches import Feed as Feed
    from .store import Images as Images
    from .store import pack as pack

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dataset": ["hold_back", "load"],
        "degradation": ["Degradation", "degraded", "parse"],
        "patches": ["Feed"],
        "store": ["Images", "pack"],
    },
)

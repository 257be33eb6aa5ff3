"""Batches over the machines of a Ray cluster."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .connection import connected as connected
    from .engine import ClusterBatch as ClusterBatch
    from .engine import Crew as Crew
    from .setup import Setup as Setup
    from .setup import fingerprint as fingerprint

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "connection": ["connected"],
        "engine": ["ClusterBatch", "Crew"],
        "setup": ["Setup", "fingerprint"],
    },
)

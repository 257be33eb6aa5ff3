"""Networks made ready for a device and a memory budget, for images of any size."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .cuda import Recorded as Recorded
    from .cuda import recording_stream as recording_stream
    from .multi_device import Team as Team
    from .prefetch import Ahead as Ahead
    from .upscaler import Upscaler as Upscaler

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cuda": ["Recorded", "recording_stream"],
        "multi_device": ["Team"],
        "prefetch": ["Ahead"],
        "upscaler": ["Upscaler"],
    },
)

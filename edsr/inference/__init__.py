"""Networks made ready for a device and a memory budget, for images of any size."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .cuda import CapturedGraph as CapturedGraph
    from .cuda import capture_stream as capture_stream
    from .multi_device import MultiDeviceUpscaler as MultiDeviceUpscaler
    from .plan import ExecutionPlan as ExecutionPlan
    from .prefetch import Prefetcher as Prefetcher
    from .upscaler import Upscaler as Upscaler

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cuda": ["CapturedGraph", "capture_stream"],
        "multi_device": ["MultiDeviceUpscaler"],
        "plan": ["ExecutionPlan"],
        "prefetch": ["Prefetcher"],
        "upscaler": ["Upscaler"],
    },
)

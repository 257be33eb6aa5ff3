"""EDSR super-resolution: exact, streaming, fast.

from edsr import Upscaler, load_model

upscaler = Upscaler(load_model("edsr-baseline", scale=2))
large = upscaler(picture)  # [H, W, 3] uint8 -> [2·H, 2·W, 3] uint8
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edsr.engine import EngineError, Upscaler
    from edsr.model import EDSR, PRESETS, EDSRConfig
    from edsr.weights import WeightsError, load_model, save_model

__all__ = [
    "EDSR",
    "PRESETS",
    "EDSRConfig",
    "EngineError",
    "Upscaler",
    "WeightsError",
    "load_model",
    "save_model",
]

_HOMES: dict[str, str] = dict.fromkeys(("EngineError", "Upscaler"), "edsr.engine")
_HOMES |= dict.fromkeys(("EDSR", "PRESETS", "EDSRConfig"), "edsr.model")
_HOMES |= dict.fromkeys(("WeightsError", "load_model", "save_model"), "edsr.weights")


def __getattr__(name: str) -> Any:
    # When first asked for: torch takes seconds to import, and the command line's help needs none of it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

"""EDSR super-resolution: exact, streaming, fast.

from edsr import Upscaler, load_model

upscaler = Upscaler(load_model("edsr-baseline", scale=2))
large = upscaler(picture)  # [H, W, 3] uint8 -> [2·H, 2·W, 3] uint8
"""

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

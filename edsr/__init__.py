"""EDSR super-resolution: exact, streaming, fast.

from edsr import Upscaler, load_model

upscaler = Upscaler(load_model("edsr-baseline", scale=2))
large = upscaler(image)  # [H, W, 3] uint8 -> [2·H, 2·W, 3] uint8
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from edsr.errors import BackendError as BackendError
    from edsr.errors import EDSRError as EDSRError
    from edsr.errors import WeightsError as WeightsError
    from edsr.inference import Upscaler as Upscaler
    from edsr.models import EDSR as EDSR
    from edsr.models import PRESETS as PRESETS
    from edsr.models import EDSRConfig as EDSRConfig
    from edsr.weights import load_model as load_model
    from edsr.weights import save_model as save_model

__version__ = "0.1.0"

# When first asked for: torch takes seconds to import, and the command line's help needs none of it.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "errors": ["EDSRError", "BackendError", "WeightsError"],
        "inference": ["Upscaler"],
        "models": ["EDSR", "PRESETS", "EDSRConfig"],
        "weights": ["load_model", "save_model"],
    },
)

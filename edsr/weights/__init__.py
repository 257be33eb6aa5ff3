"""Network weights as files, packaged or from elsewhere."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .edsr import load_model as load_model
    from .edsr import packaged as packaged
    from .edsr import read_info as read_info
    from .edsr import save_model as save_model
    from .selection import AUTO as AUTO
    from .selection import FAITHFUL as FAITHFUL
    from .selection import Choice as Choice
    from .selection import by_file as by_file
    from .selection import by_strength as by_strength
    from .selection import scales_of as scales_of

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "edsr": ["load_model", "packaged", "read_info", "save_model"],
        "selection": ["AUTO", "Choice", "FAITHFUL", "by_file", "by_strength", "scales_of"],
    },
)

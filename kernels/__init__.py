"""The operations an EDSR network is made of, one namespace per way of executing them.

`edsr.kernels.reference`: plain PyTorch, on any device; the oracle every other one is judged against.
`edsr.kernels.triton.ops`: Triton kernels. Importing this package needs neither Triton nor a GPU; importing that one
needs Triton.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .allocator import empty_map as empty_map
    from .backends import BACKENDS as BACKENDS
    from .backends import load_ops as load_ops
    from .backends import load_training_ops as load_training_ops
    from .interface import AS_COMPUTED as AS_COMPUTED
    from .interface import FIRST as FIRST
    from .interface import INNER as INNER
    from .interface import LAST as LAST
    from .interface import LEVELS as LEVELS
    from .interface import ONLY as ONLY
    from .interface import Result as Result
    from .reference import conv5x5 as conv5x5
    from .reference import finish as finish
    from .reference import quantize as quantize
    from .reference import ringed_conv5x5 as ringed_conv5x5

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "allocator": ["empty_map"],
        "backends": ["BACKENDS", "load_ops", "load_training_ops"],
        "interface": ["AS_COMPUTED", "FIRST", "INNER", "LAST", "LEVELS", "ONLY", "Result"],
        "reference": ["conv5x5", "finish", "quantize", "ringed_conv5x5"],
    },
)

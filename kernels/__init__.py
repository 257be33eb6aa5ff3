"""The operations an EDSR network is made of, and the backends that execute them, each a namespace of its own.

`edsr.kernels.interface`: `Ops`, the operations by name and signature.
`edsr.kernels.reference`: plain PyTorch, on any device; what every other one is checked against.
`edsr.kernels.triton.ops`: Triton kernels for GPUs. Importing this package needs neither Triton nor a GPU; importing
that one needs Triton.
`edsr.kernels.winograd.ops`: kernels for CPUs, by Winograd's algorithm.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .allocator import empty_feature_map as empty_feature_map
    from .backends import BACKENDS as BACKENDS
    from .backends import compile_ahead as compile_ahead
    from .backends import is_faster_in_training as is_faster_in_training
    from .backends import load_ops as load_ops
    from .backends import load_training_ops as load_training_ops
    from .backends import unavailable_reason as unavailable_reason
    from .interface import FIRST as FIRST
    from .interface import INNER as INNER
    from .interface import LAST as LAST
    from .interface import MAX_VALUE as MAX_VALUE
    from .interface import ONLY as ONLY
    from .interface import RAW_OUTPUT as RAW_OUTPUT
    from .interface import Ops as Ops
    from .interface import OutputSpec as OutputSpec
    from .interface import TensorOps as TensorOps
    from .layers import BICUBIC_RADIUS as BICUBIC_RADIUS
    from .layers import LUMA as LUMA
    from .layers import LUMA_BLACK as LUMA_BLACK
    from .layers import LUMA_GAIN as LUMA_GAIN
    from .layers import NO_MEAN as NO_MEAN
    from .layers import Layers as Layers
    from .layers import TensorLayers as TensorLayers
    from .layers import as_layers as as_layers
    from .layers import bicubic_weight as bicubic_weight
    from .reference import conv5x5 as conv5x5
    from .reference import quantize as quantize
    from .reference import ringed_conv5x5 as ringed_conv5x5
    from .reference import to_output as to_output

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "allocator": ["empty_feature_map"],
        "backends": [
            "BACKENDS",
            "compile_ahead",
            "is_faster_in_training",
            "load_ops",
            "load_training_ops",
            "unavailable_reason",
        ],
        "interface": ["FIRST", "INNER", "LAST", "MAX_VALUE", "ONLY", "Ops", "OutputSpec", "RAW_OUTPUT", "TensorOps"],
        "layers": [
            "BICUBIC_RADIUS",
            "LUMA",
            "LUMA_BLACK",
            "LUMA_GAIN",
            "Layers",
            "NO_MEAN",
            "TensorLayers",
            "as_layers",
            "bicubic_weight",
        ],
        "reference": ["conv5x5", "quantize", "ringed_conv5x5", "to_output"],
    },
)

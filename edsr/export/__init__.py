"""Networks in the files of other runtimes."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .ncnn_file import ncnn_files as ncnn_files
    from .ncnn_file import write_ncnn as write_ncnn
    from .ncnn_graph import build_ncnn as build_ncnn
    from .onnx_file import write_onnx as write_onnx
    from .trial import Exported as Exported

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ncnn_file": ["ncnn_files", "write_ncnn"],
        "ncnn_graph": ["build_ncnn"],
        "onnx_file": ["write_onnx"],
        "trial": ["Exported"],
    },
)

"""Networks in the files of other runtimes."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .ncnn import write_ncnn as write_ncnn
    from .onnx_file import Exported as Exported
    from .onnx_file import write_onnx as write_onnx

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"ncnn": ["write_ncnn"], "onnx_file": ["Exported", "write_onnx"]}
)

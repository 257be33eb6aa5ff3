"""Networks as ONNX files, each of which is run and compared with what it was made from before it is left there."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edsr.errors import ExportError
from edsr.models import Network
from edsr.strict_json import dumps

from .together import write_together
from .trial import Exported, Run, check_request, try_out

MISSING = "pip install 'edsr-triton[onnx]'"


def write_onnx(
    model: Network,
    path: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    collapsed: bool = False,
    span: int = 1,
    training: dict | None = None,
    terms: Mapping[str, Any] | None = None,
    sources: Iterable[str | os.PathLike[str]] = (),
) -> Exported:
    """Writes a network as an ONNX file (opset 17) with free batch, height and width, whole or not at all.

    "input" is [batch, 3, height, width] RGB, float32 in 0..span; "output" is the same, s times larger, not clamped. The
    mean shift and the range are inside the graph. Its metadata say what it is: architecture, scale, range, and how the
    weights came about (`training`), and what they may be used for (`license`, `terms`).

    Args:
        model: On any device; it is left as it is.
        path: Where to, with the ending .onnx.
        precision: "fp32", or "fp16" for weights and convolutions of 16 bits; both ends stay float32.
        collapsed: Whether upsampler and tail become one convolution, which is faster, and not exact in the outermost
            ring of low-resolution pixels. Of EDSR and MDSR.
        span: The value that is white: 1 or 255.
        training: What `read_info` tells of it.
        terms: The license of the weights and the like, as `read_info` tells them.
        sources: Files that the weights are from; who may not read these may not read the new one.

    Raises:
        ExportError: The package onnx is missing, the network cannot be written so, the file cannot be written, or what
            ONNX Runtime computes of it is not what we compute; then there is no file.
        TypeError: The model is none.
    """
    request = check_request(model, path, ".onnx", precision, collapsed, span)
    try:
        from .onnx_graph import build_onnx
    except ImportError:
        raise ExportError(f"ONNX files need a package: {MISSING}") from None
    facts = request.facts(training, terms).items()
    metadata = {name: dumps(value) if isinstance(value, dict) else str(value) for name, value in facts}
    data = build_onnx(request.network, request.half, span, metadata).SerializeToString()
    exported = try_out(request, _runtime(data), "ONNX Runtime")
    write_together({request.path: data}, sources)
    return exported


def _runtime(data: bytes) -> Run | None:
    """What ONNX Runtime makes of a file; None if it is not installed. Raises ExportError if it does not take it."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of classes of its own
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ExportError(f"not written, ONNX Runtime does not take it ({why})") from None
    return lambda x: np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])

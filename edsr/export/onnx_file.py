"""Networks as ONNX files, each of which is run and compared with what it was made from before it is left there."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edsr.errors import ExportError
from edsr.models import Network, check_network, fold
from edsr.strict_json import dumps
from edsr.system import atomic_file, remove_abandoned
from edsr.wording import option

SIZES = ((1, 1), (1, 7), (9, 4), (33, 48))  # rows and columns of the images that a file is tried with
LARGEST_ERROR = {"fp32": 1e-4, "fp16": 3e-2}  # of white, beyond which a file is taken for wrong
MISSING = "pip install 'edsr-triton[onnx]'"

Run = Callable[[np.ndarray], np.ndarray]


class Exported(NamedTuple):
    """What became of an export.

    Attributes:
        path: The file.
        error: The largest difference from our own result, as a share of white; None where no runtime is installed.
        ring: The same in the outermost ring of low-resolution pixels, which a collapsed tail does not get right; None
            for others.
    """

    path: Path
    error: float | None
    ring: float | None


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
        model: In fp32 on the CPU.
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
    check_network(model)
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ExportError(f"{path}: name a file that ends in .onnx")
    if precision not in LARGEST_ERROR or span not in (1, 255):
        raise ExportError(f"precision is fp32 or fp16, and the range 1 or 255, not {precision} and {span}", misuse=True)
    if (collapsed and not hasattr(model, "tail")) or (collapsed and model.config.architecture == "srresnet"):
        raise ExportError(f"{option('collapsed')}: {model.config.architecture} has no linear end to collapse")
    try:
        from .onnx_graph import build_onnx
    except ImportError:
        raise ExportError(f"ONNX files need a package: {MISSING}") from None
    plain = model if collapsed or model.config.architecture in ("edsr", "mdsr") else model.folded()
    network = fold(model) if collapsed else plain
    properties = {
        "architecture": model.config.architecture,
        "scale": str(model.config.scale),
        "color": "RGB",
        "range": str(span),
        "precision": precision,
    }
    properties |= {} if training is None else {"training": dumps(training)}
    properties |= {} if terms is None else {"license": terms["license"] or "not stated", "terms": dumps(dict(terms))}
    data = build_onnx(network, precision == "fp16", span, properties).SerializeToString()
    error = ring = None
    run = _runtime(data)
    if run is not None:
        error, ring = _compare(model, run, span, collapsed)
        if not error <= LARGEST_ERROR[precision]:
            raise ExportError(f"{path}: not written, ONNX Runtime's result is off by {error:.2g} of white")
    remove_abandoned(path.parent)
    try:
        with atomic_file(path, sources=sources) as file:
            file.write(data)
    except OSError as problem:
        raise ExportError(f"{path}: cannot be written ({problem.strerror})") from problem
    return Exported(path, error, ring)


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


def _compare(model: Network, run: Run, span: int, collapsed: bool) -> tuple[float, float | None]:
    """The largest error of a runtime, as a share of white; of a collapsed tail that of its ring by itself."""
    random, s = np.random.default_rng(0), model.config.scale
    inner, ring = [0.0], [0.0]
    for height, width in SIZES:
        x = random.random((2, 3, height, width)).astype(np.float32)
        with torch.no_grad():
            ours = model(torch.from_numpy(x)).numpy()
        difference = abs(run(x * np.float32(span)) / np.float32(span) - ours)
        if difference.shape != ours.shape or not np.isfinite(difference).all():
            return float("inf"), None
        difference /= max(1.0, abs(ours).max())  # of networks that are not trained results may be anything
        middle = difference[:, :, s:-s, s:-s] if collapsed else difference
        inner.append(float(middle.max(initial=0.0)))
        ring.append(float(difference.max()))
    return max(inner), max(ring) if collapsed else None

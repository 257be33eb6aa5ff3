"""What is asked of an export, and whether what came of it is right: run, and compared with our own result."""

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edsr.errors import ExportError
from edsr.models import FoldedEDSR, Network, check_network, fold
from edsr.wording import option

SIZES = ((1, 1), (1, 7), (9, 4), (33, 48))  # rows and columns of the images that a file is tried with
LARGEST_ERROR = {"fp32": 1e-4, "fp16": 3e-2}  # of white, beyond which a file is taken for wrong

Run = Callable[[np.ndarray], np.ndarray]
"""What a runtime makes of images [N, 3, H, W] in 0..span."""


class Exported(NamedTuple):
    """What became of an export.

    Attributes:
        path: The file; of ncnn's the .param.
        error: The largest difference from our own result, as a share of white; None where no runtime is installed.
        ring: The same in the outermost ring of low-resolution pixels, which a collapsed tail does not get right; None
            for others.
    """

    path: Path
    error: float | None
    ring: float | None


class Request(NamedTuple):
    """An export that makes sense.

    Attributes:
        model: A copy, in fp32 on the CPU.
        network: The same function, or nearly if it is collapsed, as it is written.
        path: Where to.
        precision: "fp32" or "fp16".
        collapsed: Whether upsampler and tail are one convolution.
        span: The value that is white.
    """

    model: Network
    network: Network
    path: Path
    precision: str
    collapsed: bool
    span: int

    @property
    def half(self) -> bool:
        return self.precision == "fp16"

    def facts(self, training: dict | None, terms: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a file says of itself."""
        facts = {
            "architecture": self.model.config.architecture,
            "scale": self.model.config.scale,
            "color": "RGB",
            "range": self.span,
            "precision": self.precision,
        }
        facts |= {} if training is None else {"training": training}
        return facts if terms is None else facts | {"license": terms["license"] or "not stated", "terms": dict(terms)}


def check_request(
    model: Network, path: str | os.PathLike[str], ending: str, precision: str, collapsed: bool, span: int
) -> Request:
    """Raises ExportError where that cannot be, TypeError where the model is none."""
    check_network(model)
    path = Path(path)
    if path.suffix.lower() != ending:
        raise ExportError(f"{path}: name a file that ends in {ending}", misuse=True)
    if precision not in LARGEST_ERROR or span not in (1, 255):
        raise ExportError(f"precision is fp32 or fp16, and the range 1 or 255, not {precision} and {span}", misuse=True)
    architecture = model.config.architecture
    if collapsed and architecture not in ("edsr", "mdsr"):
        raise ExportError(f"{option('collapsed')}: {architecture} has no linear end to collapse", misuse=True)
    if isinstance(model, FoldedEDSR):
        raise ExportError("the network is folded for inference; give it as load_model gives it", misuse=True)
    model = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
    if not np.isfinite(_compute(model, _image(*SIZES[-1]))).all():
        raise ExportError("the network's own result is no number (NaN or infinite); nothing is written", misuse=True)
    network = fold(model) if collapsed else model if architecture in ("edsr", "mdsr") else model.folded()
    return Request(model, network, path, precision, collapsed, span)


def try_out(request: Request, run: Run | None, runtime: str) -> Exported:
    """Compares a runtime's results with our own, where there is a runtime. Raises ExportError if they are others."""
    if run is None:
        return Exported(request.path, None, None)
    error, ring = _compare(request, run)
    if not error <= LARGEST_ERROR[request.precision]:
        raise ExportError(f"{request.path}: not written, {runtime}'s result is off by {error:.2g} of white")
    return Exported(request.path, error, ring)


def _image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).random((2, 3, height, width)).astype(np.float32)


def _compute(model: Network, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


def _compare(request: Request, run: Run) -> tuple[float, float | None]:
    """The largest error of a runtime, as a share of white; of a collapsed tail that of its ring by itself."""
    s, span = request.model.config.scale, np.float32(request.span)
    inner, ring = [0.0], [0.0]
    for size in SIZES:
        x = _image(*size)
        ours = _compute(request.model, x)
        theirs = run(x * span) / span
        if theirs.shape != ours.shape or not np.isfinite(theirs).all():
            return float("inf"), None
        difference = abs(theirs - ours) / max(1.0, abs(ours).max())  # untrained networks may give anything
        middle = difference[:, :, s:-s, s:-s] if request.collapsed else difference
        inner.append(float(middle.max(initial=0.0)))
        ring.append(float(difference.max()))
    return max(inner), max(ring) if request.collapsed else None

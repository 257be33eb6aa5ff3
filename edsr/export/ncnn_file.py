"""Networks as ncnn's pair of files, which is run and compared with what it was made from before it is left there."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edsr.errors import ExportError
from edsr.models import Network
from edsr.strict_json import dumps
from edsr.system import temporary_folder

from .ncnn_graph import INPUT, OUTPUT, build_ncnn
from .together import write_together
from .trial import Exported, Run, check_request, try_out


def write_ncnn(
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
    """Writes a network for ncnn: NAME.param, NAME.bin, and NAME.json, which says what they are; all or none.

    Blob "data" is [3, height, width] RGB in 0..span of any size, blob "output" the same, s times larger, not clamped.
    The mean shift and the range are inside. No package is needed, but ncnn, where it is installed, runs the files.

    Args:
        model: On any device; it is left as it is.
        path: Where to, with the ending .param.
        precision: "fp32", or "fp16" for weights stored in 16 bits; what is computed in, ncnn's options say.
        collapsed: As `write_onnx`.
        span: The value that is white: 1 or 255.
        training: What `read_info` tells of it, for NAME.json.
        terms: The license of the weights and the like, as `read_info` tells them, for NAME.json.
        sources: Files that the weights are from; who may not read these may not read the new ones.

    Raises:
        ExportError: The network cannot be written so, the files cannot be written, or what ncnn computes of them is not
            what we compute; then there are no files.
        TypeError: The model is none.
    """
    request = check_request(model, path, ".param", precision, collapsed, span)
    text, weights = build_ncnn(request.network, request.half, span)
    exported = try_out(request, _runtime(text, weights), "ncnn")
    facts = request.facts(training, terms) | {"input": INPUT, "output": OUTPUT}
    contents = [weights, dumps(facts).encode() + b"\n", text.encode()]
    files = ncnn_files(path)
    write_together(dict(zip(files, contents, strict=True)), sources)
    return exported._replace(path=files[-1])


def ncnn_files(path: str | os.PathLike[str]) -> list[Path]:
    """NAME.bin, NAME.json and NAME.param, by the last."""
    return [Path(path).with_suffix(ending) for ending in (".bin", ".json", ".param")]


def _runtime(text: str, weights: bytes) -> Run | None:
    """What ncnn makes of files, in fp32; None if it is not installed. Raises ExportError if it does not take them."""
    try:
        import ncnn
    except ImportError:
        return None
    package: Any = ncnn
    net = package.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    try:
        with temporary_folder() as folder:
            (folder / "weights").write_bytes(weights)
            if net.load_param_mem(text) or net.load_model(str(folder / "weights")):
                raise ExportError("not written, ncnn does not take it")
    except OSError as error:
        raise ExportError(f"not tried: no temporary files can be written ({error.strerror})") from error

    def run(x: np.ndarray) -> np.ndarray:
        results = []
        for image in map(np.ascontiguousarray, x):  # kept while it is read
            extractor = net.create_extractor()
            extractor.input(INPUT, package.Mat(image))
            results.append(np.array(extractor.extract(OUTPUT)[1]))
        return np.stack(results)

    return run

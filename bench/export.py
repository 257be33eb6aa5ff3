"""The largest errors of exported networks, by runtime, as the table of docs/export.md: python -m bench.export

Each network is written as an ONNX file and for ncnn, in each precision, and run in every runtime that is installed, on
noise of the sizes that `export` tries, against our own result in fp32. Packaged weights, and one network of each other
kind with random ones.
"""

import importlib
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edsr import load_model
from edsr.export import write_ncnn, write_onnx
from edsr.export.trial import SIZES, Run
from edsr.models import NETWORKS, Network, build_network

PACKAGED = [(name, scale) for name in ("edsr-baseline", "edsr-photo") for scale in (2, 3, 4)]
RANDOM = [("mdsr-baseline", 2), ("srcnn", 3), ("vdsr", 2), ("srresnet", 4)]


def openvino(path: Path) -> Run:
    model = importlib.import_module("openvino").Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: model(x)[0]


def opencv(path: Path) -> Run:
    net = importlib.import_module("cv2").dnn.readNetFromONNX(str(path))

    def run(x: np.ndarray) -> np.ndarray:
        net.setInput(x)
        return net.forward()

    return run


PEERS = {"OpenVINO": ("openvino", openvino), "OpenCV": ("cv2", opencv)}
COLUMNS = ["ONNX Runtime", *PEERS, "ncnn", "collapsed, inside", "collapsed, ring"]
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "cv2": "opencv-python-headless", "ncnn": "ncnn"}


def networks() -> Iterator[tuple[str, Network]]:
    for name, scale in PACKAGED:
        yield name, load_model(name, scale=scale)
    for name, scale in RANDOM:
        torch.manual_seed(0)
        config: Any = NETWORKS[name]
        yield f"{name}, random", build_network(type(config)(**{**vars(config), "scale": scale})).eval()


def error(model: Network, run: Run) -> str:
    """The largest, as a share of white, or of the largest value where that is more."""
    random, found = np.random.default_rng(0), 0.0
    for size in SIZES:
        x = random.random((2, 3, *size)).astype(np.float32)
        with torch.no_grad():
            ours = model(torch.from_numpy(x)).numpy()
        try:
            theirs = run(x)
        except Exception as problem:  # of classes of its own
            return f"fails ({size[0]} x {size[1]}: {type(problem).__name__})"
        assert theirs.shape == ours.shape
        found = max(found, float(abs(theirs - ours).max()) / max(1.0, float(abs(ours).max())))
    return shown(found)


def row(model: Network, precision: str, folder: Path) -> list[str]:
    """The columns' cells. ONNX Runtime and ncnn are what the writers compare with."""
    onnx, param = folder / "network.onnx", folder / "network.param"
    cells = [shown(write_onnx(model, onnx, precision=precision).error)]
    for module, load in PEERS.values():
        cells.append(error(model, load(onnx)) if importlib.util.find_spec(module) else "-")
    cells.append(shown(write_ncnn(model, param, precision=precision).error))
    if model.config.architecture not in ("edsr", "mdsr"):
        return [*cells, "", ""]
    found = write_onnx(model, onnx, precision=precision, collapsed=True)
    return [*cells, shown(found.error), shown(found.ring)]


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def main() -> None:
    installed = [module for module in PACKAGES if importlib.util.find_spec(module)]
    print(
        ", ".join(f"{PACKAGES[module]} {importlib.metadata.version(PACKAGES[module])}" for module in installed) + "\n"
    )
    print(f"| | scale | precision | {' | '.join(COLUMNS)} |")
    print(f"|---|---|---|{'---:|' * len(COLUMNS)}")
    last = ""
    with tempfile.TemporaryDirectory() as folder:
        for name, model in networks():
            for precision in "fp32", "fp16":
                heads = ("", "") if precision == "fp16" else ("" if name == last else name, f"x{model.config.scale}")
                last = name
                print(f"| {' | '.join([*heads, precision, *row(model, precision, Path(folder))])} |", flush=True)


if __name__ == "__main__":
    main()

"""Writes a packaged network as an ONNX file, and upscales with ONNX Runtime alone, as another program would.

    python examples/export_onnx.py [FOLDER]

Without a folder a temporary one is taken. Needs `pip install 'edsr-triton[onnx]'`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

from edsr import Upscaler, load_model
from edsr.export import write_onnx
from edsr.weights import read_info


def main(folder: Path) -> None:
    model, info = load_model("edsr-baseline", scale=2), read_info("edsr-baseline", scale=2)
    made = write_onnx(model, folder / "edsr_x2.onnx", training=info["training"], terms=info["terms"])
    print(f"{made.path.name}: ONNX Runtime's result is ours to {made.error:.1e} of white")

    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    print(f"x{told['scale']}, {told['color']} in 0..{told['range']}, license {told['license']}")

    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    x = (image / np.float32(255)).transpose(2, 0, 1)[None]  # [1, 3, height, width]
    (y,) = session.run(["output"], {"input": x})
    large = (y[0].clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)

    ours = Upscaler(model, device="cpu")(image)
    print(f"{image.shape} -> {large.shape}; from ours it differs by {abs(large - ours.astype(int)).max()} of 255")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))

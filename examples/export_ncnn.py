"""Writes a packaged network for ncnn, and upscales with ncnn alone, as realesrgan-ncnn-vulkan or upscayl would.

    python examples/export_ncnn.py [FOLDER]

Without a folder a temporary one is taken. Needs `pip install 'edsr-triton[ncnn]'`.
"""

import json
import sys
import tempfile
from pathlib import Path

import ncnn
import numpy as np

from edsr import Upscaler, load_model
from edsr.export import ncnn_files, write_ncnn
from edsr.weights import read_info


def main(folder: Path) -> None:
    model, info = load_model("edsr-baseline", scale=2), read_info("edsr-baseline", scale=2)
    # The scale in the name is what such tools go by.
    made = write_ncnn(model, folder / "edsr_x2.param", training=info["training"], terms=info["terms"])
    weights, about, layers = ncnn_files(made.path)
    print(f"{made.path.name}: ncnn's result is ours to {made.error:.1e} of white")
    print(f"license {json.loads(about.read_text())['license']}")

    net = ncnn.Net()
    net.load_param(str(layers))
    net.load_model(str(weights))
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    x = ncnn.Mat.from_pixels(image, ncnn.Mat.PixelType.PIXEL_RGB, image.shape[1], image.shape[0])
    x.substract_mean_normalize([], [1 / 255] * 3)  # black is 0, white 1; the network's mean is inside
    extractor = net.create_extractor()
    extractor.input("data", x)
    y = np.array(extractor.extract("output")[1])  # [3, height, width]
    large = (y.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)

    ours = Upscaler(model, device="cpu")(image)
    print(f"{image.shape} -> {large.shape}; from ours it differs by {abs(large - ours.astype(int)).max()} of 255")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))

"""Saves a packaged network in the layout of the Hugging Face Hub, with a model card, and loads it again, offline.

    python examples/hub.py [FOLDER]

Without a folder a temporary one is taken. Needs `pip install 'edsr-triton[hub]'`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from edsr import Upscaler, load_model
from edsr.integrations.hub import HubNetwork


def main(folder: Path) -> None:
    network = HubNetwork.from_pretrained("edsr-baseline", scale=2)
    network.record["scores"] = {"Set5": {"psnr": 37.60}, "Set14": {"psnr": 33.26}}
    network.save_pretrained(folder / "edsr-x2")
    print((folder / "edsr-x2" / "README.md").read_text(encoding="utf-8"))
    # After `hf auth login`, network.push_to_hub("USER/edsr-x2") uploads it, and "hf-hub:USER/edsr-x2" is its name.

    upscaler = Upscaler(load_model(folder / "edsr-x2"), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    print(f"{image.shape} -> {upscaler(image).shape}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))

"""Loads a checkpoint in EDSR-PyTorch's layout with spandrel, which knows EDSR after `register`; no network access.

    python examples/with_spandrel.py [FILE]

Without a file one is made of a packaged network. Needs `pip install 'edsr-triton[spandrel]'`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from edsr import EDSRError, load_model
from edsr.weights import save_checkpoint

try:
    import edsr.integrations.spandrel
except EDSRError as error:  # spandrel is missing, or the torchvision that it needs does not fit this torch
    print(f"skipped: {error}")
    sys.exit()

import spandrel


def main(file: Path) -> None:
    edsr.integrations.spandrel.register()
    model = spandrel.ModelLoader().load_from_file(file)
    assert isinstance(model, spandrel.ImageModelDescriptor)
    print(f"{model.architecture.name} x{model.scale}, {', '.join(model.tags)}")

    harbour = Image.open(Path(__file__).with_name("harbour.png")).convert("RGB").crop((0, 0, 96, 64))
    image = torch.from_numpy(np.asarray(harbour).copy()).permute(2, 0, 1)[None].float() / 255
    print(f"{list(image.shape)} -> {list(model(image).shape)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(load_model("edsr-baseline"), Path(folder) / "edsr_baseline_x2.pt")
            main(Path(folder) / "edsr_baseline_x2.pt")

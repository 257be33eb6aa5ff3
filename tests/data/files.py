"""Files to load images from, and what tests of loading share."""

import re
import sys

import numpy as np
import pytest
import pyvips
import torch

from edsr.data import PairedImages, load_dataset
from edsr.errors import DataError
from tests.conftest import make_image

linux = pytest.mark.skipif(sys.platform != "linux", reason="uses a Linux interface")


def save(path, pixels):
    """PNG, 8 or 16 bits, gray or RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pyvips.Image.new_from_array(pixels)
    gray, sixteen = pixels.shape[2] == 1, pixels.dtype == np.uint16
    image = image.copy(interpretation={0: "srgb", 1: "b-w", 2: "rgb16", 3: "grey16"}[gray + 2 * sixteen])
    path.write_bytes(image.write_to_buffer(path.suffix))
    return path


def sixteen_bit(height, width, channels=3, seed=0):
    """Levels that 8 bits do not have."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint16)
    return make_image(height, width, channels, seed).astype(np.uint16) * 256 + noise


def hdf5(path, lr, hr):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, values in ("lr", lr), ("hr", hr):
            for i, value in enumerate(values) if isinstance(values, list) else ():
                file[f"{name}/{i}"] = value
            if not isinstance(values, list):
                file[name] = values
    return path


def read_all(*sources, scale=2, patch=4, **more) -> PairedImages:
    return load_dataset([str(source) for source in sources], scale, patch, **more)[0]


def same(a: PairedImages, b: PairedImages) -> bool:
    return torch.equal(a.hr, b.hr) and torch.equal(a.lr, b.lr) and np.array_equal(a.index, b.index)


def refused(says, *sources, **more):
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        read_all(*sources, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)

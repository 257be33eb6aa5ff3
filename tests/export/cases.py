"""Every kind of network, small, and images from one pixel up; for all formats."""

import numpy as np
import pytest
import torch

from tests.conftest import network
from tests.models.test_family import NAMES, SMALL, small

SIZES = [(1, 1), (1, 3), (6, 5), (17, 20)]
EVERY = [("edsr", lambda scale: network(scale, residual_scale=0.1, mean=(0.1, 0.5, 0.4))), *(
    (name, lambda scale, config=config: small(config, scale)) for name, config in zip(NAMES, SMALL, strict=True)
)]  # fmt: skip
networks = pytest.mark.parametrize("make", [make for _, make in EVERY], ids=[name for name, _ in EVERY])
scales = pytest.mark.parametrize("scale", [2, 3, 4])


def images(count=2):
    random = np.random.default_rng(1)
    return [random.random((count, 3, *size)).astype(np.float32) for size in SIZES]


def right(model, x):
    """In fp64."""
    with torch.no_grad():
        return model(torch.from_numpy(x).double()).numpy()

"""Samples into the network's values and back."""

import numpy as np
import pytest
import torch

from edsr.inference.pixels import flat_alpha, from_network, to_network, to_samples


def test_values_are_clamped_and_rounded():
    y = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.2])
    assert to_samples(y.clone(), np.dtype(np.uint8)).tolist() == [0, 0, 128, 255, 255]
    assert to_samples(y.clone(), np.dtype(np.uint16)).tolist() == [0, 0, 32768, 65535, 65535]
    assert torch.equal(to_samples(y.clone(), np.dtype(np.float32)), y)  # floats keep what is beyond


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_there_and_back(channels, dtype):
    full = 1 if dtype == np.float32 else np.iinfo(dtype).max
    rows = (np.random.default_rng(channels).uniform(0.1, 1, (4, 6, channels)) * full).astype(dtype)
    x, quantized = to_network(torch.from_numpy(rows))
    assert x.shape == (2 if channels in (2, 4) else 1, 3, 4, 6)
    assert quantized == (channels == 3 and dtype != np.float32)
    values = x.double() / full if channels in (1, 3) else x.double()
    nowhere = torch.zeros(4, 6, dtype=torch.bool)
    result = from_network(values, channels, rows.dtype, (nowhere, nowhere) if channels in (2, 4) else None).numpy()
    assert result.dtype == dtype
    np.testing.assert_allclose(result.astype(float), rows.astype(float), rtol=2e-7, atol=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_alpha_is_flat_where_its_window_is(dtype):
    full = 1 if dtype == np.float32 else np.iinfo(dtype).max
    alpha = np.zeros((9, 12), dtype)
    alpha[:, 6:] = full
    clear, opaque = flat_alpha(alpha, 3, 4)
    assert clear.shape == opaque.shape == (4, 12)
    assert clear[:, :4].all() and not clear[:, 4:].any()
    assert opaque[:, 8:].all() and not opaque[:, :8].any()
    alpha[8, 0] = full
    clear, _ = flat_alpha(alpha, 5, 2)
    assert clear[0, :4].all() and clear[1].tolist() == [False] * 3 + [True] + [False] * 8

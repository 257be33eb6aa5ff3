"""Networks other than EDSR through the Upscaler: any image, any budget, every backend that has kernels for them."""

import numpy as np
import pytest
import torch

from edsr import Upscaler
from edsr.errors import BackendError
from edsr.kernels import unavailable_reason
from tests.models.test_family import NAMES, SMALL, small

configs = pytest.mark.parametrize("config", SMALL, ids=NAMES)


def image(height, width, channels, dtype):
    values = np.random.default_rng(0).random((height, width, channels))
    y, x = np.mgrid[0:height, 0:width]
    smooth = (0.5 + 0.3 * np.sin(x / 3) + 0.2 * np.cos(y / 4))[:, :, None]
    values = np.clip(0.8 * smooth + 0.2 * values, 0, 1)
    return values.astype(dtype) if dtype == np.float32 else (values * np.iinfo(dtype).max).astype(dtype)


@configs
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_bands_give_the_whole_image(config, channels, dtype):
    model = small(config, 3).float()
    whole = Upscaler(model, "cpu", backend="torch", tile=2000)
    banded = Upscaler(model, "cpu", backend="torch", tile=whole.plan.smallest_tile)
    pixels = image(31, 70, channels, dtype)
    assert banded.band_rows(70, 31) < 31
    one, other = whole(pixels), banded(pixels)
    assert one.shape == (93, 210, channels) and one.dtype == dtype
    step = 1e-5 if dtype == np.float32 else 1
    assert abs(one.astype(np.float64) - other.astype(np.float64)).max() <= step


@configs
def test_gray_stays_gray(config):
    model = small(config, 2).float()
    gray = image(9, 8, 1, np.float32)
    one, three = (Upscaler(model, "cpu", backend="torch")(x) for x in (gray, np.repeat(gray, 3, 2)))
    assert abs(one[:, :, 0] - three.mean(2)).max() < 1e-5


@configs
def test_the_self_ensemble_is_the_mean_of_eight(config):
    model = small(config, 2).float()
    upscaler = Upscaler(model, "cpu", backend="torch")
    banded = Upscaler(model, "cpu", backend="torch", tile=upscaler.plan.smallest_tile)
    x = image(25, 60, 3, np.float32)
    results = []
    for flip in False, True:
        for turns in range(4):
            y = upscaler(np.ascontiguousarray(np.rot90(x[:, ::-1] if flip else x, turns)))
            y = np.rot90(y, -turns)
            results.append(y[:, ::-1] if flip else y)
    for one in upscaler, banded:
        assert abs(one(x, self_ensemble=True) - np.mean(results, 0)).max() < 1e-5


@configs
def test_winograd_is_as_exact_as_pytorch(config):
    model = small(config, 2)
    upscaler = Upscaler(model.float(), "cpu", backend="torch")
    if why := unavailable_reason("winograd", torch.device("cpu"), torch.float32, config.features):
        with pytest.raises(BackendError):
            Upscaler(model, "cpu", backend="winograd")
        pytest.skip(why)
    x = image(40, 50, 3, np.float32)
    with torch.no_grad():
        right = small(config, 2)(torch.from_numpy(x).double().permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    kernels = Upscaler(model.float(), "cpu", backend="winograd")
    errors = [np.sqrt(np.mean((y.astype(np.float64) - right) ** 2)) for y in (kernels(x), upscaler(x))]
    assert errors[0] <= 2 * errors[1] + 1e-7


@pytest.mark.parametrize("config", [SMALL[0], SMALL[3], SMALL[4]], ids=["mdsr", "vdsr", "srresnet"])
def test_triton_is_as_exact_as_pytorch(config, chip):
    pytest.importorskip("triton")
    x = image(7, 6, 3, np.float32)
    with torch.no_grad():
        right = small(config, 2)(torch.from_numpy(x).double().permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    results = [Upscaler(small(config, 2), chip.type, "fp32", backend)(x) for backend in ("triton", "torch")]
    errors = [np.sqrt(np.mean((y.astype(np.float64) - right) ** 2)) for y in results]
    assert errors[0] <= 2 * errors[1] + 1e-7


@configs
def test_a_budget_that_is_too_small_is_told(config):
    model = small(config, 4).float()
    with pytest.raises(BackendError, match="tile=8: this network needs"):
        Upscaler(model, "cpu", tile=8)

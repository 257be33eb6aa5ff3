"""No NaN and no infinity leaves a network unseen: not in whole numbers either, nor where finite weights overflow."""

import numpy as np
import pytest
import torch

from edsr import EDSR, BackendError, EDSRConfig, Upscaler, WeightsError
from edsr.kernels import OutputSpec, load_ops
from edsr.weights import save_model
from tests.conftest import make_image

IMAGES = {
    "uint8": lambda: make_image(20, 24),
    "uint16": lambda: make_image(20, 24).astype(np.uint16) * 257,
    "float32": lambda: (make_image(20, 24) / 255).astype(np.float32),
    "gray": lambda: make_image(20, 24, 1)[:, :, 0],
    "alpha": lambda: np.dstack([make_image(20, 24), np.full((20, 24), 255, np.uint8)]),
}


def overflowing(scale=2) -> EDSR:
    """Every weight is finite; the product of two is not."""
    model = EDSR(EDSRConfig(scale=scale, blocks=1, features=16))
    with torch.no_grad():
        model.head.weight.mul_(1e30)
        model.upsampler[0].weight.mul_(1e30)
    return model


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # NumPy in the interpreter
@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("backend", ["torch", "winograd", "triton"])
def test_overflowing_weights(backend, image):
    pixels = IMAGES[image]()
    if backend == "triton":
        pixels = pixels[:3, :5]  # the interpreter is slow
    try:
        upscaler = Upscaler(overflowing(), "cpu", backend=backend, name="mine")
    except BackendError as error:
        pytest.skip(str(error))
    with pytest.raises(WeightsError, match="mine: gives values that are no numbers"):
        upscaler(pixels)


@pytest.mark.parametrize("options", [{"tile": 32}, {"precision": "bf16"}])
def test_in_bands_and_other_precisions(options):
    upscaler = Upscaler(overflowing(), "cpu", backend="torch", **options)
    for self_ensemble in False, True:
        with pytest.raises(WeightsError, match="the network: gives"):
            upscaler(make_image(70, 40), self_ensemble)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [None, torch.uint8, torch.uint16])
def test_a_single_value(bad, dtype):
    """In the body of the network, at one pixel: the tails see it in whole numbers, too."""
    ops = load_ops("torch")
    x = torch.randn(1, 16, 9, 11)
    weight, bias = torch.randn(3, 16, 3, 3), torch.randn(3)
    overflow = torch.zeros(1, dtype=torch.int32)
    ops.tail(x, weight, bias, (0.5, 0.5, 0.5), OutputSpec(dtype, overflow))
    assert overflow.item() == 0
    x[0, 3, 4, 5] = bad
    ops.tail(x, weight, bias, (0.5, 0.5, 0.5), OutputSpec(dtype, overflow))
    assert overflow.item() == 1


@pytest.mark.parametrize(("output", "more"), [("a.png", ()), ("a.tif", ()), ("a.jpg", ("--outscale", "1.5"))])
def test_command_names_the_weights(run, home, output, more):
    save_model(overflowing(), home / "over.safetensors")
    code, _, said = run("upscale", "photo.png", "-o", output, "--model", "over.safetensors", *more)
    assert code == 1 and "over.safetensors: gives values that are no numbers" in said and said.count("\n") == 1
    assert not (home / output).exists() and not list(home.glob(".edsr-*"))


def test_other_commands_name_the_weights(run, home):
    save_model(overflowing(), home / "over.safetensors")
    code, _, said = run("compare", "photo.png", "--model", "over.safetensors")
    assert code == 1 and "over.safetensors: gives values" in said
    (home / "hr").mkdir()
    (home / "photo.png").rename(home / "hr/photo.png")
    code, out, said = run("evaluate", "--hr", "hr", "--model", "over.safetensors")
    assert code == 1 and "over.safetensors: gives values" in out + said

"""`Upscaler.tensor`: images as networks have them give what the same images give as arrays, bit for bit."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr import EDSR, BackendError, EDSRConfig, Upscaler, WeightsError
from edsr.inference import MultiDeviceUpscaler
from edsr.inference.cuda import DeviceCopier
from edsr.inference.streaming import Stream
from tests.conftest import make_image, network, repeating_network

MODEL = network(features=16)
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def batch(height: int, width: int, count: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    images = np.stack([make_image(height, width, seed=seed) for seed in range(count)])
    return (torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255).to(dtype).contiguous()


def by_arrays(upscaler, x: torch.Tensor, self_ensemble: bool = False) -> torch.Tensor:
    """What there must be: each image as an array of fp32."""
    results = [upscaler(image.permute(1, 2, 0).float().numpy(), self_ensemble) for image in x]
    return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2).to(x.dtype)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "a part": lambda x: torch.nn.functional.pad(x, (3, 2, 1, 4))[:, :, 1:-4, 3:-2],
    "every other": lambda x: x.repeat_interleave(2, 3)[:, :, :, ::2],
    "expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "a list's": lambda x: torch.stack(list(x)),
}


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_equals_the_array_path(data):
    """Any size from one pixel on, in bands, of split columns, with either backend."""
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 140))
    count, dtype = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(FLOATS))
    ensemble = data.draw(st.booleans()) and height * width < 2000
    backend, tile = data.draw(st.sampled_from(["torch", "winograd"])), data.draw(st.sampled_from([32, 64, "auto"]))
    upscaler = Upscaler(MODEL, "cpu", backend=backend, tile=tile)
    x = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))](batch(height, width, count, dtype))
    before = x.clone()
    y = upscaler.tensor(x, ensemble)
    assert y.shape == (count, 3, 2 * height, 2 * width) and y.dtype == dtype and y.device == x.device
    assert y.is_contiguous() and torch.equal(y, by_arrays(upscaler, x, ensemble)) and torch.equal(x, before)
    assert torch.equal(upscaler.tensor(x[0], ensemble), y[0])


def test_equals_the_network():
    x = batch(70, 90)
    y = Upscaler(MODEL, "cpu", tile=32).tensor(x)
    with torch.no_grad():
        assert (y - MODEL(x.double())).abs().max() < 1e-5


def test_values_beyond_come_back_beyond():
    x = batch(9, 9) * 4 - 0.5
    assert x.max() > 1 and x.min() < 0
    y = Upscaler(repeating_network(), "cpu").tensor(x)
    assert (y - x.repeat_interleave(2, 2).repeat_interleave(2, 3)).abs().max() < 1e-5


@pytest.mark.parametrize("tile", [32, 256])
def test_one_on_another_device_goes_by_way_of_the_host(tile, monkeypatch):
    """No other device is here: the network is said to be elsewhere."""
    upscaler, x = Upscaler(MODEL, "cpu", tile=tile), batch(40, 90, 2)
    want, taken = upscaler.tensor(x), []
    honest = DeviceCopier.to_device
    monkeypatch.setattr(DeviceCopier, "to_device", lambda self, rows: (taken.append(rows), honest(self, rows))[1])
    assert torch.equal(upscaler.tensor(x), want) and not taken
    monkeypatch.setattr(Upscaler, "model_device", torch.device("cuda", 1))
    assert torch.equal(upscaler.tensor(x), want) and taken


def test_on_several_devices():
    shared = MultiDeviceUpscaler([Upscaler(MODEL, "cpu", tile=32) for _ in range(3)])
    x = batch(20, 130, 2, torch.float16)
    want = Upscaler(MODEL, "cpu").tensor(x)
    assert (shared.tensor(x) - want).abs().max() <= 2**-10 and shared.tensor(x).dtype == torch.float16
    image = make_image(20, 130, 4)
    assert np.abs(shared(image).astype(int) - Upscaler(MODEL, "cpu")(image)).max() <= 1


def nan_at(x, value=float("nan")):
    x = x.clone()
    x[-1, 1, -1, -1] = value
    return x


REFUSED = {
    "array": (np.zeros((1, 3, 9, 9), np.float32), TypeError, "call the Upscaler for arrays"),
    "nothing": (None, TypeError, "not NoneType"),
    "list": ([batch(9, 9)], TypeError, "not list"),
    "uint8": (torch.zeros(1, 3, 9, 9, dtype=torch.uint8), TypeError, "x / 255"),
    "int64": (torch.zeros(1, 3, 9, 9, dtype=torch.int64), TypeError, "x / 255"),
    "bool": (torch.zeros(1, 3, 9, 9, dtype=torch.bool), TypeError, "not torch.bool"),
    "complex": (torch.zeros(1, 3, 9, 9, dtype=torch.complex64), TypeError, "not torch.complex64"),
    "8-bit floats": (torch.zeros(1, 3, 9, 9).to(torch.float8_e4m3fn), TypeError, "16, 32 or 64 bits"),
    "sparse": (batch(9, 9).to_sparse(), TypeError, ".to_dense()"),
    "meta": (torch.zeros(1, 3, 9, 9, device="meta"), ValueError, "no values"),
    "channels last": (torch.zeros(1, 9, 9, 3), ValueError, "x.movedim(-1, -3)"),
    "gray": (torch.zeros(2, 1, 9, 9), ValueError, "x.expand(-1, 3, -1, -1)"),
    "one gray": (torch.zeros(1, 9, 9), ValueError, "x.expand(3, -1, -1)"),
    "four channels": (torch.zeros(1, 4, 9, 9), ValueError, "[1, 4, 9, 9]"),
    "two axes": (torch.zeros(9, 9), ValueError, "[N, 3, H, W] or [3, H, W]"),
    "five axes": (torch.zeros(1, 1, 3, 9, 9), ValueError, "[N, 3, H, W] or [3, H, W]"),
    "no images": (torch.zeros(0, 3, 9, 9), ValueError, "not empty"),
    "no rows": (torch.zeros(1, 3, 0, 9), ValueError, "not empty"),
    "NaN": (nan_at(batch(9, 9, 2)), ValueError, "NaN"),
    "NaN in fp16": (nan_at(batch(9, 9, 2, torch.float16)), ValueError, "NaN"),
    "infinite": (nan_at(batch(9, 9), float("-inf")), ValueError, "NaN or infinite"),
    "too large for fp32": (nan_at(batch(9, 9, 1, torch.float64), 1e300), ValueError, "1e+300"),
    "0..255": (batch(9, 9) * 255, ValueError, "divide them by 255"),
    "-1..1": (batch(9, 9) * 2 - 1, ValueError, "map them to it"),
    "gradients": (batch(9, 9).requires_grad_(), ValueError, "x.detach()"),
    "of a network": (batch(9, 9).requires_grad_() * 1, ValueError, "x.detach()"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    given, kind, text = REFUSED[name]
    upscaler = Upscaler(MODEL, "cpu", backend="torch")
    with pytest.raises(kind) as error:
        upscaler.tensor(given)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_gradients_are_none_where_none_are_asked_for():
    upscaler, x = Upscaler(MODEL, "cpu"), batch(9, 9).requires_grad_()
    with torch.no_grad():
        y = upscaler.tensor(x)
    assert not y.requires_grad and torch.equal(y, upscaler.tensor(x.detach()))


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "default dtype": default_dtype,
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("backend", ["torch", "winograd"])
@pytest.mark.parametrize("mode", MODES)
def test_the_caller_s_modes_change_nothing(mode, backend):
    """Neither of tensors nor of arrays; and what is kept for later calls is good outside of them."""
    upscaler = Upscaler(MODEL, "cpu", backend=backend, tile=32)
    x, image = batch(40, 50, 2), make_image(40, 50)
    with MODES[mode]():
        y, large = upscaler.tensor(x, self_ensemble=True), upscaler(image)
    assert torch.equal(upscaler.tensor(x, self_ensemble=True), y) and np.array_equal(upscaler(image), large)
    assert y.dtype == torch.float32 and y.device.type == "cpu"


def test_memory_that_runs_out(monkeypatch, caplog):
    """Bands go on smaller, as with arrays."""
    upscaler, x = Upscaler(MODEL, "cpu", tile=64), batch(90, 80)
    want, honest, calls = upscaler.tensor(x), Stream.__call__, []

    def call(self, x, last=False):
        calls.append(self)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no memory")
        return honest(self, x, last)

    monkeypatch.setattr(Stream, "__call__", call)
    assert (upscaler.tensor(x) - want).abs().max() < 1e-5
    assert len(caplog.messages) == 1 and "ran out of memory" in caplog.messages[0]
    monkeypatch.setattr(Stream, "__call__", lambda self, x, last=False: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(BackendError, match="too little free memory"):
        upscaler.tensor(x)


def test_faulty_weights_are_named():
    model = EDSR(EDSRConfig(blocks=1, features=8))
    with torch.no_grad():
        model.head.weight.mul_(1e38)
        model.tail.weight.mul_(1e38)
    with pytest.raises(WeightsError, match="mine: gives values that are no numbers"):
        Upscaler(model, "cpu", name="mine").tensor(batch(9, 9))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
def test_on_a_gpu(dtype):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    upscaler = Upscaler(MODEL, "cuda", precision="fp32", tile=64)
    x = batch(90, 80, 2, dtype)
    here, there = upscaler.tensor(x), upscaler.tensor(x.cuda())
    assert here.device.type == "cpu" and there.device.type == "cuda" and torch.equal(here, there.cpu())
    assert torch.equal(here, by_arrays(upscaler, x))
    assert (Upscaler(MODEL, "cpu").tensor(x.cuda()).cpu().double() - here.double()).abs().max() < 1e-2

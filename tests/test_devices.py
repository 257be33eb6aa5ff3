"""Precision is what was asked for: fp32 is not TF32, and PyTorch's settings are the caller's again afterwards."""

import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from edsr import devices
from edsr.devices import in_precision
from edsr.inference.upscaler import Upscaler
from edsr.training import train
from tests.conftest import make_image, network, training

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul


def states() -> tuple:
    """How CUDA's convolutions, recurrent networks and matrix products multiply fp32 now, and older names for it."""
    found = [CUDNN.conv.fp32_precision == "tf32", CUDNN.rnn.fp32_precision == "tf32", MATMUL.fp32_precision == "tf32"]
    for read in (lambda: CUDNN.allow_tf32, torch.get_float32_matmul_precision):
        try:
            found.append(read())
        except RuntimeError:
            found.append("refused")
    return tuple(found)


def allows_tf32() -> bool:
    return states()[0] or states()[2]


@pytest.fixture(autouse=True)
def settings():
    yield
    CUDNN.conv.fp32_precision = CUDNN.rnn.fp32_precision = "tf32"
    CUDNN.allow_tf32 = True
    MATMUL.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")
    assert states() == (True, True, False, True, "highest")


SETTINGS = {
    "as torch begins": lambda: None,
    "no TF32 in convolutions": lambda: setattr(CUDNN, "allow_tf32", False),
    "TF32 in products, by the oldest name": lambda: torch.set_float32_matmul_precision("medium"),
    "by the old name": lambda: setattr(MATMUL, "allow_tf32", True),
    "by the new name": lambda: setattr(MATMUL, "fp32_precision", "tf32"),
    "convolutions by the new name": lambda: setattr(CUDNN.conv, "fp32_precision", "ieee"),
    "others by the new name": lambda: setattr(CUDNN.rnn, "fp32_precision", "ieee"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_fp32_is_fp32_and_settings_come_back(name):
    SETTINGS[name]()
    before = states()
    with in_precision(torch.float32, CUDA), in_precision(torch.float32, CUDA):
        assert not allows_tf32()
        with pytest.raises(ZeroDivisionError), in_precision(torch.float32, CUDA):
            _ = 1 / 0
        assert not allows_tf32()
    assert states() == before


@pytest.mark.parametrize(("dtype", "device"), [(torch.float16, CUDA), (torch.bfloat16, CUDA), (torch.float32, CPU)])
def test_elsewhere_nothing_is_touched(dtype, device, monkeypatch):
    monkeypatch.setattr(devices, "_forbid_tf32", lambda: pytest.fail("settings were touched"))
    with in_precision(dtype, device):
        pass


def test_the_last_thread_to_leave_takes_it_back():
    inside, leave = threading.Event(), threading.Event()

    def compute():
        with in_precision(torch.float32, CUDA):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=compute)
    with in_precision(torch.float32, CUDA):
        thread.start()
        inside.wait()
    assert not allows_tf32()
    leave.set()
    thread.join()
    assert CUDNN.allow_tf32


# Who computes in it.


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """(dtype, kind of device) of each context that is open now."""
    now: list[tuple] = []

    @contextmanager
    def note(dtype, device):
        now.append((dtype, device.type))
        yield
        now.pop()

    for module in ("inference.executor", "training.step", "training.validation"):
        monkeypatch.setattr(f"edsr.{module}.in_precision", note)
    return now


@pytest.fixture
def convolved(monkeypatch, asked) -> set:
    """What was open while PyTorch convolved."""
    found: set = set()
    conv2d = torch.nn.functional.conv2d
    monkeypatch.setattr("torch.nn.functional.conv2d", lambda *a, **o: (found.add(tuple(asked)), conv2d(*a, **o))[1])
    return found


@pytest.mark.parametrize("tile", [256, 32])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_images_are_computed_in_their_precision(precision, tile, convolved, monkeypatch):
    up = Upscaler(network(), "cpu", "fp32", "torch", tile=tile)
    for place in (up, up._executor):  # as if this CPU computed in it
        monkeypatch.setattr(place, "plan", replace(up.plan, precision=precision))
    convolved.clear()  # of folding, in fp64
    up(make_image(40, 40))
    up.frame(torch.from_numpy(make_image(9, 9)))
    assert convolved == {((devices.PRECISIONS[precision], "cpu"),)}


def test_what_overflows_goes_on_in_full_precision(convolved, caplog, monkeypatch):
    monkeypatch.setattr("edsr.inference.plan.cpu_has", lambda precision: True)
    up = Upscaler(network(), "cpu", "bf16", "torch")
    with torch.no_grad():
        up.model.head.bias.fill_(torch.inf)
    convolved.clear()
    up(make_image(9, 9))
    assert "going on in fp32" in caplog.text
    assert convolved == {((torch.bfloat16, "cpu"),), ((torch.float32, "cpu"),)}


def test_training_and_validation_are_computed_in_theirs(folder, tmp_path, tiny, convolved):
    list(train(training(folder, tmp_path / "run", backend="torch")))
    assert convolved == {((torch.float32, "cpu"),)}

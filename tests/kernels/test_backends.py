"""What the backends answer of themselves."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from edsr.kernels import compile_ahead, load_ops, load_training_ops, unavailable_reason
from tests.conftest import ROOT

CPU = torch.device("cpu")


def test_pytorch_can_always_be_had():
    assert unavailable_reason("torch", torch.device("mps"), torch.float64, 7) == ""
    assert compile_ahead("torch", CPU) == "" == compile_ahead("torch", CPU, training=True)


@pytest.mark.parametrize("backend", ["torch", "triton", "winograd"])
def test_every_backend_has_every_operation(backend):
    if backend == "triton":
        pytest.importorskip("triton")
    for namespace in (load_ops(backend), load_training_ops(backend)):
        for name in ("head", "conv3x3", "resblock", "tail", "collapsed_tail"):
            assert callable(getattr(namespace, name))


def test_without_triton_its_backend_says_so():
    code = (
        "import sys, torch\nsys.modules['triton'] = None\nfrom edsr.kernels import unavailable_reason\n"
        "print(unavailable_reason('triton', torch.device('cuda'), torch.float16, 64))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "the package triton is not installed\n", result.stderr


def test_the_triton_kernels_say_what_they_need(monkeypatch):
    launch = pytest.importorskip("edsr.kernels.triton.launch")
    gpu, half = torch.device("cuda", 0), torch.float16
    properties = SimpleNamespace(name="a GPU", major=8, minor=0, multi_processor_count=108)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: properties.name)
    launch._gpu.cache_clear()
    assert unavailable_reason("triton", gpu, half, 64) == ""
    assert "multiple of 16 features, not 40" in unavailable_reason("triton", gpu, half, 40)
    assert "fp16, bf16, fp32, not float64" in unavailable_reason("triton", gpu, torch.float64, 64)
    assert "need a CUDA device, not mps" in unavailable_reason("triton", torch.device("mps"), half, 64)
    properties.major, properties.minor = 7, 5
    launch._gpu.cache_clear()
    assert unavailable_reason("triton", gpu, half, 64) == "a GPU is older than compute capability 8.0"
    properties.major, properties.minor = 9, 0
    launch._gpu.cache_clear()
    assert unavailable_reason("triton", gpu, half, 64) == ""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert unavailable_reason("triton", gpu, half, 64) == "the kernels are for NVIDIA's GPUs, and a GPU is AMD's"
    launch._gpu.cache_clear()
    monkeypatch.setattr(launch, "interpreted", lambda: True)
    assert unavailable_reason("triton", CPU, half, 64) == ""
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    assert "need a CUDA device, not cpu" in unavailable_reason("triton", CPU, half, 64)

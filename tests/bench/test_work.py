"""What the benchmarks compare and how it is judged: windows, fp64, every case, other engines. Nothing is timed."""

import gc
import importlib
import importlib.util
import math
import os
import re
import sys
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import peers, workloads
from bench.frames import GpuNetwork, frames
from bench.ops import SingleOp, operations
from bench.windows import SIDE, SMALL_SIDE, largest, windows
from bench.workloads import CpuNetwork, Unavailable
from edsr.models.edsr import EDSRConfig

needs_triton = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="on a GPU, `python -m bench.verify` does this"
)


@pytest.mark.parametrize("length", [1, 64, SIDE + 10, SIDE + 11, 1080])
@pytest.mark.parametrize("side", [SIDE, SMALL_SIDE])
def test_windows_know_all_that_bears_on_them(length, side):
    for window in windows(length, 5, side):
        assert 0 <= window.start <= window.first < window.end <= window.stop <= length
        assert window.start == max(0, window.first - 5) and window.stop == min(length, window.end + 5)
    assert windows(length, 5, side)[0].first == 0 and windows(length, 5, side)[-1].end == length


def test_nan_is_the_largest():
    assert math.isnan(largest([1.0, math.nan])) and math.isnan(largest([math.nan, 1.0]))
    assert largest(iter([1.0, 3.0, 2.0])) == 3.0


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr("bench.windows.SIDE", 4)


def test_a_frame_is_judged_in_its_windows(small_windows):
    work = GpuNetwork(EDSRConfig(blocks=1, features=8), 40, 45, "cpu", torch.float32)
    run = work.cases["channels_last"].run(work)
    assert len(work.windows) == 3
    work.check(run)
    for row, column in ((0, 0), (-1, -1), (40, 45)):
        wrong = run().clone()
        wrong[row, column, 1] ^= 128
        with pytest.raises(AssertionError, match="wrong result"):
            work.check(lambda wrong=wrong: wrong)


def test_a_wrong_result_says_where():
    work = SingleOp("wgrad", 16, 3, 5, "cpu", torch.float32, images=2)
    weight, bias = (part.clone() for part in work.cases["cudnn"].run(work)())
    work.check(lambda: (weight, bias))
    bias[3], bias[7] = bias[3] + 1, math.nan
    words = r"off by nan, .*; in part 1; 2 of 16 elements, 1 not finite, the first at \[3\]: (\S+) for (\S+)$"
    with pytest.raises(AssertionError, match=words) as caught:
        work.check(lambda: (weight, bias))
    found, expected = map(float, re.search(words, str(caught.value)).groups())  # pyright: ignore[reportOptionalMemberAccess]
    assert abs(found - expected - 1) < 0.02


def test_what_a_recorded_graph_reads_is_kept(monkeypatch):
    """A graph reads memory, whoever has it by then: the operands were freed, and their memory was given to others."""

    class Graph:
        def __init__(self, compute):
            self.result = compute()

        def replay(self):
            return self.result

    monkeypatch.setattr(workloads, "CapturedGraph", Graph)
    operand = torch.ones(3)
    alive = weakref.ref(operand)
    again = workloads.recorded(lambda operand=operand: operand + 1)
    del operand
    gc.collect()
    assert alive() is not None and again().tolist() == [2, 2, 2]
    del again
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_tail_is_judged_in_its_windows(small_windows, scale):
    work = SingleOp("tail", 16, 26, 31, "cpu", torch.float32, scale=scale, result=None)
    run = work.cases["collapsed"].run(work)
    assert len(work.target) == 3 and work.target[0].shape == (1, 3, 4 * scale, 4 * scale)
    work.check(run)
    for row, column in ((0, 0), (-1, -1), (13 * scale, 15 * scale)):
        wrong = run().clone()
        wrong[0, 1, row, column] += 0.01
        with pytest.raises(AssertionError, match="wrong result"):
            work.check(lambda wrong=wrong: wrong)
    wrong = run().clone()
    wrong[0, 2, 7 * scale, -1] = math.nan  # in no window
    with pytest.raises(AssertionError, match="off by nan"):
        work.check(lambda: wrong)
    whole = replace(work, result=torch.uint8)
    whole.check(whole.cases["cudnn"].run(whole))
    with pytest.raises(AssertionError, match="the result is"):
        work.check(lambda: run()[:, :, 1:])


def test_a_wrong_second_result_is_found():
    work = SingleOp("wgrad", 16, 3, 5, "cpu", torch.float32, images=2)
    weight, bias = work.cases["cudnn"].run(work)()
    for wrong in (torch.full_like(bias, math.nan), bias + 1):
        with pytest.raises(AssertionError, match="wrong result"):
            work.check(lambda wrong=wrong: (weight, wrong))
    with pytest.raises(AssertionError, match="1 tensors, not 2"):
        work.check(lambda: (weight,))


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that is computed inside."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, operands=(), options=None):
        result = function(*operands, **(options or {}))
        self.bytes = max([self.bytes, *(x.nbytes for x in tree_leaves(result) if isinstance(x, torch.Tensor))])
        return result


@pytest.mark.parametrize("work", frames() + operations(), ids=str)
def test_no_reference_needs_a_large_tensor(work):
    work = replace(work, device="meta")
    with Largest() as found:
        _ = work.target
    assert 1e6 < found.bytes < 20e9


def test_the_reference_of_the_large_network_takes_a_third_of_what_it_did():
    work = next(work for work in frames() if str(work) == "edsr-x2-1920x1080")
    radius, sides = work.config.receptive_radius, []
    for rows, columns in work.windows:
        sides.append((rows.stop - rows.start) * (columns.stop - columns.start))
    before = 2 * (192 + radius) ** 2 + (192 + 2 * radius) ** 2
    assert len(sides) == 3 and 3 * sum(sides) <= before


TINY = [
    CpuNetwork(EDSRConfig(blocks=1, features=8), 8, 9),
    GpuNetwork(EDSRConfig(blocks=1, features=16), 8, 8, "cpu", torch.float32),
    GpuNetwork(EDSRConfig(blocks=1, features=16, scale=4), 5, 7, "cpu", torch.float16),
    *(op for op in operations(3, 7, (2, 3, 5), device="cpu", dtype=torch.float16) if op.features == 64),
    SingleOp("tail", 16, 3, 5, "cpu", torch.float32, scale=3),
]


def without_winograd(make_net):
    """ncnn's networks, computed directly: on random networks of few features its Winograd convolutions err up to six
    times as much as PyTorch's (1.3 times on 16 blocks of 64 features), which is not a fault of what we write for it."""

    def make():
        net = make_net()
        net.opt.use_winograd_convolution = False
        return net

    return make


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("work", TINY, ids=str)
def test_every_case_is_right(monkeypatch, work):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # compiling takes its time
    if importlib.util.find_spec("ncnn") is not None:
        monkeypatch.setattr("ncnn.Net", without_winograd(importlib.import_module("ncnn").Net))
    right = []
    for name, case in work.cases.items():
        try:
            run = case.run(work)
        except Unavailable as error:
            assert str(error)
            continue
        work.check(run, poison=case.ours)
        right.append(name)
    assert {work.base, "compile"} <= set(right)
    if not isinstance(work, GpuNetwork) or work.dtype == torch.float32:  # few CPUs have a network in fp16
        assert any(work.cases[name].ours for name in right)


def test_memory_is_poisoned_while_ours_is_checked():
    work = SingleOp("relu", 16, 3, 5, "cpu", torch.float32)
    with pytest.raises(AssertionError, match="off by nan"):
        work.check(lambda: torch.empty(work.target[0].shape, memory_format=torch.channels_last), poison=True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_work_is_told_in_floating_point_operations():
    baseline = frames()[0]
    # Multiply-adds of one LR pixel, as in docs/architecture.md.
    assert baseline.gflop(collapsed=False) == pytest.approx(2 * (1_218_240 + 154_368) * 1080 * 1920 / 1e9)
    assert baseline.gflop(collapsed=True) == pytest.approx(2 * (1_218_240 + 19_200) * 1080 * 1920 / 1e9)
    relu = operations()[0]
    assert relu.gflop(False) == pytest.approx(2 * 9 * 64 * 64 * 1080 * 1920 / 1e9)


# --- other engines


class OnnxRuntime(SimpleNamespace):
    """A package with these providers, in which sessions fail or begin on the CPU instead."""

    def __init__(self, *providers: str, started: bool):
        super().__init__(offered=[])
        self.get_available_providers = lambda: [*providers, "CPUExecutionProvider"]
        self._started = started

    def InferenceSession(self, model, providers):
        self.offered.append(providers[0])
        if self._started:
            return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
        raise RuntimeError("unknown option\nand a long story")


@pytest.mark.parametrize(
    ("package", "reason", "tries"),
    [
        (None, "onnxruntime is not installed", 0),
        (OnnxRuntime(started=True), "onnxruntime has no CUDAExecutionProvider", 0),
        (OnnxRuntime("CUDAExecutionProvider", started=True), "CUDAExecutionProvider does not start here", 2),
        (OnnxRuntime("CUDAExecutionProvider", started=False), "RuntimeError: unknown option", 2),
    ],
)
def test_a_peer_that_cannot_be_built_says_why_in_one_line(monkeypatch, package, reason, tries):
    monkeypatch.setitem(sys.modules, "onnxruntime", package)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    work = SimpleNamespace(device="cuda", onnx=b"", config=EDSRConfig(), height=3, width=5)
    with pytest.raises(Unavailable) as found:
        peers.onnxruntime(work)
    assert str(found.value) == reason
    if package is not None:
        assert ["prefer_nhwc" in options for _, options in package.offered] == [True, False][:tries]
        assert all(options["user_compute_stream"] == "7" for _, options in package.offered)


def test_tensorrt_that_fails_is_left_out(monkeypatch):
    """Whatever it raises, and by whichever of two ways."""

    def fails(*operands, **options):
        raise ValueError("no such operator\nlong story")

    trt = SimpleNamespace(Input=lambda *operands, **options: None, compile=fails)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", trt)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    work = SimpleNamespace(device="cuda", height=3, width=5, dtype=torch.float16, plain=lambda: None)
    with pytest.raises(Unavailable) as found:
        peers.tensorrt(work)
    assert str(found.value) == "ValueError: no such operator, and onnxruntime is not installed"


def test_a_gpu_lost_in_building_is_no_missing_peer(monkeypatch):
    def lost():
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)

    def build(work):
        raise ValueError("something")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        peers.built(SimpleNamespace(device="cuda"), build)

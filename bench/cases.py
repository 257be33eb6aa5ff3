"""What is compared: workloads, and the ways to run one network on them, shared by pytest and compare.py.

Every case gets the same network, picture and number of threads. Peers get the plain network, as their
users would give it to them.
"""

import copy
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from types import ModuleType

import torch
from torch import Tensor

from bench.machine import synchronize
from edsr import EDSR, PRESETS, EDSRConfig, Upscaler
from edsr.fold import FoldedEDSR
from edsr.stream import Stream, plan

Run = Callable[[], Tensor]
SLACK = 2  # a case may err this many times as much against fp64 as eager PyTorch in the same precision


class Unavailable(Exception):
    """A case that cannot run here, and why."""


@cache
def network(scale: int) -> EDSR:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EDSR(replace(PRESETS["edsr-baseline"], scale=scale)).eval().requires_grad_(False)


@cache
def upscaler(scale: int, device: str) -> Upscaler:
    return Upscaler(network(scale), device)


def gflop_per_pixel(kind: EDSRConfig, collapsed: bool) -> float:
    """10⁹ operations for each LR pixel, all convolutions counted as direct ones, 2 for a multiply-add.

    collapsed: upsampler and tail as the one 5x5 convolution of `edsr.fold`.
    """
    c, s = kind.features, kind.scale
    body = 9 * 3 * c + (2 * kind.blocks + 1) * 9 * c * c
    pixels, upsampler = 1, 0
    for r in kind.shuffles:
        upsampler += pixels * 9 * c * r * r * c
        pixels *= r * r
    ends = 25 * c * 3 * s * s if collapsed else upsampler + pixels * 9 * c * 3
    return 2 * (body + ends) / 1e9


@dataclass(frozen=True)
class Workload:
    """`edsr-baseline`, random weights, random picture, from fixed seeds; fp32 on the CPU, fp16 on CUDA."""

    scale: int
    height: int
    width: int
    device: str = "cpu"

    def __str__(self) -> str:
        return f"x{self.scale}-{self.width}x{self.height}"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.device == "cuda" else torch.float32

    @property
    def model(self) -> EDSR:
        return network(self.scale)

    @cached_property
    def picture(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.rand(1, 3, self.height, self.width, generator=generator).to(self.device)

    def plain(self, memory_format: torch.memory_format = torch.contiguous_format) -> EDSR:
        """A copy of the network in the workload's precision."""
        model = copy.deepcopy(self.model)
        # torch's types leave memory_format out.
        return model.to(self.device, self.dtype, memory_format=memory_format)  # pyright: ignore[reportCallIssue]

    @cached_property
    def upscaler(self) -> Upscaler:
        return upscaler(self.scale, self.device)

    @cached_property
    def truth(self) -> Tensor:
        """The result in fp64, [1, 3, s·H, s·W]."""
        with torch.inference_mode():
            return self.plain().double()(self.picture)

    @cached_property
    def yardstick(self) -> float:
        """The largest error of eager PyTorch in the workload's precision."""
        with torch.inference_mode():
            return self.distance(self.plain()(self.picture))

    def distance(self, y: Tensor) -> float:
        """The largest difference from the fp64 result; values are RGB in 0..1."""
        if y.shape != self.truth.shape:
            raise AssertionError(f"the result is {list(y.shape)}, not {list(self.truth.shape)}")
        return (y.to(self.truth) - self.truth).abs().max().item()

    def check(self, run: Run) -> float:
        """The largest error of a case. Raises AssertionError if it is more than rounding, NaN included."""
        error, limit = self.distance(run()), SLACK * self.yardstick
        if not error <= limit:
            raise AssertionError(f"wrong result: off by {error:.1e}, at most {limit:.1e} is rounding")
        return error

    @cached_property
    def onnx(self) -> bytes:
        """The plain network as an ONNX file for pictures of this size. Needs `onnx` and `onnxscript`."""
        optional("onnx")
        optional("onnxscript")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of what other packages lack
        program = torch.onnx.export(self.plain(), (self.picture,), dynamo=True, verbose=False)
        assert program is not None
        return program.model_proto.SerializeToString()


def workloads(device: str) -> list[Workload]:
    return [Workload(2, 256, 256, device), Workload(4, 128, 128, device)]


def optional(name: str) -> ModuleType:
    """A module that need not be installed. Raises Unavailable if it is not."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Unavailable(f"{name.split('.')[0]} is not installed") from None


# --- the ways to run it


def bands(work: Workload) -> Run:
    model = work.upscaler.model
    rows, columns = plan(work.width, work.upscaler.tile, model.config.radius)
    return lambda: in_bands(model, work.picture, rows, columns)


def in_bands(model: FoldedEDSR, x: Tensor, rows: int, columns: int) -> Tensor:
    """The picture through a Stream, `rows` at a time and no more than `columns` side by side."""
    height, stream = x.shape[2], Stream(model, x.shape[3], columns)
    return torch.cat([stream(x[:, :, i : i + rows], i + rows >= height) for i in range(0, height, rows)], 2)


def whole(work: Workload) -> Run:
    model = work.upscaler.model
    return lambda: model(work.picture)


def eager(work: Workload) -> Run:
    model = work.plain()
    return lambda: model(work.picture)


def channels_last(work: Workload) -> Run:
    model = work.plain(torch.channels_last)
    x = work.picture.contiguous(memory_format=torch.channels_last)
    return lambda: model(x)


def compiled(work: Workload) -> Run:
    from torch._dynamo.exc import BackendCompilerFailed  # large, so only where it is used

    model = work.plain(torch.channels_last)
    x = work.picture.contiguous(memory_format=torch.channels_last)
    run = torch.compile(model, options={"freezing": True})
    try:
        with torch.inference_mode():
            run(x)
    except BackendCompilerFailed as error:  # as a rule, no C++ compiler
        raise Unavailable(f"torch.compile: {str(error).strip().splitlines()[0]}") from None
    return lambda: run(x)


def onnx_runtime(work: Workload) -> Run:
    ort = optional("onnxruntime")
    if work.device != "cpu":
        raise Unavailable("compared on the CPU only")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(work.onnx, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: work.picture.numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])


def openvino(work: Workload) -> Run:
    ov = optional("openvino")
    if work.device != "cpu":
        raise Unavailable("compared on the CPU only")
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # bf16 otherwise, where the CPU has it
    }
    core = ov.Core()
    network = core.compile_model(core.read_model(work.onnx), "CPU", settings)
    x = work.picture.numpy()
    return lambda: torch.from_numpy(network([x], share_inputs=True, share_outputs=True)[0])


@dataclass(frozen=True)
class Case:
    """build: makes everything ready for a workload and gives what is timed; raises Unavailable."""

    title: str
    build: Callable[[Workload], Run]
    package: str = "torch"
    collapsed: bool = False

    def run(self, work: Workload) -> Run:
        """What is timed: one picture, done when it returns."""
        if work.device == "cuda":
            torch.backends.cudnn.benchmark = True  # for peers and us alike
        run = self.build(work)

        @torch.inference_mode()
        def finished() -> Tensor:
            y = run()
            synchronize(work.device)
            return y

        return finished

    def gflop(self, work: Workload) -> float:
        """10⁹ operations for one picture, see `gflop_per_pixel`."""
        return gflop_per_pixel(work.model.config, self.collapsed) * work.height * work.width


CASES = {
    "bands": Case("ours, in bands", bands, collapsed=True),
    "whole": Case("ours, whole picture", whole, collapsed=True),
    "eager": Case("PyTorch, NCHW", eager),
    "channels_last": Case("PyTorch, channels_last", channels_last),
    "compile": Case("PyTorch, compiled", compiled),
    "onnxruntime": Case("ONNX Runtime", onnx_runtime, "onnxruntime"),
    "openvino": Case("OpenVINO", openvino, "openvino"),
}
BASE = "eager"  # what ratios are taken to

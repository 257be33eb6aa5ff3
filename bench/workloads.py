"""What is compared: pieces of work, and the ways to do each, shared by pytest, compare.py and tune.py.

Here are the whole network on a CPU and what all work has in common; `bench.frames` has the whole network on a GPU,
`bench.ops` its single operations. Every case gets the same operands and number of threads. Peers get the plain
network, as their users would give it to them.
"""

import copy
import importlib
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.windows import largest, largest_difference
from edsr.export import build_ncnn
from edsr.inference.cuda import CapturedGraph
from edsr.inference.streaming import Stream
from edsr.inference.upscaler import Upscaler
from edsr.kernels import reference
from edsr.models.edsr import EDSR, PRESETS, EDSRConfig
from edsr.models.network import Network
from edsr.resources import available_memory

Run = Callable[[], Any]  # gives a tensor or, with more than one result, a tuple
SPARE = 4 << 30  # bytes of memory that are left to others
SLACK = 2  # a case may err this many times as much against fp64 as eager PyTorch in the same precision


class Unavailable(Exception):
    """A case that cannot run here, and why."""


@cache
def network(config: EDSRConfig) -> EDSR:
    """A network with random weights from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EDSR(config).eval().requires_grad_(False)


@cache
def upscaler(config: EDSRConfig, device: str) -> Upscaler:
    return Upscaler(network(config), device)


def gflop_per_pixel(kind: EDSRConfig, collapsed: bool) -> float:
    """10⁹ operations for each LR pixel, all convolutions counted as direct ones, 2 for a multiply-add.

    collapsed: upsampler and tail as the one 5x5 convolution of `edsr.models.folding`.
    """
    c, s = kind.features, kind.scale
    body = 9 * 3 * c + (2 * kind.blocks + 1) * 9 * c * c
    return 2 * body / 1e9 + gflop_of_end(c, s, collapsed)


def gflop_of_end(c: int, scale: int, collapsed: bool) -> float:
    """The same of upsampler and tail alone."""
    pixels, upsampler = 1, 0
    for r in EDSRConfig(scale=scale).shuffle_factors:
        upsampler += pixels * 9 * c * r * r * c
        pixels *= r * r
    return 2 * (25 * c * 3 * scale * scale if collapsed else upsampler + pixels * 9 * c * 3) / 1e9


class Workload:
    """Something to be done in several ways, and how to tell whether it was done right."""

    height: int  # of the image
    width: int
    device: str
    dtype: torch.dtype
    base: str  # the case that ratios are taken to
    rounding = 0.0  # what a right result may be off by however it is computed
    small = False  # done on a GPU in less time than the host takes to launch it

    @property
    def cases(self) -> "dict[str, Case]":
        raise NotImplementedError

    def description(self) -> dict:
        """What a record says about it."""
        raise NotImplementedError

    def gflop(self, collapsed: bool) -> float:
        """10⁹ operations of it all, see `gflop_per_pixel`."""
        raise NotImplementedError

    @cached_property
    def reference_error(self) -> float:
        """The largest error of eager PyTorch in the work's precision."""
        raise NotImplementedError

    def error_of(self, y: Tensor) -> float:
        """The largest difference from the fp64 result. Raises AssertionError where the shape is another."""
        raise NotImplementedError

    def describe_faults(self, y: Any, limit: float) -> str:
        """Which elements of a result are off by more than `limit`, in words that go on a sentence; "" if unknown."""
        return ""

    def check(self, run: Run, poison: bool = False) -> float:
        """The largest error of a case. Raises AssertionError if it is more than rounding, NaN included, and says where.

        poison: memory that PyTorch hands out holds NaN at first, so that what a kernel does not write shows.
        """
        limit = SLACK * self.reference_error + self.rounding
        torch.use_deterministic_algorithms(poison, warn_only=True)  # this is what fills it
        try:
            y = run()
            error = self.error_of(y)
        finally:
            torch.use_deterministic_algorithms(False)
        if not error <= limit:
            where = self.describe_faults(y, limit)
            raise AssertionError(f"wrong result: off by {error:.1e}, at most {limit:.1e} is rounding{where}")
        return error


@dataclass(frozen=True)
class CpuNetwork(Workload):
    """A network with random weights on a random float image, both from fixed seeds."""

    config: EDSRConfig
    height: int
    width: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    base = "eager"

    @classmethod
    def baseline(cls, scale: int, height: int, width: int, device: str = "cpu"):
        """`edsr-baseline`; fp32 on the CPU, fp16 on CUDA."""
        dtype = torch.float16 if device == "cuda" else torch.float32
        return cls(replace(PRESETS["edsr-baseline"], scale=scale), height, width, device, dtype)

    def __str__(self) -> str:
        return f"x{self.config.scale}-{self.width}x{self.height}"

    @property
    def cases(self) -> "dict[str, Case]":
        return CASES

    def description(self) -> dict:
        kind = self.config
        entry = {"scale": kind.scale, "blocks": kind.blocks, "features": kind.features}
        precision = str(self.dtype).removeprefix("torch.")
        return entry | {"width": self.width, "height": self.height, "precision": precision}

    def gflop(self, collapsed: bool) -> float:
        return gflop_per_pixel(self.config, collapsed) * self.height * self.width

    @property
    def largest_map(self) -> int:
        """Bytes of the plain network's largest feature map."""
        kind = self.config
        return kind.scale**2 * self.height * self.width * kind.features * self.dtype.itemsize

    @property
    def model(self) -> EDSR:
        return network(self.config)

    @cached_property
    def image(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.rand(1, 3, self.height, self.width, generator=generator).to(self.device)

    def plain(self, memory_format: torch.memory_format = torch.contiguous_format, dtype=None) -> EDSR:
        """A copy of the network, in the workload's precision unless said."""
        model = copy.deepcopy(self.model)
        # torch's types leave memory_format out.
        return model.to(self.device, dtype or self.dtype, memory_format=memory_format)  # pyright: ignore[reportCallIssue]

    @property
    def upscaler(self) -> Upscaler:
        return upscaler(self.config, self.device)

    @cached_property
    def target(self) -> Tensor:
        """The result in fp64, [1, 3, s·H, s·W]; in bands, because the maps of a large image would fill the memory."""
        with torch.inference_mode():
            return in_bands(self.plain(dtype=torch.float64), self.image, 64, self.width)

    @cached_property
    def reference_error(self) -> float:
        """Of both memory formats: oneDNN sums in another order in each, and which errs less depends on the CPU."""
        with torch.inference_mode():
            layouts = torch.contiguous_format, torch.channels_last
            return largest(self.error_of(self.plain(layout)(self.image)) for layout in layouts)

    def error_of(self, y: Tensor) -> float:
        return largest_difference(y, self.target)

    @cached_property
    def onnx(self) -> bytes:
        """The plain network as an ONNX file for float images of this size. Needs `onnx` and `onnxscript`."""
        optional("onnx")
        optional("onnxscript")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of what other packages lack
        image = torch.zeros(1, 3, self.height, self.width, device=self.device)
        program = torch.onnx.export(self.plain(), (image,), dynamo=True, verbose=False)
        assert program is not None
        return program.model_proto.SerializeToString()


def optional(name: str) -> ModuleType:
    """A module that need not be installed. Raises Unavailable if it is not."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Unavailable(f"{name.split('.')[0]} is not installed") from None


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """torch.compile, which compiles when it is first called. Raises Unavailable then if it cannot.

    What was compiled before is forgotten: torch gives up on a function that it has compiled too many times.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # large, so only where it is used

    torch.compiler.reset()
    fast = torch.compile(function, **options)

    def call(*operands: Any) -> Any:
        try:
            return fast(*operands)
        except BackendCompilerFailed as error:  # as a rule, no C++ compiler
            raise Unavailable(f"torch.compile: {str(error).strip().splitlines()[0]}") from None

    return call


class Recorded(NamedTuple):
    """A piece of work as a CUDA graph. It reads operands where they lay when it was recorded, so these are kept."""

    graph: CapturedGraph
    run: Run

    def __call__(self) -> Any:
        return self.graph.replay()


def recorded(run: Run) -> Run:
    """The same as one CUDA graph, as it runs in training, so that the time is the GPU's."""
    run()  # compiles and chooses; a recording could not
    return Recorded(CapturedGraph(run), run)


# --- the ways to run it


def bands(work: CpuNetwork) -> Run:
    model, ops = work.upscaler.model, work.upscaler.ops
    rows, columns = work.upscaler.plan.band_shape(work.width)
    return lambda: in_bands(model, work.image, rows, columns, ops)


def in_bands(model: Network, x: Tensor, rows: int, columns: int, ops: Any = reference) -> Tensor:
    """The image through a Stream, `rows` at a time and no more than `columns` side by side."""
    height, stream = x.shape[2], Stream(model, x.shape[3], columns, ops)
    return torch.cat([stream(x[:, :, i : i + rows], i + rows >= height) for i in range(0, height, rows)], 2)


def whole(work: CpuNetwork) -> Run:
    model, ops = work.upscaler.model, work.upscaler.ops
    return lambda: model(work.image, ops)


def folded(work: CpuNetwork) -> Run:
    model = work.upscaler.model
    return lambda: model(work.image)


def eager(work: CpuNetwork) -> Run:
    model = work.plain()
    return lambda: model(work.image)


def channels_last(work: CpuNetwork) -> Run:
    model = work.plain(torch.channels_last)
    x = work.image.contiguous(memory_format=torch.channels_last)
    return lambda: model(x)


def compiled_frozen(work: CpuNetwork) -> Run:
    model = work.plain(torch.channels_last)
    x = work.image.contiguous(memory_format=torch.channels_last)
    run = compiled(model, options={"freezing": True})
    with torch.inference_mode():
        run(x)
    return lambda: run(x)


def onnx_runtime(work: CpuNetwork) -> Run:
    ort = optional("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(work.onnx, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: work.image.numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])


def openvino(work: CpuNetwork) -> Run:
    ov = optional("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # bf16 otherwise, where the CPU has it
    }
    core = ov.Core()
    network = core.compile_model(core.read_model(work.onnx), "CPU", settings)
    x = work.image.numpy()
    return lambda: torch.from_numpy(network([x], share_inputs=True, share_outputs=True)[0])


def ncnn(work: CpuNetwork) -> Run:
    package = optional("ncnn")
    net = package.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    text, weights = build_ncnn(work.plain())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "weights")
        file.write_bytes(weights)
        net.load_param_mem(text)
        net.load_model(str(file))

    def run() -> Tensor:
        extractor = net.create_extractor()
        x = work.image[0].numpy()  # a Mat does not keep it
        extractor.input("data", package.Mat(x))
        _, y = extractor.extract("output")
        return torch.from_numpy(y.numpy())[None]

    return run


@dataclass(frozen=True)
class Case:
    """build: makes everything ready for a piece of work and gives what is timed; raises Unavailable.

    slow: it takes minutes to make ready. maps: how many of the network's largest map it holds at once on a CPU;
    one that holds more than most keeps them, so the others' must fit beside them.
    """

    title: str
    build: Callable[[Any], Run]
    package: str = "torch"
    collapsed: bool = False
    slow: bool = False
    maps: float = 3

    @property
    def ours(self) -> bool:
        return self.title.startswith("ours")

    def run(self, work: Workload) -> Run:
        """What is timed; on a GPU the result may still be on its way when it returns. Raises Unavailable."""
        if isinstance(work, CpuNetwork) and work.device == "cpu" and not self.collapsed:
            maps = self.maps + (Case.maps if self.maps > Case.maps else 0)
            need = (maps * work.largest_map + SPARE) / 2**30
            if need > available_memory() / 2**30:
                raise Unavailable(f"needs about {need:.0f} GiB of free memory")
        if work.device == "cuda":
            torch.backends.cudnn.benchmark = True  # for peers and us alike
        run = torch.inference_mode()(self.build(work))
        return recorded(run) if work.small and work.device == "cuda" else run


CASES = {
    "bands": Case("ours, in bands", bands, collapsed=True),
    "whole": Case("ours, whole image", whole, collapsed=True),
    "folded": Case("ours, on PyTorch", folded, collapsed=True),
    "eager": Case("PyTorch, NCHW", eager),
    "channels_last": Case("PyTorch, channels_last", channels_last),
    "compile": Case("PyTorch, compiled", compiled_frozen, maps=5),
    "onnxruntime": Case("ONNX Runtime", onnx_runtime, "onnxruntime", maps=7),
    "openvino": Case("OpenVINO", openvino, "openvino"),
    "ncnn": Case("ncnn", ncnn, "ncnn", maps=12),
}


def workloads() -> list[CpuNetwork]:
    """What is compared on a CPU."""
    return [CpuNetwork.baseline(scale, side, side) for side in (256, 1024) for scale in (2, 4)]

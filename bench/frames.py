"""The whole network on a GPU: an image in its memory, uint8 [H, W, 3], to one there, uint8 [s·H, s·W, 3].

So every case converts, computes, clamps and rounds, as users of a network have to. The peers do so with the same
operations of PyTorch; torch.compile gets all of it to fuse.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from bench import peers
from bench.windows import Pair, cut, in_windows, largest, pairs, side_for
from bench.workloads import Case, CpuNetwork, Run, Unavailable, compiled
from edsr.devices import PRECISIONS
from edsr.errors import BackendError
from edsr.inference.upscaler import Upscaler
from edsr.kernels import reference
from edsr.kernels.interface import OutputSpec
from edsr.models.edsr import EDSR, PRESETS

SIZES = {"720p": (720, 1280), "1080p": (1080, 1920), "4K": (2160, 3840), "64x64": (64, 64)}  # rows, columns


@dataclass(frozen=True)
class GpuNetwork(CpuNetwork):
    """A network with random weights on a random image, checked in windows (`bench.windows`)."""

    base = "channels_last"
    rounding = 0.5001 / 255  # a result is rounded to whole levels

    @property
    def cases(self) -> dict[str, Case]:
        return CASES

    def __str__(self) -> str:
        return f"{self.model_name}-{super().__str__()}"

    @property
    def model_name(self) -> str:
        kind = self.config
        names = [name for name, preset in PRESETS.items() if replace(preset, scale=kind.scale) == kind]
        return names[0] if names else f"{kind.blocks}x{kind.features}"

    def description(self) -> dict:
        return {"model": self.model_name} | super().description()

    @cached_property
    def image(self) -> Tensor:
        """uint8 [H, W, 3]. Features of a large image do not fit in any cache, so one image is as good as many."""
        generator = torch.Generator().manual_seed(1)
        size = (self.height, self.width, 3)
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator).to(self.device)

    @property
    def windows(self) -> list[Pair]:
        return pairs(self.height, self.width, self.config.receptive_radius, side_for(self.config.features))

    def in_windows(self, model: EDSR) -> list[Tensor]:
        """What `model` makes of each window, not rounded; the part that counts, [1, 3, n, m]."""
        x = self.image.permute(2, 0, 1)[None]
        # No autotuning for shapes that are met but once.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False):
            return in_windows(model, x, self.windows, self.config.scale)

    @cached_property
    def target(self) -> list[Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The result in fp64, window by window."""
        return self.in_windows(self.plain(dtype=torch.float64))

    @cached_property
    def reference_error(self) -> float:
        parts = zip(self.in_windows(self.plain(torch.channels_last)), self.target, strict=True)
        return largest((part.double() - target).abs().max().item() for part, target in parts)

    def error_of(self, y: Tensor) -> float:
        s, size = self.config.scale, [self.config.scale * self.height, self.config.scale * self.width, 3]
        if y.dtype != torch.uint8 or list(y.shape) != size:
            raise AssertionError(f"the result is {y.dtype} {list(y.shape)}, not torch.uint8 {size}")
        parts = zip(cut(y.permute(2, 0, 1)[None], self.windows, s), self.target, strict=True)
        return largest((part.double() / 255 - target.clamp(0, 1)).abs().max().item() for part, target in parts)


def frame(model: str, scale: int, size: str) -> GpuNetwork:
    return GpuNetwork(replace(PRESETS[model], scale=scale), *SIZES[size], device="cuda", dtype=torch.float16)


def frames() -> list[GpuNetwork]:
    """All that is compared on a GPU, what there is an aim for first."""
    aims = [
        ("edsr-baseline", 2, "1080p"),
        ("edsr-baseline", 4, "1080p"),
        ("edsr-baseline", 2, "64x64"),
        ("edsr", 2, "1080p"),
    ]
    rest = [(model, scale, size) for size in SIZES for model in PRESETS for scale in (2, 4)]
    return [frame(*of) for of in dict.fromkeys(aims + rest)]


# --- the ways to run it


def ours(work: GpuNetwork) -> Run:
    precision = next(name for name, dtype in PRECISIONS.items() if dtype == work.dtype)
    try:
        upscaler = Upscaler(work.model, work.device, precision, backend="triton")
    except BackendError as error:
        raise Unavailable(str(error)) from None
    return lambda: upscaler.frame(work.image)


def folded(work: GpuNetwork) -> Run:
    precision = next(name for name, dtype in PRECISIONS.items() if dtype == work.dtype)
    try:
        upscaler = Upscaler(work.model, work.device, precision, backend="torch")
    except BackendError as error:
        raise Unavailable(str(error)) from None
    return lambda: upscaler.frame(work.image)


def on_pixels(model: Callable[..., Tensor], memory_format: torch.memory_format) -> Callable[[Tensor], Tensor]:
    """uint8 [H, W, 3] -> the same kind, through a network of plain PyTorch."""

    def through(pixels: Tensor) -> Tensor:
        x = pixels.permute(2, 0, 1)[None].contiguous(memory_format=memory_format)
        return model(x, reference, OutputSpec(torch.uint8))[0].permute(1, 2, 0).contiguous()

    return through


def channels_last(work: GpuNetwork) -> Run:
    through = on_pixels(work.plain(torch.channels_last), torch.channels_last)
    return lambda: through(work.image)


def max_autotune(work: GpuNetwork) -> Run:
    through = on_pixels(work.plain(torch.channels_last), torch.channels_last)
    run = compiled(through, mode="max-autotune", dynamic=False)
    with torch.inference_mode():
        run(work.image)
    return lambda: run(work.image)


def nchw(work: GpuNetwork) -> Run:
    through = on_pixels(work.plain(dtype=torch.float32), torch.contiguous_format)
    return lambda: through(work.image)


def autocast(work: GpuNetwork) -> Run:
    through = on_pixels(work.plain(dtype=torch.float32), torch.contiguous_format)
    if work.dtype == torch.float32:
        raise Unavailable("there is no lower precision to cast to")

    def run() -> Tensor:
        with torch.autocast(work.device, work.dtype):
            return through(work.image)

    return run


CASES: dict[str, Case] = {
    "ours": Case("ours", ours, collapsed=True),
    "folded": Case("ours, folded, on cuDNN", folded, collapsed=True),
    "channels_last": Case("PyTorch, channels_last fp16", channels_last),
    "compile": Case("torch.compile, max-autotune", max_autotune, slow=True),
    "nchw": Case("PyTorch, NCHW fp32", nchw),
    "autocast": Case("PyTorch, NCHW fp32, autocast", autocast),
    "tensorrt": Case("TensorRT", peers.tensorrt, "tensorrt", slow=True),
    "onnxruntime": Case("ONNX Runtime, CUDA", peers.onnxruntime, "onnxruntime-gpu", slow=True),
}

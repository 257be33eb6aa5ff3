"""How every kernel is launched: through `run`, with a configuration that is data.

A configuration is a dict of whole numbers: names in capitals are the kernel's constexprs, `num_warps`,
`num_stages` and `maxnreg` are Triton's. `configs/<gpu>.json` holds those measured best on one GPU, by op
and key; a key names channels and dtype, never the height and width of an image.
"""

import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from triton import knobs

logger = logging.getLogger(__name__)

Config = dict[str, int]
FOLDER = Path(__file__).with_name("configs")
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}  # dtypes the kernels compute in


class KernelError(ValueError):
    """An operand no kernel takes; one line that names it and what is expected."""


class _Compiling(NamedTuple):
    arch: int
    collect: Callable[[str, Any], None]


_compiling: _Compiling | None = None


@contextlib.contextmanager
def compile_only(arch: int, collect: Callable[[str, Any], None]) -> Iterator[None]:
    """Inside, `run` compiles for compute capability `arch` (80, 90) and launches nothing.

    Tensors may be on the device "meta". collect: called with the name and the compiled kernel. The caller
    has made Triton's driver one that needs no GPU (see `edsr.kernels.aot`).
    """
    global _compiling
    before, _compiling = _compiling, _Compiling(arch, collect)
    try:
        yield
    finally:
        _compiling = before


def run(fn: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """fn[grid](*args, **options) on the device of its tensors, or compiles it only (see `compile_only`)."""
    if _compiling is not None:
        _compiling.collect(fn.fn.__name__, fn.warmup(*args, grid=grid, **options))
        return
    _log_compilations()
    device = next(x.device for x in args if isinstance(x, torch.Tensor))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):  # Triton launches on the current one
            fn[grid](*args, **options)
    else:
        fn[grid](*args, **options)


def compiling() -> bool:
    """Whether `run` compiles only."""
    return _compiling is not None


def interpreted() -> bool:
    """Whether Triton interprets plain kernels on the CPU (TRITON_INTERPRET=1 when it was imported)."""
    return knobs.runtime.interpret


def architecture(device: torch.device) -> int:
    """Compute capability of a CUDA device times ten, 90 for Hopper; 0 for a CPU, where kernels are interpreted."""
    if _compiling is not None:
        return _compiling.arch
    return _gpu(device).arch if device.type == "cuda" else 0


_narrowed: int | None = None


@contextlib.contextmanager
def narrowed(to: int) -> Iterator[None]:
    """Inside, launchers share work out as if the GPU had `to` multiprocessors.

    With one, a block of threads computes the whole of a small problem: only so do the rings in its shared memory turn.
    """
    global _narrowed
    before, _narrowed = _narrowed, to
    try:
        yield
    finally:
        _narrowed = before


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of the device; a Hopper's where there is none. See `narrowed`, too."""
    if _narrowed is not None:
        return _narrowed
    return _gpu(device).multiprocessors if device.type == "cuda" else 132


class _Gpu(NamedTuple):
    name: str
    arch: int
    multiprocessors: int


@cache  # asked at every launch
def _gpu(device: torch.device) -> _Gpu:
    properties = torch.cuda.get_device_properties(device)
    return _Gpu(properties.name, 10 * properties.major + properties.minor, properties.multi_processor_count)


def check(name: str, x: torch.Tensor, /, **others: torch.Tensor | None) -> None:
    """Raises KernelError where no kernel runs on x's device or computes in its dtype, or `others` lie elsewhere."""
    if x.device.type != "cuda" and _compiling is None and not interpreted():
        raise KernelError(f"{name}: the Triton kernels need a CUDA device, not {x.device} (or TRITON_INTERPRET=1)")
    if x.dtype not in NAMES:
        raise KernelError(f"{name}: the kernels compute in {', '.join(NAMES.values())}, not {x.dtype}")
    for what, other in others.items():
        if other is not None and other.device != x.device:
            raise KernelError(f"{name}: {what} is on {other.device}, the rest on {x.device}")


def channels_last(name: str, x: torch.Tensor) -> torch.Tensor:
    """x, [N, C, H, W], if its rows are dense runs of NHWC pixels; rows and images may lie apart.

    Raises KernelError otherwise: a copy made silently would cost more than the kernel saves.
    """
    _, c, _, w = x.shape
    if (c > 1 and x.stride(1) != 1) or (w > 1 and x.stride(3) != c):
        raise KernelError(f"{name}: expects a channels_last tensor, not strides {x.stride()} of shape {list(x.shape)}")
    return x


def config(op: str, key: str, default: Config, device: torch.device) -> Config:
    """The configuration measured for this op and key on this kind of GPU, else `default`."""
    if device.type != "cuda":
        return default
    gpu = _gpu(device).name
    measured = _record(gpu)["configs"].get(op, {})
    if key not in measured:
        _say_missing(gpu, op, key)
    return measured.get(key, default)


def choice(op: str, key: str, device: torch.device) -> str | None:
    """The way to do an op that was measured to be the fastest on this kind of GPU, by the name `bench.ops` has for
    it; None without a measurement."""
    if device.type != "cuda":
        return None
    return choices(_gpu(device).name).get(op, {}).get(key, {}).get("fastest")


def choices(gpu: str) -> dict[str, Any]:
    """What was measured on a kind of GPU of ways to do the same: by op, then key. See
    `edsr.kernels.triton.hopper.verification`, too."""
    return _record(gpu).get("choices", {})


@cache
def _record(gpu: str) -> dict[str, Any]:
    path = FOLDER / f"{slug(gpu)}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"configs": {}}


@cache
def _say_missing(gpu: str, op: str, key: str) -> None:
    logger.debug("%s: no measured configuration for %s %s; the default serves (bench/tune.py finds one)", gpu, op, key)


def slug(gpu: str) -> str:
    """A GPU's name as a file name: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


@cache
def _log_compilations() -> None:
    """From now on, logs every kernel that Triton compiles because it had not in its cache."""
    if knobs.compilation.listener is None:
        knobs.compilation.listener = _log_compilation


def _log_compilation(*, src, metadata, metadata_group, times, cache_hit) -> None:
    if not cache_hit:
        seconds = times.total / 1e6  # Triton keeps microseconds
        logger.info("compiled %s in %.1f s; it is kept for later runs", metadata["name"], seconds)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)

"""How every kernel is launched: through `run`, with a configuration that is data.

A configuration is a dict of whole numbers: names in capitals are the kernel's constexprs, `num_warps`,
`num_stages` and `maxnreg` are Triton's. `configs/<gpu>.json` holds those measured best on one GPU, by op
and key; a key names channels, dtype and at most a class of sizes, never the height and width of an image.
"""

import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from triton import OutOfResources, knobs

logger = logging.getLogger(__name__)

Config = dict[str, int]
T = TypeVar("T")
FOLDER = Path(__file__).with_name("configs")
DTYPE_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}  # dtypes the kernels compute in


class KernelError(ValueError):
    """An operand no kernel takes; one line that names it and what is expected."""


# --- running and compiling


class _Compiling(NamedTuple):
    arch: int
    collect: Callable[[str, Any], None]
    least: bool


_compiling: _Compiling | None = None


@contextlib.contextmanager
def compile_only(arch: int, collect: Callable[[str, Any], None], least: bool = False) -> Iterator[None]:
    """Inside, `run` compiles for compute capability `arch` and launches nothing.

    Tensors may be on the device "meta". The caller has given Triton a driver that needs no GPU (see
    `edsr.kernels.aot`).

    Args:
        arch: Compute capability times ten, of `SHARED_MEMORY` if possible.
        collect: Called with the name and the compiled kernel.
        least: Whether `run_configured` takes the smallest configuration, which serves where nothing else fits.
    """
    global _compiling
    before, _compiling = _compiling, _Compiling(arch, collect, least)
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


SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Bytes of shared memory that one block of threads may have, by architecture (CUDA programming guide)."""


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one block of threads may have; the least of all architectures where there is no
    GPU."""
    if device.type == "cuda" and _compiling is None:
        return _gpu(device).shared
    return SHARED_MEMORY.get(architecture(device), min(SHARED_MEMORY.values()))


def has_asynchronous_products(device: torch.device) -> bool:
    """Whether matrix products read both operands from shared memory while threads go on: Hopper's wgmma, tcgen05 of
    Blackwell's data center GPUs (sm_100, 103). On all others, the RTX 50 of sm_120 included, registers hold them."""
    return architecture(device) // 10 in (9, 10)


def is_desktop_blackwell(device: torch.device) -> bool:
    """Whether this is an RTX 50 or its like (sm_120, 121), for which ptxas needs other settings."""
    return architecture(device) // 10 == 12


_multiprocessor_limit: int | None = None


@contextlib.contextmanager
def limit_multiprocessors(count: int) -> Iterator[None]:
    """Inside, launchers distribute work as if the GPU had `count` multiprocessors.

    With one, a block of threads computes the whole of a small problem: only then do the rings in its shared memory
    wrap around.
    """
    global _multiprocessor_limit
    before, _multiprocessor_limit = _multiprocessor_limit, count
    try:
        yield
    finally:
        _multiprocessor_limit = before


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of the device; a Hopper's where there is none. See `limit_multiprocessors`, too."""
    if _multiprocessor_limit is not None:
        return _multiprocessor_limit
    return _gpu(device).multiprocessors if device.type == "cuda" else 132


class _Gpu(NamedTuple):
    name: str
    arch: int
    multiprocessors: int
    shared: int = min(SHARED_MEMORY.values())


@cache  # asked at every launch
def _gpu(device: torch.device) -> _Gpu:
    properties = torch.cuda.get_device_properties(device)
    arch = 10 * properties.major + properties.minor
    shared = getattr(properties, "shared_memory_per_block_optin", min(SHARED_MEMORY.values()))  # not of AMD's
    return _Gpu(properties.name, arch, properties.multi_processor_count, shared)


# --- operands

Expected = tuple[torch.Tensor | None, tuple[int, ...]]  # an operand, None where there is none, and its shape


def check_device(op: str, like: torch.Tensor, /, **others: torch.Tensor | None) -> None:
    """Raises KernelError where no kernel runs on the device of `like` or computes in its dtype, or `others` lie
    elsewhere."""
    if like.device.type != "cuda" and _compiling is None and not interpreted():
        raise KernelError(f"{op}: the Triton kernels need a CUDA device, not {like.device} (or TRITON_INTERPRET=1)")
    if like.dtype not in DTYPE_NAMES:
        raise KernelError(f"{op}: the kernels compute in {', '.join(DTYPE_NAMES.values())}, not {like.dtype}")
    for name, other in others.items():
        if other is not None and other.device != like.device:
            raise KernelError(f"{op}: {name} is on {other.device}, the rest on {like.device}")


def check_operands(
    op: str,
    like: torch.Tensor,
    *,
    maps: dict[str, Expected],
    parameters: dict[str, Expected],
    result: tuple[int, ...],
    channels: int = 16,
) -> None:
    """Raises KernelError unless a kernel can take these operands.

    All must be on the device and of the dtype of `like`, which the kernels must know. A copy made silently to mend
    a layout would cost more than the kernel saves.

    Args:
        op: Name of the op, for the message.
        like: The operand that the others must go with.
        maps: By name, [N, C, H, W], none of them empty. Rows are dense runs of NHWC pixels; rows and images may lie
            apart.
        parameters: By name, weights [.., Ci, k, k] with Ci innermost in memory, and biases; dense.
        result: Shape of what is computed; not empty.
        channels: How many are summed over; a multiple of 16.
    """
    operands = maps | parameters
    check_device(op, like, **{name: tensor for name, (tensor, _) in operands.items()})
    if channels % 16:
        raise KernelError(f"{op}: sums over a multiple of 16 channels, not {channels}")
    if min(result) < 1:
        raise KernelError(f"{op}: nothing comes of {list(like.shape)}, the result would be {list(result)}")
    for name, (tensor, shape) in operands.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape or tensor.dtype != like.dtype:
            raise KernelError(
                f"{op}: {name} is {tensor.dtype} {list(tensor.shape)}, which should be {like.dtype} {list(shape)}"
            )
        if name in maps and min(shape) < 1:
            raise KernelError(f"{op}: {name} is empty, {list(shape)}")
        if not (_has_dense_rows(tensor) if name in maps else _is_dense(tensor)):
            raise KernelError(f"{op}: {name} is not channels_last: strides {tensor.stride()}, shape {list(shape)}")


def row_strides(x: torch.Tensor | None) -> tuple[int, int]:
    """Strides of a map's images and rows, in elements; zeros where there is no map."""
    return (0, 0) if x is None else (x.stride(0), x.stride(2))


def _has_dense_rows(x: torch.Tensor) -> bool:
    _, c, _, w = x.shape
    return (c == 1 or x.stride(1) == 1) and (w == 1 or x.stride(3) == c)


def _is_dense(parameter: torch.Tensor) -> bool:
    return (parameter.movedim(-3, -1) if parameter.ndim > 3 else parameter).is_contiguous()


# --- configurations

_override: ContextVar[Callable[[str, str, Config], Config] | None] = ContextVar("override", default=None)


@contextlib.contextmanager
def override_configs(choose: Callable[[str, str, Config], Config]) -> Iterator[set[tuple[str, str]]]:
    """Inside, in this thread, launchers use other configurations than those measured.

    Args:
        choose: Gets op, key and default configuration, and returns the configuration to use.

    Yields:
        The set of ops and keys that launchers have asked for so far.
    """
    requested: set[tuple[str, str]] = set()

    def choose_and_note(op: str, key: str, default: Config) -> Config:
        requested.add((op, key))
        return choose(op, key, default)

    token = _override.set(choose_and_note)
    try:
        yield requested
    finally:
        _override.reset(token)


def config(op: str, key: str, default: Config, device: torch.device) -> Config:
    """The configuration measured for this op and key on this kind of GPU, else `default`; see `override_configs`."""
    choose = _override.get()
    if choose is not None:
        return choose(op, key, default)
    if device.type != "cuda":
        return default
    gpu = _gpu(device).name
    measured = _load_record(gpu)["configs"].get(op, {})
    if key not in measured:
        _log_missing(gpu, op, key)
    return measured.get(key, default)


def fitting(configs: Iterable[Config], needs: Callable[[Config], int], device: torch.device) -> list[Config]:
    """Of these configurations the first that fits into the shared memory of a block, and those after it that need ever
    less. needs: the bytes that the operands of a configuration take."""
    found, limit = [], shared_memory(device)
    for config in configs:
        if needs(config) <= limit:
            found.append(config)
            limit = needs(config) - 1
    return found


_too_large: dict[tuple[str, str, torch.device], int] = {}
"""How many of the configurations of an op and key have proved too large for a device."""


def run_configured(
    op: str, key: str, defaults: Sequence[Config], device: torch.device, start: Callable[[Config], T]
) -> T:
    """start(config), with the configuration measured for this op and key on this kind of GPU, else the first default.

    Where Triton finds at launch that a block needs more than the GPU has, the next default serves, from then on and
    with one warning. A configuration that `override_configs` has chosen is not replaced.

    Args:
        op: Name of the op.
        key: What else configurations depend on.
        defaults: The best guess first, then smaller ones.
        device: Of the operands.
        start: Launches the kernel.

    Raises:
        triton.OutOfResources: None of them fits.
    """
    if _compiling is not None and _compiling.least:
        return start(defaults[-1])
    configs, place = [config(op, key, defaults[0], device), *defaults[1:]], (op, key, device)
    while True:
        tried = 0 if _override.get() else _too_large.get(place, 0)
        try:
            return start(configs[tried])
        except OutOfResources as error:
            if _override.get() or tried + 1 == len(configs):
                raise
            _too_large[place] = tried + 1
            logger.warning(
                "%s %s: a block needs %s of %s, where this GPU has %s; smaller blocks serve",
                *(op, key, error.required, error.name, error.limit),
            )


def choice(op: str, key: str, device: torch.device) -> str | None:
    """The implementation of an op that was measured to be the fastest on this kind of GPU, by its name in `bench.ops`;
    None without a measurement."""
    if device.type != "cuda":
        return None
    return choices(_gpu(device).name).get(op, {}).get(key, {}).get("fastest")


def choices(gpu: str) -> dict[str, Any]:
    """Measurements of several implementations of the same, on a kind of GPU: by op, then key. Also what
    `edsr.kernels.triton.hopper.verification` found."""
    return _load_record(gpu).get("choices", {})


@cache
def _load_record(gpu: str) -> dict[str, Any]:
    path = FOLDER / f"{slug(gpu)}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"configs": {}}


@cache
def _log_missing(gpu: str, op: str, key: str) -> None:
    logger.debug("%s: no measured configuration for %s %s; the default serves (bench/tune.py finds one)", gpu, op, key)


def slug(gpu: str) -> str:
    """A GPU's name as a file name: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


@cache
def _log_compilations() -> None:
    """From now on, logs every kernel that Triton compiles because it is not in its cache."""
    if knobs.compilation.listener is None:
        knobs.compilation.listener = _log_compilation


def _log_compilation(*, src, metadata, metadata_group, times, cache_hit) -> None:
    if not cache_hit:
        seconds = times.total / 1e6  # Triton keeps microseconds
        logger.info("compiled %s in %.1f s; it is kept for later runs", metadata["name"], seconds)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)

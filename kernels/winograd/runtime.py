"""The compiled kernels at run time: whether this machine can have them, and how they are called.

llvmlite is imported only when it is asked for: without it, PyTorch computes.
"""

import ctypes
import logging
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .threads import run_parallel

if TYPE_CHECKING:
    from .jit import Kernels

logger = logging.getLogger(__name__)


def missing_requirement() -> str:
    """What this machine lacks to run the kernels; "" if nothing, as far as is known before they are compiled."""
    try:
        from .jit import NativeError, this_machine
    except ImportError:
        return "the package llvmlite is not installed"
    except OSError as error:  # it is, but its library cannot be loaded
        return f"llvmlite cannot be used: {error}"
    try:
        this_machine()
    except NativeError as error:
        return str(error)
    return ""


def compile_ahead(training: bool = False) -> str:
    """Compiles the kernels, unless the cache on disk has them, and loads them. Compiling is logged at level INFO.

    Args:
        training: whether to have the kernels for gradients, too.

    Returns:
        Why the kernels cannot be had; "" if they can.
    """
    if reason := missing_requirement():
        return reason
    from .jit import NativeError, load

    try:
        load(training)
    except NativeError as error:
        return str(error)
    return ""


@cache
def is_available(training: bool = False) -> bool:
    """Whether there are kernels on this machine. They are compiled to find out; if there are none, one warning."""
    if reason := compile_ahead(training):
        logger.warning("%s: PyTorch computes", reason)
    return not reason


def kernels(training: bool = False) -> "Kernels":
    """The kernels, where they are available."""
    from .jit import load

    return load(training)


def call_kernel(name: str, scratch: int = 1, training: bool = False, **fields: float) -> None:
    """Runs a kernel on as many threads as PyTorch has.

    Args:
        name: as in `codegen.TRAINING_NAMES`.
        scratch: floats of memory that each thread needs for itself.
        training: whether the kernel is one of those that are compiled for training alone.
        fields: every field of the kernel's task, see `codegen.TASKS`.
    """
    layout, names = task_layout(name)
    task = (ctypes.c_int64 * len(names))()
    layout.pack_into(task, 0, *map(fields.__getitem__, names))
    run_parallel(kernels(training).functions[name], ctypes.addressof(task), scratch, torch.get_num_threads())


@cache
def task_layout(name: str) -> tuple[struct.Struct, Sequence[str]]:
    """How a kernel's task lies in memory, and the names of its fields in that order."""
    from .codegen import TASKS

    names = TASKS[name[:-3]]
    return struct.Struct("=" + "".join("f4x" if n in ("floor", "scale") else "q" for n in names)), names


@cache
def l2_bytes() -> int:
    """The size of a core's L2 cache; 1 MiB where the system does not tell."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text(encoding="ascii").strip()
        return int(text.removesuffix("K")) << 10
    except (OSError, ValueError):
        return 1 << 20

"""Kernels made into machine code: once per machine, kept on disk, loaded in milliseconds.

llvmlite translates what `codegen` writes, for the CPU found. The object code lies in the user's cache folder, under a
name made from all that it depends on, after a checksum of itself; it is written under another name and renamed when
whole, so processes that start at once do not disturb each other, and what is damaged is made again. What others than
the user could have written is not executed (`cache.read_private`).

`python -m kernels.winograd.jit` prints the code before it is translated.
"""

import ctypes
import functools
import hashlib
import logging
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from llvmlite import __version__ as llvmlite_version
from llvmlite import binding as llvm

from .. import cache
from .codegen import NAMES, TRAINING_NAMES, source, uses_non_temporal_stores
from .tiles import Shape

logger = logging.getLogger(__name__)

# On Windows a stack grows a page at a time, so functions with frames of more than that call `__chkstk`, with the size
# in rax; it touches each page and changes no register. It is in Microsoft's library, where LLVM's linker might not find
# it, and would end the process.
STACK_PROBE = """
module asm ".globl __chkstk"
module asm "__chkstk:"
module asm "push %rcx"
module asm "push %rax"
module asm "lea 24(%rsp), %rcx"
module asm "1: cmp $0x1000, %rax"
module asm "jb 2f"
module asm "sub $0x1000, %rcx"
module asm "test %rcx, (%rcx)"
module asm "sub $0x1000, %rax"
module asm "jmp 1b"
module asm "2: sub %rax, %rcx"
module asm "test %rcx, (%rcx)"
module asm "pop %rax"
module asm "pop %rcx"
module asm "ret"
"""

Function = Callable[[int, int], None]  # (address of the task, address of scratch); without the interpreter's lock
_lock = threading.Lock()


class NativeError(Exception):
    """There are no kernels for this CPU; one line that says why."""


class Kernels(NamedTuple):
    shape: Shape
    non_temporal: bool  # whether they can write so
    functions: dict[str, Function]  # by their names in `codegen`
    engine: Any  # keeps their code in memory


class Machine(NamedTuple):
    """What code is made for: name and features of a CPU as LLVM knows them, what the features are worth, and the
    system."""

    cpu: str
    features: str
    shape: Shape
    triple: str = llvm.get_default_triple()


def this_machine() -> Machine:
    """Raises NativeError where the CPU has no vectors that we know."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    features = llvm.get_host_cpu_features()
    return Machine(llvm.get_host_cpu_name(), features.flatten(), shape_for(platform.machine(), features))


def shape_for(architecture: str, features: dict[str, bool]) -> Shape:
    """Vectors as wide as the CPU's, and the register block that is fastest with its 32 or 16 registers."""
    if features.get("avx512f"):
        return Shape(16, 3, 4)
    if features.get("avx2") and features.get("fma"):
        return Shape(8, 6, 2)
    if architecture.lower() in ("arm64", "aarch64"):
        if sys.platform == "win32":
            raise NativeError("there are no kernels for Windows on ARM")
        return Shape(4, 3, 4)
    raise NativeError(f"the kernels need AVX2, AVX-512 or NEON, which this CPU ({architecture}) has not")


def load(training: bool = False) -> Kernels:
    """The kernels of this machine, from the cache or compiled now, which is logged.

    Args:
        training: whether to have those for gradients, too, which take three times as long to compile.

    Raises:
        NativeError: they cannot be compiled here.
    """
    with _lock:  # two threads must not compile the same
        return loaded(training)


@functools.cache
def loaded(training: bool) -> Kernels:
    """What `load` keeps in memory; its `cache_clear` forgets it."""
    machine = this_machine()
    try:
        return link(machine, _object_code(machine, training), training)
    except (RuntimeError, OSError) as error:  # of LLVM, of the system
        raise NativeError(f"the kernels could not be compiled: {str(error).splitlines()[0]}") from None


def _object_code(machine: Machine, training: bool) -> bytes:
    path = object_path(machine, training)
    found = read_object(path)
    if found is None:
        what = "CPU kernels for training" if training else "CPU kernels"
        logger.info("compiling the %s for %s, once on this machine", what, machine.cpu)
        start = time.perf_counter()
        found = compiled(machine, training)
        kept = write_object(path, found)
        seconds = time.perf_counter() - start
        logger.info("compiled in %.1f s%s", seconds, "" if kept else f"; {path.parent} cannot keep them")
    return found


def _target(machine: Machine) -> llvm.TargetMachine:
    target = llvm.Target.from_triple(machine.triple)
    return target.create_target_machine(cpu=machine.cpu, features=machine.features, opt=3, jit=True)


def compiled(machine: Machine, training: bool = False) -> bytes:
    """Object code of all kernels, with those for training or without."""
    return _target(machine).emit_object(translated(machine, training))


def translated(machine: Machine, training: bool) -> llvm.ModuleRef:
    """The kernels, optimized for a machine."""
    target = _target(machine)
    text = source(machine.shape, training)
    if machine.triple.startswith("x86_64") and "windows" in machine.triple:
        # Nor is memset called, which LLVM would make of loops that store zeros.
        text = text.replace(" nounwind", ' nounwind "no-builtins"') + STACK_PROBE
    module = llvm.parse_assembly(text)
    module.verify()
    module.triple = target.triple
    passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    return module


def link(machine: Machine, code: bytes, training: bool) -> Kernels:
    """The functions in object code, ready to be called."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target(machine))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
    functions = {name: kind(engine.get_function_address(name)) for name in (TRAINING_NAMES if training else NAMES)}
    return Kernels(machine.shape, uses_non_temporal_stores(machine.shape), functions, engine)


def object_path(machine: Machine, training: bool = False) -> Path:
    """Where object code is kept, under a hash of all that it depends on: what generates it, CPU, system, compiler."""
    generators = "ir_builder.py", "codegen.py", "filters.py", "jit.py", "tiles.py", "transforms.py", "wgrad.py"
    sources = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in generators]
    versions = [llvmlite_version, *map(str, llvm.llvm_version_info), machine.triple]
    parts = [*sources, *versions, machine.cpu, machine.features, repr(machine.shape), str(training)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    return cache.folder() / f"winograd-{key}.o"


def read_object(path: Path) -> bytes | None:
    """Object code from the cache; None if it is not there, not as it was written, or others could have written it."""
    content = cache.read_private(path)
    if content is None:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def write_object(path: Path, code: bytes) -> bool:
    """Keeps object code, after its checksum, whole or not at all. Returns whether it could."""
    return cache.write_whole(path, hashlib.sha256(code).digest() + code)


if __name__ == "__main__":
    sys.stdout.write(source(this_machine().shape, training=True))

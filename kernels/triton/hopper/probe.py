"""Tries the kernels for Hopper GPUs, each in a process of its own: `python -m kernels.triton.hopper.probe [--device
N]`.

All compile side by side; then each has the GPU to itself for some seconds, in which it must show that it computes what
the portable kernel does (`edsr.kernels.triton.hopper.self_test`). One that crashes or hangs ends with its process, is
named, and is not launched again: statuses are kept for this GPU, driver and version
(`edsr.kernels.triton.hopper.verification`).

`begin` starts this beside a program that would like to use the kernels. Only one such process works on a machine at a
time.
"""

import argparse
import contextlib
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from ... import cache
from .. import launch
from . import verification
from .verification import UNTRIED

logger = logging.getLogger(__name__)

NAME = f"{__package__}.probe"
KERNEL_SECONDS = 10.0  # that a kernel may take on the GPU
COMPILE_SECONDS = 180.0  # seconds until all have compiled, imports included
EXIT_SECONDS = 5.0  # seconds for a killed process to be gone
DISABLE_VARIABLE = "EDSR_PROBE"  # where it is 0 in the environment, `begin` does nothing
BUSY_WORDS = ("out of memory", "busy", "unavailable")  # in errors that come of a GPU in use, not of a kernel
DTYPES = {name: dtype for dtype, name in launch.DTYPE_NAMES.items() if dtype != torch.float32}


def probe(
    command: Sequence[str], seconds: float = KERNEL_SECONDS, compiling: float = COMPILE_SECONDS
) -> Iterator[tuple[str, str]]:
    """Tries all kernels. One that hangs in one dtype is not tried in the other, which would take as long.

    Args:
        command: Starts a process that tries the kernel and dtype named by two further arguments, as `try_one` does.
        seconds: How long a kernel may take on the GPU.
        compiling: Seconds until all have compiled.

    Yields:
        (key, status) of `verification.ALL`, in order. A status that begins with UNTRIED says nothing of the kernel.
    """
    started, hung = time.monotonic(), {}
    with contextlib.ExitStack() as stack:
        processes = {key: stack.enter_context(_Process([*command, *key.split()])) for key in verification.ALL}
        for key, process in processes.items():
            kernel, dtype = key.split()
            if kernel in hung:
                yield key, f"not tried, since it hangs in {hung[kernel]}"
                continue
            status = process.read_line(max(1.0, compiling - (time.monotonic() - started)))
            if status == "compiled":
                process.go()
                status = process.read_line(seconds)
                if status is None:
                    hung[kernel] = dtype
                    status = f"hangs: nothing after {seconds:g} s"
            elif status is None:
                status = f"{UNTRIED}: not compiled after {compiling:g} s"
            process.kill()
            yield key, status


class _Process:
    """A process that is read line by line. It may be stuck in the driver: nothing here waits for it without limit."""

    def __init__(self, command: list[str]):
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def read_line(self, seconds: float) -> str | None:
        """The next line, None if there is none within some seconds; how the process ended if it has."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        if line is None:
            self._lines.put(None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_SECONDS)
            return f"crashes: its process ended with exit code {self._process.returncode}"
        return line

    def go(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died, which its next line reports
            self._process.stdin.write("go\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_SECONDS)


def try_one(
    kernel: str, dtype: torch.dtype, index: int, wait: Callable[[], object], report: Callable[[str], None]
) -> None:
    """What a process of `probe` does: compiles, reports "compiled", waits, and reports the status, each in a line."""
    from . import self_test

    device = torch.device("cuda", index)
    try:
        torch.zeros(1, device=device)
    except Exception as error:  # the GPU is taken, or full
        report(f"{UNTRIED}: {_one_line(error)}")
        return
    try:
        self_test.compile_check(kernel, dtype, launch.architecture(device))
    except Exception as error:
        report(f"does not compile: {_one_line(error)}")
        return
    report("compiled")
    if wait() != "go\n":
        return  # nobody is there to end what hangs
    try:
        with torch.cuda.device(device):
            report(self_test.check(kernel, dtype, device) or verification.VERIFIED)
    except Exception as error:
        busy = any(words in str(error).lower() for words in BUSY_WORDS)
        report(f"{UNTRIED if busy else 'fails'}: {_one_line(error)}")


def _wait_for_go() -> str:
    """The line that is waited for, after which this process lasts no longer than its parent."""
    line = sys.stdin.readline()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return line


def _end_with_parent() -> None:
    """Ends this process when nobody holds the other end of its standard input any more."""
    sys.stdin.read()
    os._exit(1)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


# --- beside a program


def begin(device: torch.device) -> None:
    """Starts a probe of a Hopper GPU in the background if some kernel of it has not been tried, and logs that.

    What is found serves processes that start later. This one goes on as it began, so that all its results have the
    same bits.
    """
    hopper = device.type == "cuda" and launch.architecture(device) == 90
    if not hopper or os.environ.get(DISABLE_VARIABLE) == "0" or not verification.pending(device):
        return
    gpu = torch.cuda.get_device_properties(device).name
    log = verification.cache_path(gpu).with_suffix(".log")
    try:
        with cache.open_private(log) as file:
            subprocess.Popen(
                command(device.index or 0),
                env=os.environ | {"PYTHONPATH": os.pathsep.join(_import_paths())},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # it ends by itself, within minutes
                creationflags=getattr(subprocess, "DETACHED_PROCESS", 0),  # the same on Windows
            )
    except OSError as error:
        reason = error.strerror or error
        logger.warning("the fastest kernels cannot be tried on this %s (%s); portable kernels serve", gpu, reason)
        return
    logger.info("the fastest kernels are being tried on this %s; portable kernels serve in this run", gpu)


def command(index: int) -> list[str]:
    """The command line of a probe of the GPU of this number."""
    return [sys.executable, "-m", NAME, "--device", str(index)]


def _import_paths() -> list[str]:
    """Where to import from: a bare checkout is found by its folder alone."""
    top = sys.modules[(__package__ or "").partition(".")[0]]
    above = Path(str(top.__file__)).resolve().parents[1]
    return [str(above), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


@contextlib.contextmanager
def exclusive_lock(file: Path) -> Iterator[bool]:
    """Yields whether no other process is known to be inside. file: the lock file that all of them use."""
    alone = True
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no such folder or lock can be had, and nobody else's either
            handle = stack.enter_context(cache.open_private(file))
            try:
                _lock(handle)
            except (BlockingIOError, PermissionError):  # Windows reports the second
                alone = False
        yield alone


if sys.platform == "win32":
    import msvcrt

    def _lock(file: BinaryIO) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {NAME}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", type=int, default=0, metavar="N", help="number of the GPU; default: %(default)s")
    parser.add_argument("--again", action="store_true", help="also what has been tried before")
    parser.add_argument("--one", nargs=2, metavar=("KERNEL", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    if options.one:
        kernel, dtype = options.one
        # Standard output is for what `probe` reads; compilers write to it, too.
        lines = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        try_one(kernel, DTYPES[dtype], options.device, _wait_for_go, lambda line: lines.write(line + "\n"))
        return 0
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(options.device) != (9, 0):
        _print("there is no Hopper GPU here; other GPUs use the portable kernels")
        return 2
    device = torch.device("cuda", options.device)
    gpu = torch.cuda.get_device_properties(device).name
    with exclusive_lock(verification.cache_path(gpu).with_suffix(".lock")) as alone:
        if not alone:
            _print("another process is trying them")
            return 1
        if not options.again and not verification.pending(device):
            for key, status in verification.read_statuses(device).items():
                _print(f"{key}: {status}")
            return 0
        _print(f"trying {len(verification.ALL)} kernels on {gpu}; half a minute")
        failed = 0
        for key, status in probe([*command(options.device), "--one"]):
            _print(f"{key}: {status}")
            failed += status != verification.VERIFIED
            if not verification.save_status(device, key, status):
                _print(f"{cache.folder()} cannot keep that")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

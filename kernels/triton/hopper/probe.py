"""Tries the kernels for Hopper GPUs, each in a process of its own: `python -m kernels.triton.hopper.probe [--device
N]`.

All compile side by side; then each has the GPU to itself for some seconds, in which it is to show that it computes what
the portable kernel does (`edsr.kernels.triton.hopper.self_test`). One that crashes or hangs ends with its process, is
named, and is not launched again: verdicts are kept for this GPU, driver and version
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

import torch

from ... import cache
from .. import launch
from . import verification
from .verification import UNTRIED

logger = logging.getLogger(__name__)

SECONDS = 10.0  # that a kernel has the GPU for
COMPILING = 180.0  # seconds until all have compiled, imports included
ENDING = 5.0  # seconds for a killed process to be gone
OFF = "EDSR_PROBE"  # 0 in the environment: `begin` does nothing
TAKEN = ("out of memory", "busy", "unavailable")  # in errors that say nothing of a kernel
DTYPES = {name: dtype for dtype, name in launch.NAMES.items() if dtype != torch.float32}


def probe(command: Sequence[str], seconds: float = SECONDS, compiling: float = COMPILING) -> Iterator[tuple[str, str]]:
    """Yields (key, verdict) of `verdicts.ALL`, in order. A verdict that begins with UNTRIED says nothing of the kernel.

    command: starts a process that tries the kernel and dtype named by two further arguments, as `try_one` does.
    A kernel that hangs in one dtype is not tried in the other, which would take as long.
    """
    begun, hung = time.monotonic(), {}
    with contextlib.ExitStack() as stack:
        tried = {key: stack.enter_context(_Process([*command, *key.split()])) for key in verification.ALL}
        for key, process in tried.items():
            kernel, dtype = key.split()
            if kernel in hung:
                yield key, f"not tried, since it hangs in {hung[kernel]}"
                continue
            said = process.line(max(1.0, compiling - (time.monotonic() - begun)))
            if said == "compiled":
                process.go()
                said = process.line(seconds)
                if said is None:
                    hung[kernel] = dtype
                    said = f"hangs: nothing after {seconds:g} s"
            elif said is None:
                said = f"{UNTRIED}: not compiled after {compiling:g} s"
            process.end()
            yield key, said


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
        self.end()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, seconds: float) -> str | None:
        """The next line, None if there is none so soon; how the process ended if it has."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        if line is None:
            self._lines.put(None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(ENDING)
            return f"crashes: its process ended with exit code {self._process.returncode}"
        return line

    def go(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died, as its next line will tell
            self._process.stdin.write("go\n")
            self._process.stdin.flush()

    def end(self) -> None:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING)


def try_one(
    kernel: str, dtype: torch.dtype, index: int, wait: Callable[[], object], say: Callable[[str], None]
) -> None:
    """What a process of `probe` does: compiles, says "compiled", waits, and says the verdict, each in a line."""
    from . import self_test

    device = torch.device("cuda", index)
    try:
        torch.zeros(1, device=device)
    except Exception as error:  # the GPU is taken, or full
        say(f"{UNTRIED}: {_one_line(error)}")
        return
    try:
        self_test.compile_check(kernel, dtype, launch.architecture(device))
    except Exception as error:
        say(f"does not compile: {_one_line(error)}")
        return
    say("compiled")
    if wait() != "go\n":
        return  # nobody is there to end what hangs
    try:
        with torch.cuda.device(device):
            say(self_test.check(kernel, dtype, device) or verification.RIGHT)
    except Exception as error:
        taken = any(words in str(error).lower() for words in TAKEN)
        say(f"{UNTRIED if taken else 'fails'}: {_one_line(error)}")


def _told() -> str:
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

    What is found serves processes that start later. This one goes on as it began, so that its results have the same
    bits from first to last.
    """
    hopper = device.type == "cuda" and launch.architecture(device) == 90
    if not hopper or os.environ.get(OFF) == "0" or not verification.wanting(device):
        return
    gpu = torch.cuda.get_device_properties(device).name
    log = verification.path(gpu).with_suffix(".log")
    try:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(log, "wb") as file:
            subprocess.Popen(
                command(device.index or 0),
                env=os.environ | {"PYTHONPATH": os.pathsep.join(_roots())},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # it ends by itself, within minutes
            )
    except OSError as error:
        reason = error.strerror
        logger.warning("the fastest kernels cannot be tried on this %s (%s); portable kernels serve", gpu, reason)
        return
    logger.info("the fastest kernels are being tried on this %s; portable kernels serve in this run", gpu)


def command(index: int) -> list[str]:
    """Of a probe of the GPU of this number."""
    return [sys.executable, "-m", __spec__.name if __name__ == "__main__" else __name__, "--device", str(index)]


def _roots() -> list[str]:
    """Where to import from: a bare checkout is found by its folder alone."""
    top = sys.modules[(__package__ or "").partition(".")[0]]
    above = Path(str(top.__file__)).resolve().parents[1]
    return [str(above), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


@contextlib.contextmanager
def alone(file: Path) -> Iterator[bool]:
    """Whether no other process is known to be inside. file: that they agree upon."""
    import fcntl  # Triton is for Linux

    only = True
    with contextlib.ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = stack.enter_context(open(file, "wb"))
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            only = False
        except OSError:  # no such folder can be had, and nobody else's either
            pass
        yield only


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", type=int, default=0, metavar="N", help="number of the GPU; default: %(default)s")
    parser.add_argument("--again", action="store_true", help="also what has been tried before")
    parser.add_argument("--one", nargs=2, metavar=("KERNEL", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    if options.one:
        kernel, dtype = options.one
        # Standard output is for what `probe` reads; compilers write to it, too.
        lines = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        try_one(kernel, DTYPES[dtype], options.device, _told, lambda line: lines.write(line + "\n"))
        return 0
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(options.device) != (9, 0):
        say("there is no Hopper GPU here; other GPUs use the portable kernels")
        return 2
    device = torch.device("cuda", options.device)
    gpu = torch.cuda.get_device_properties(device).name
    with alone(verification.path(gpu).with_suffix(".lock")) as only:
        if not only:
            say("another process is trying them")
            return 1
        if not options.again and not verification.wanting(device):
            for key, words in verification.known(device).items():
                say(f"{key}: {words}")
            return 0
        say(f"trying {len(verification.ALL)} kernels on {gpu}; half a minute")
        failed = 0
        for key, words in probe([*command(options.device), "--one"]):
            say(f"{key}: {words}")
            failed += words != verification.RIGHT
            if not verification.keep(device, key, words):
                say(f"{cache.folder()} cannot keep that")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

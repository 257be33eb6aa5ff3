"""Processes that tests wait for as long as these do something: a machine under load makes no test fail."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress

import psutil

IDLE = 120.0
"""Seconds in which a process and its children take no time of a processor, and are taken to hang."""
ENDLESS = 3600.0
"""Seconds of a processor after which they are taken to go round in circles."""


def work_done(pid: int) -> float:
    """Seconds of a processor that a process and its children have taken; what has ended counts no more."""
    total = 0.0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in process, *process.children(recursive=True):
            with suppress(psutil.Error):
                total += sum(one.cpu_times()[:2])
    return total


class Watch:
    """Tells whether any of some processes has done something lately."""

    def __init__(self, *processes: subprocess.Popen, idle: float = IDLE):
        self._processes, self._idle = processes, idle
        self._before, self._since = -1.0, time.monotonic()

    def hangs(self) -> bool:
        now = sum(work_done(process.pid) for process in self._processes)
        if now != self._before:
            self._before, self._since = now, time.monotonic()
        return time.monotonic() - self._since > self._idle or now > ENDLESS


@contextmanager
def killed_if_idle(process: subprocess.Popen, idle: float = IDLE):
    """Inside the block one may wait for a process without a limit: it is killed when it hangs."""
    watch, ended = Watch(process, idle=idle), threading.Event()

    def look() -> None:
        while not ended.wait(0.5):
            if watch.hangs():
                process.kill()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def communicate(process: subprocess.Popen, text: str | bytes | None = None) -> tuple:
    """What `Popen.communicate` gives; a process that hangs is killed."""
    with killed_if_idle(process):
        return process.communicate(text)


def run(command: Sequence, *, input: str | bytes | None = None, **options) -> subprocess.CompletedProcess:
    """`subprocess.run` of a process that is killed when it hangs."""
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with subprocess.Popen(command, **options) as process:
        output, errors = communicate(process, input)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def wait_until(happened: Callable[[], bool], *processes: subprocess.Popen, every: float = 0.05) -> None:
    """Waits for something that processes do, all of which must go on until then, and at least one do something."""
    watch = Watch(*processes)
    while not happened():
        assert all(process.poll() is None for process in processes), "ended too early"
        assert not watch.hangs(), "hangs"
        time.sleep(every)


def read_terminal(leader: int) -> bytes:
    """All that processes write to a terminal, until they have closed it. leader: what `openpty` gives first."""
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # Linux's way of saying that the other end is closed
            return shown
        if not part:
            return shown
        shown += part

"""SIGINT, SIGTERM and SIGHUP end the program, whatever hangs.

Python looks for signals between its own instructions only, and a codec may not come back to these for minutes. So a
thread looks, too, and ends the program where the main thread has not.
"""

import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from edsr.system import remove_unfinished

FIRST, AGAIN = 3.0, 0.5
"""Seconds that are left to the program for its own end after the first signal, and after another."""
INTERRUPTED = 130
"""The exit code."""
CODECS = "edsr-"
"""What the names of threads begin with that may be inside of a codec."""

_signals = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):
    _signals.append(signal.SIGHUP)
_received = threading.Event()


@contextlib.contextmanager
def watched(patient: bool = False) -> Iterator[None]:
    """In the block SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, and end the program if that does not.

    Args:
        patient: whether the first signal may take any time, as a training run may to save its state.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    handle_hangup(signal.default_int_handler)
    if sys.platform == "win32":
        yield
        return
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    before = signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
    _received.clear()
    watcher = threading.Thread(target=_watch, args=(source, None if patient else FIRST), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(sink)
        watcher.join()


def handle_hangup(stop: Callable[..., object]) -> Callable[[], object]:
    """Calls `stop` at the first SIGHUP, unless it is ignored, as under nohup; later ones are ignored.

    A terminal that closes may send it several times, by its shell and by the system: that is nobody in a hurry.

    Returns:
        What restores the handler before.
    """
    if not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return lambda: None

    def once(number: int, frame: object) -> None:
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        stop(number, frame)

    before = signal.signal(signal.SIGHUP, once)
    return lambda: signal.signal(signal.SIGHUP, before)


def end_if_stuck() -> None:
    """End the program at once if a signal has come and a codec is still at work: Python would wait, or break it off."""
    if _received.is_set() and any(t.name.startswith(CODECS) and t.is_alive() for t in threading.enumerate()):
        _end()


def _watch(source: int, first: float | None) -> None:
    deadline, count, hung_up = None, 0, False
    with open(source, "rb", buffering=0) as pipe:
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([pipe], [], [], left)[0]:
                with contextlib.suppress(OSError):  # a full pipe that nobody reads does not keep it
                    if select.select([], [2], [], 0)[1]:
                        os.write(2, b"interrupted\n")
                _end()
            if not (numbers := pipe.read(64)):
                return
            names = [signal.Signals(number).name for number in numbers if number in _signals]
            count += sum(name != "SIGHUP" for name in names)
            if "SIGHUP" in names and not hung_up:  # see `handle_hangup`
                count, hung_up = count + 1, True
            if count:
                _received.set()
                logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of transfers that are left in the middle
                patience = first if count == 1 else AGAIN
                if patience is not None:
                    deadline = min(deadline or float("inf"), time.monotonic() + patience)


def _end() -> None:
    remove_unfinished()
    os._exit(INTERRUPTED)

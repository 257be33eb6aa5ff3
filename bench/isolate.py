"""Steps done in a process of their own, so that one that crashes or hangs costs itself and no other.

After an illegal memory access a process can use its GPU no more, and a kernel that waits for ever never gives it
back. Either may happen to a kernel that is new to a GPU. What a step has found before it dies is not lost with it: it
says so as it goes along.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any

from bench import STARTED

LIMIT = 60.0  # seconds between two signs of life
KILL_LIMIT = 2.0  # seconds that a killed process gets to end; one that waits in the driver may take for ever
SPARE = 4.0  # seconds before a command's deadline that are kept for ending processes and writing what was found
FOREVER = float("inf")


class Heartbeat:
    """What a step tells while it works; made without `send`, nobody hears it.

    at(part, seconds): what is done from now on, and how long it may take. at.so_far(partial): what is known until now.
    at.before: what an earlier try of the same item, which died, told last; None for the first.
    """

    def __init__(self, send: Callable[[tuple], None] = lambda message: None, before: Any = None):
        self._send, self.before = send, before

    def __call__(self, part: str, seconds: float = LIMIT) -> None:
        self._send(("at", part, seconds))

    def so_far(self, partial: Any) -> None:
        self._send(("so far", partial))


Step = Callable[[Any, dict[str, str], Heartbeat], Any]
SoFar = Callable[[Any, Any], None]  # an item, and what is known about it


def nobody(item: Any, partial: Any) -> None:
    """A `SoFar` that does not listen."""


def run_isolated(
    function: Step, items: Iterable[Any], deadline: float = FOREVER, so_far: SoFar = nobody
) -> Iterator[tuple[Any, Any]]:
    """Yields (item, function(item, failed, at)) for each item, in order, until time.monotonic() passes `deadline`.

    function, items and results must be picklable. It calls `at` before every part of its work that may fail. Where
    a part crashes, raises or takes too long the process is replaced, and the item is begun again with `failed` telling
    which part failed and why, so that it can leave that part out. An item that cannot be done at all is yielded
    with the reason as its result, a str. so_far(item, partial) is called as soon as the function has told something.

    The first process starts at once, and imports what it needs while the caller goes on.
    """
    first = _Worker(function) if time.monotonic() < deadline else None
    return _each(first, function, items, deadline, so_far)


def _each(worker: "_Worker | None", function: Step, items: Iterable[Any], deadline: float, so_far: SoFar):
    try:
        for item in items:
            failed: dict[str, str] = {}
            messages: Any = None

            def tell(partial: Any, item: Any = item) -> None:
                nonlocal messages
                messages = partial
                so_far(item, partial)

            while time.monotonic() < deadline:
                worker = worker or _Worker(function)
                part, reason, result = worker.do(item, failed, messages, tell, deadline)
                if reason is None:
                    yield item, result
                    break
                worker = worker.kill()
                if time.monotonic() >= deadline:
                    return  # it is not the part's fault
                if part is None or part in failed:
                    yield item, f"{part}: {reason}" if part else reason
                    break
                failed[part] = reason
            if time.monotonic() >= deadline:
                return
    finally:
        if worker is not None:
            worker.kill()


def here(function: Step, items: Iterable[Any], so_far: SoFar = nobody) -> Iterator[tuple[Any, Any]]:
    """`run_isolated` in this process: for a CPU, where nothing hangs that the caller could not end."""
    for item in items:

        def tell(message: tuple, item: Any = item) -> None:
            if message[0] == "so far":
                so_far(item, message[1])

        yield item, function(item, {}, Heartbeat(tell))


def side_by_side(
    function: Step, items: Iterable[Any], processes: int, deadline: float = FOREVER, so_far: SoFar = nobody
) -> Iterator[tuple[Any, Any]]:
    """`run_isolated` in several processes, which take items in order as they become free. Yields them as they are done.

    so_far is called in the caller's thread.
    """
    waiting, heard = iter(items), queue.SimpleQueue()
    taking = threading.Lock()

    def shared() -> Iterator[Any]:
        while True:
            with taking:
                try:
                    item = next(waiting)
                except StopIteration:
                    return
            yield item

    def work() -> None:
        try:
            for done in run_isolated(
                function, shared(), deadline, lambda item, partial: heard.put(("so far", item, partial))
            ):
                heard.put(("done", *done))
        finally:
            heard.put(("end", None, None))

    # Daemons: who is told to end in the middle does not wait for them.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(processes)]
    for thread in threads:
        thread.start()
    left = len(threads)
    while left:
        kind, item, words = heard.get()
        left -= kind == "end"
        if kind == "so far":
            so_far(item, words)
        elif kind == "done":
            yield item, words


class _Worker:
    def __init__(self, function: Step):
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        # Not a daemon, which might have no children: DataLoader has some. It ends with this process all the same.
        self._process = spawn.Process(target=_serve, args=(function, theirs))
        self._process.start()
        theirs.close()

    def do(
        self, item: Any, failed: dict[str, str], before: Any, tell: Callable[[Any], None], deadline: float
    ) -> tuple[str | None, str | None, Any]:
        """(the part it was at, why it failed or None, the result)."""
        part, seconds = None, LIMIT
        try:
            self._connection.send((item, failed, before))
            until = time.monotonic() + seconds
            while True:
                # What was told earlier on counts even where there is no time left.
                if not self._connection.poll(max(0.0, min(until, deadline) - time.monotonic())):
                    return part, f"not done after {seconds:.1f} s", None
                kind, *message = self._connection.recv()
                if kind == "at":
                    part, seconds = message
                    until = time.monotonic() + seconds
                elif kind == "so far":
                    tell(message[0])
                elif kind == "error":
                    return part, message[0], None
                else:
                    return part, None, message[0]
        except (EOFError, OSError):
            self._process.join(KILL_LIMIT)
            return part, f"its process ended with exit code {self._process.exitcode}", None

    def kill(self) -> None:
        self._process.kill()
        self._process.join(KILL_LIMIT)
        self._connection.close()


def _serve(function: Step, theirs: connection.Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            item, failed, before = theirs.recv()
        except EOFError:
            return
        try:
            message = ("result", function(item, failed, Heartbeat(theirs.send, before)))
        except Exception as error:
            message = ("error", one_line(error))
        theirs.send(message)


def _end_with_parent() -> None:
    """So that no process goes on alone after one that was killed, and keeps the GPU from the next."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def one_line(error: BaseException) -> str:
    """An error as one line: some messages hold a whole program."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


# --- commands that must end in time


def time_limit(seconds: float, began: float | None) -> float:
    """When a command that has `seconds` must stop working to have ended by then. began: None for now."""
    return (time.monotonic() if began is None else began) + seconds - SPARE


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises SystemExit(143), so that what was found can be written. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def command(main: Callable[..., int]) -> None:
    """Runs main(began=STARTED) and ends this process at once with its exit code.

    Python would wait for all processes it has started, and one that waits in the driver may never end.
    """
    try:
        code = main(began=STARTED)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)

"""Steps done in a process of their own, so that one that crashes or hangs costs itself and no other.

After an illegal memory access a process can use its GPU no more, and a kernel that waits for ever never gives it
back. Either may happen to a kernel that is new to a GPU.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

LIMIT = 60.0  # seconds between two signs of life
At = Callable[..., None]  # at(part, seconds=LIMIT): what is done from now on, and how long it may take


def each(
    function: Callable[[Any, dict[str, str], At], Any], items: Iterable[Any], deadline: float = float("inf")
) -> Iterator[tuple[Any, Any]]:
    """Yields (item, function(item, failed, at)) for each item, in order, until time.monotonic() passes `deadline`.

    function, items and results must be picklable. It calls `at` before every part of its work that may fail. Where
    a part crashes, raises or takes too long the process is replaced, and the item is begun again with `failed` telling
    which part failed and why, so that it can leave that part out. An item that cannot be done at all is yielded
    with the reason as its result, a str.
    """
    worker = None
    try:
        for item in items:
            failed: dict[str, str] = {}
            while time.monotonic() < deadline:
                worker = worker or _Worker(function)
                part, reason, result = worker.do(item, failed, deadline)
                if reason is None:
                    yield item, result
                    break
                worker = worker.kill()
                if part is None or part in failed:
                    yield item, f"{part}: {reason}" if part else reason
                    break
                failed[part] = reason
            if time.monotonic() >= deadline:
                return
    finally:
        if worker is not None:
            worker.kill()


class _Worker:
    def __init__(self, function: Callable[..., Any]):
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(function, theirs))
        self._process.start()
        theirs.close()

    def do(self, item: Any, failed: dict[str, str], deadline: float) -> tuple[str | None, str | None, Any]:
        """(the part it was at, why it failed or None, the result)."""
        part, seconds = None, LIMIT
        try:
            self._connection.send((item, failed))
            while True:
                wait = max(0.0, min(seconds, deadline - time.monotonic()))
                if not self._connection.poll(wait):
                    return part, f"not done after {wait:.1f} s", None
                kind, *message = self._connection.recv()
                if kind == "at":
                    part, seconds = message
                elif kind == "error":
                    return part, message[0], None
                else:
                    return part, None, message[0]
        except (EOFError, OSError):
            self._process.join()
            return part, f"its process ended with exit code {self._process.exitcode}", None

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(function: Callable[..., Any], connection: Connection) -> None:
    def at(part: str, seconds: float = LIMIT) -> None:
        connection.send(("at", part, seconds))

    while True:
        try:
            item, failed = connection.recv()
        except EOFError:
            return
        try:
            message = ("result", function(item, failed, at))
        except Exception as error:
            message = ("error", one_line(error))
        connection.send(message)


def one_line(error: BaseException) -> str:
    """An error as one line: some messages hold a whole program."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

"""Compiled functions on several cores: plain Python threads, because ctypes calls without the interpreter's lock."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

_local = threading.local()


def run_parallel(function: Callable[[int, int], None], task: int, floats: int, threads: int) -> None:
    """function(task, address of scratch) on `threads` threads, the caller's among them; returns when all are done.

    The threads share the work between themselves; one that finds none left returns at once. floats: of scratch.
    """

    def work() -> None:
        function(task, _scratch(floats).data_ptr())

    others = [_pool(os.getpid()).submit(work) for _ in range(min(threads, _max_threads()) - 1)]
    try:
        work()
    finally:
        for other in others:
            if not other.cancel():  # one that has not begun would find nothing left
                other.result()


@cache  # Python reads it from a file
def _max_threads() -> int:
    return 4 * (os.cpu_count() or 1)


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Its threads start when they are first needed, and wait without working. A forked process has its own."""
    return ThreadPoolExecutor(_max_threads(), thread_name_prefix="winograd")


def _scratch(floats: int) -> torch.Tensor:
    """This thread's own; finite from the start, because what is computed from the rest of a group is thrown away."""
    found = getattr(_local, "scratch", None)
    if found is None or len(found) < floats:
        found = _local.scratch = torch.zeros(floats)
    return found

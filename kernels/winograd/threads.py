"""Compiled functions on several cores. Python threads suffice, because ctypes releases the interpreter's lock."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

_local = threading.local()


def run_parallel(function: Callable[[int, int], None], task: int, floats: int, threads: int) -> None:
    """Runs function(task, scratch) on several threads, including the caller's; returns when all are done.

    The function distributes the work between the threads: one that finds none left must return at once.

    Args:
        function: compiled code.
        task: address of its task.
        floats: size of each thread's scratch memory, whose address the function gets.
        threads: how many.
    """

    def work() -> None:
        function(task, _scratch(floats).data_ptr())

    others = [_pool(os.getpid()).submit(work) for _ in range(min(threads, _max_threads()) - 1)]
    try:
        work()
    finally:
        for other in others:
            if not other.cancel():  # one that has not started yet would find no work left
                other.result()


@cache  # os.cpu_count reads a file
def _max_threads() -> int:
    return 4 * (os.cpu_count() or 1)


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The pool of a process, so that a forked one gets its own. Its threads start when they are first needed."""
    return ThreadPoolExecutor(_max_threads(), thread_name_prefix="winograd")


def _scratch(floats: int) -> torch.Tensor:
    """Memory of this thread. Zeros at first, because unused places in a group of tiles are computed with as well."""
    scratch = getattr(_local, "scratch", None)
    if scratch is None or len(scratch) < floats:
        scratch = _local.scratch = torch.zeros(floats)
    return scratch

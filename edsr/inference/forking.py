"""Processes forked from one that computes: said, instead of waiting for threads that only the parent has.

PyTorch's threads do not survive a fork: the first operation on several of them waits forever. So an Upscaler stays in
the process that made it, and one that is made in a forked process computes on one thread, as workers of PyTorch's
DataLoader do.
"""

import logging
import os

import torch

from edsr.errors import BackendError
from edsr.wording import option

logger = logging.getLogger(__name__)

_SPAWN = 'start workers by multiprocessing.get_context("spawn")'

_loaded_in = os.getpid()  # the process, which a fork changes
_forked = False


def check_owner(process: int) -> None:
    """Raise BackendError unless this is the process that made an Upscaler."""
    if os.getpid() != process:
        raise BackendError(
            f"an Upscaler cannot be used in a process forked after it was made: make it in the worker, or {_SPAWN}"
        )


def adapt_to_fork(device: str, threads: int | None = None) -> None:
    """Make this process fit to compute, also where it was forked from one that had loaded this.

    Args:
        device, threads: As `edsr.Upscaler` takes them.

    Raises:
        BackendError: The device cannot be used in a forked process, or the number of threads cannot be had.
    """
    global _loaded_in, _forked
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise BackendError(f"{option('threads', threads)}: give a whole number of 1 or more")
    if os.getpid() != _loaded_in:
        _check_device(device)
        _loaded_in, _forked = os.getpid(), True
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
            logger.info("one thread computes, because this process was forked")
    if _forked and (threads or 1) > 1:
        raise BackendError(f"{option('threads', threads)}: a forked process has one; {_SPAWN}")
    if threads:
        torch.set_num_threads(threads)


def _check_device(device: str) -> None:
    for kind in "cuda", "mps":
        unusable = getattr(getattr(torch, kind), "_is_in_bad_fork", lambda: False)  # a private function of torch
        if device.startswith(kind) and unusable():
            raise BackendError(f"{device} cannot be used in a process forked from one that used it: {_SPAWN}")

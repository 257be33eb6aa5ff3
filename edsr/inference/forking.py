"""Processes forked from one that computes: said, instead of waiting for threads that only the parent has.

PyTorch's threads do not survive a fork: the first operation on several of them waits forever. So an Upscaler stays in
the process that made it, and one that is made in a forked process computes on one thread, as workers of PyTorch's
DataLoader do.
"""

import logging
import os

import torch

from edsr.errors import BackendError

logger = logging.getLogger(__name__)

_loaded_in = os.getpid()  # the process, which a fork changes


def check_owner(process: int) -> None:
    """Raise BackendError unless this is the process that made an Upscaler."""
    if os.getpid() != process:
        raise BackendError(
            "an Upscaler cannot be used in a process forked after it was made: make it in the worker, or start workers "
            'by multiprocessing.get_context("spawn")'
        )


def adapt_to_fork(device: str) -> None:
    """Make this process fit to compute, where it was forked from one that had loaded this.

    Args:
        device: As `edsr.Upscaler` takes it.

    Raises:
        BackendError: The device cannot be used in a forked process.
    """
    global _loaded_in
    if os.getpid() == _loaded_in:
        return
    for kind in "cuda", "mps":
        unusable = getattr(getattr(torch, kind), "_is_in_bad_fork", lambda: False)  # a private function of torch
        if device.startswith(kind) and unusable():
            raise BackendError(
                f"{device} cannot be used in a process forked from one that used it: start workers by "
                'multiprocessing.get_context("spawn")'
            )
    _loaded_in = os.getpid()
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        logger.info("one thread computes, because this process was forked")

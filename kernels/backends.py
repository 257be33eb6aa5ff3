"""The backends by name: which there are, whether they can be had here, and their operations.

What a backend needs is known to itself alone: `triton.availability` and `winograd.ops` answer for theirs.
"""

import torch

from .interface import TensorOps

BACKENDS = ("torch", "triton", "winograd")


def load_ops(backend: str) -> TensorOps:
    """The operations for inference: `reference`, `triton.ops` or `winograd.ops`.

    Raises:
        ImportError: "triton" is asked for and Triton is not installed.
    """
    if backend == "triton":
        from .triton import ops
    elif backend == "winograd":
        from .winograd import ops
    else:
        from . import reference as ops
    return ops


def load_training_ops(backend: str) -> TensorOps:
    """The same for training: operations that can be differentiated. Raises as `load_ops` does."""
    if backend == "triton":
        from .triton import autograd as ops
    elif backend == "winograd":
        from .winograd import autograd as ops
    else:
        from . import reference as ops
    return ops


def unavailable_reason(backend: str, device: torch.device, dtype: torch.dtype, channels: int) -> str:
    """Why a backend cannot compute networks of so many features on a device; empty if it can.

    Args:
        backend: One of `BACKENDS`.
        device: Where maps and weights lie.
        dtype: What is computed in.
        channels: Features between the blocks of the network.

    Returns:
        The rest of a sentence: "the package triton is not installed".
    """
    if backend == "triton":
        from .triton import availability as answering
    elif backend == "winograd":
        from .winograd import ops as answering
    else:
        return ""
    return answering.unavailable_reason(device, dtype, channels)


def compile_ahead(backend: str, device: torch.device, training: bool = False) -> str:
    """Prepares an available backend for its first operation, as far as that can be done without operands.

    The kernels for CPUs are compiled, a second the first time on a machine. Those for GPUs compile when they are first
    launched; only the fastest of a Hopper GPU, where they have not been tried on this one, are tried in the background
    (`edsr.kernels.triton.hopper.probe`).

    Args:
        backend: One of `BACKENDS`.
        device: Where it will compute.
        training: Whether gradients will be needed.

    Returns:
        Why the backend cannot be used after all, as `unavailable_reason`; empty if it can.
    """
    if backend == "triton":
        from .triton import availability

        return availability.compile_ahead(device)
    if backend == "winograd":
        from .winograd import ops

        return ops.compile_ahead(training=training)
    return ""


def is_faster_in_training(backend: str, device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """Whether a training step with an available backend is known to be faster than with "torch".

    Args: as of `unavailable_reason`.
    """
    if backend == "triton":
        from .triton import availability

        return availability.is_faster_in_training(device, dtype, channels)
    return backend == "winograd"

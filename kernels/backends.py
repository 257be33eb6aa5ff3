"""The backends by name: the operations of a network, each a namespace that executes them in its own way."""

from typing import Any

BACKENDS = ("torch", "triton", "winograd")


def load_ops(backend: str) -> Any:
    """The namespace of operations for inference: `reference`, `triton.ops` or `winograd.ops`.

    Raises ImportError where "triton" is asked for and Triton is not installed.
    """
    if backend == "triton":
        from .triton import ops
    elif backend == "winograd":
        from .winograd import ops
    else:
        from . import reference as ops
    return ops


def load_training_ops(backend: str) -> Any:
    """The same for training: operations that can be differentiated. Raises as `load_ops` does."""
    if backend == "triton":
        from .triton import autograd as ops
    elif backend == "winograd":
        from .winograd import autograd as ops
    else:
        from . import reference as ops
    return ops

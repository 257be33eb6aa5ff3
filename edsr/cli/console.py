"""What a person is told of an error. Imports what raises it only when asked: torch takes seconds."""


def is_expected(error: Exception) -> bool:
    """Whether an error is about the user's files, devices or options, and its message is meant for them."""
    import torch

    from edsr.errors import (
        BackendError,
        CheckpointError,
        CompareError,
        DataError,
        EvaluateError,
        ImageError,
        TrainError,
        WeightsError,
    )

    ours = (ImageError, WeightsError, BackendError, DataError, EvaluateError, TrainError, CheckpointError, CompareError)
    return isinstance(error, (*ours, OSError, MemoryError, torch.OutOfMemoryError))


def describe(error: Exception) -> str:
    """One line for a person."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "out of memory; try a smaller --tile"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) if is_expected(error) else f"{error!r}, a defect; --debug shows where"

"""How many steps fit into a time: for `--steps auto` and `--decay auto`, before the first step that counts."""

import time
from collections.abc import Callable

from edsr.devices import ProcessGroup

from .run_log import LOG_EVERY
from .step import TrainStep

# What measuring takes: this share of the time and 10 s at most, but MIN_CHUNKS chunks of steps at least, unless those
# take longer than MAX_SHARE of the time or MAX_SECONDS; one chunk in any case.
SHARE, SECONDS, MIN_CHUNKS = 0.01, 10.0, 3
MAX_SHARE, MAX_SECONDS = 0.03, 15.0
OVERHEAD = 0.04  # of the time for validating and saving, see edsr.training.intervals
FINISH_SECONDS = 3.0  # for the last validation, checkpoint and plot; no more than a twentieth of what is left


def measure_speed(
    train_step: TrainStep,
    group: ProcessGroup,
    first: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> float:
    """Measures how many steps a second a run makes.

    Takes some, and leaves `train_step` with the bits that it had. What comes before steps are as fast as they will be,
    as compiling and recording do, is not counted.

    Args:
        train_step: What makes steps.
        group: The processes, which all take as many steps; what one gets is its own.
        first: Number of the first step.
        seconds: Time of the whole run.
        clock: Gives seconds.
    """
    before = {name: tensor.clone() for name, tensor in train_step.tensors().items()}
    begun = clock()
    at = first
    while train_step.warm_up_steps:  # of several scales, all
        more = min(train_step.warm_up_steps, train_step.max_steps)
        train_step.run(at, [0.0] * more)
        at += more
    count, steps, chunks, enough = min(train_step.max_steps, LOG_EVERY), 0, 0, False
    timed = clock()
    while not enough:
        losses = train_step.run(first + steps, [0.0] * count)
        steps, chunks = steps + count, chunks + 1
        spent, few = clock() - begun, chunks < MIN_CHUNKS
        enough = spent >= min(MAX_SHARE * seconds, MAX_SECONDS) or (not few and spent >= min(SHARE * seconds, SECONDS))
        enough = group.mean([*losses, float(group.is_main and enough)])[-1] > 0  # as losses travel in training
    measured = steps / max(clock() - timed, 1e-9)
    for name, tensor in train_step.tensors().items():
        tensor.copy_(before[name])
    train_step.other_losses()  # which are those of no step of the run
    return measured


def steps_that_fit(speed: float, seconds: float) -> int:
    """Steps, one at least, that fit into the seconds left at `speed` steps a second, with validating and saving."""
    return max(1, int(speed * (1 - OVERHEAD) * (seconds - min(FINISH_SECONDS, seconds / 20))))


def describe(speed: float, steps: int, minutes: float) -> str:
    """A line for a person."""
    a_second = f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}"
    return f"{a_second} steps a second: {steps:,} steps until the {minutes:g} minutes are over"

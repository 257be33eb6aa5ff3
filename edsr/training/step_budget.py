"""How many steps fit into a time: what `--steps auto` and `--decay auto` ask, before the first step that counts."""

import time
from collections.abc import Callable

from edsr.devices import ProcessGroup

from .run_log import LOG_EVERY
from .step import TrainStep

MEASURED = 0.01  # of the time is spent on measuring, 10 s at most; more where that is not PORTIONS portions of steps
MOST = 0.03, 15.0  # of the time, and in seconds: what measuring takes at most, but for one portion
PORTIONS = 3
LOOKED_AT = 0.04  # of the time for validating and saving, see edsr.training.intervals
ENDING = 3.0  # seconds for the last validation, checkpoint and plot; no more than a twentieth of what is left


def rate(
    stepper: TrainStep, ranks: ProcessGroup, first: int, seconds: float, clock: Callable[[], float] = time.monotonic
) -> float:
    """Steps a second of those from step `first` on, `seconds` being the time of the whole run.

    Takes some, and leaves `stepper` with the bits that it had. What comes before steps are as fast as they will be, as
    compiling and recording do, is not counted. What one process gets is its own; all take as many steps.
    """
    before = {name: tensor.clone() for name, tensor in stepper.tensors().items()}
    begun = clock()
    while stepper.slow:
        stepper.run(first, [0.0] * min(stepper.slow, stepper.most))
    count, steps, portions, enough = min(stepper.most, LOG_EVERY), 0, 0, False
    timed = clock()
    while not enough:
        losses = stepper.run(first + steps, [0.0] * count)
        steps, portions = steps + count, portions + 1
        spent, short = clock() - begun, portions < PORTIONS
        enough = spent >= min(MOST[0] * seconds, MOST[1]) or (not short and spent >= min(MEASURED * seconds, 10.0))
        enough = ranks.mean([*losses, float(ranks.is_main and enough)])[-1] > 0  # as losses travel in training
    measured = steps / max(clock() - timed, 1e-9)
    for name, tensor in stepper.tensors().items():
        tensor.copy_(before[name])
    return measured


def fitting(rate: float, left: float) -> int:
    """Steps, one at least, that fit into `left` seconds at `rate` a second, with all that a run does beside them."""
    return max(1, int(rate * (1 - LOOKED_AT) * (left - min(ENDING, left / 20))))


def told(rate: float, steps: int, minutes: float) -> str:
    a_second = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
    return f"{a_second} steps a second: {steps:,} steps until the {minutes:g} minutes are over"

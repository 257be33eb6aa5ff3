"""What can be learned about a run before it is begun, without writing anything into its folder: how long it will take,
and which learning rates it stands."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator

from edsr.devices import ProcessGroup
from edsr.wording import option

from . import step_budget, summary
from .config import TrainConfig
from .lock import RunLock
from .resuming import resolve_start
from .run_log import LOG_EVERY
from .trainer import Trainer

logger = logging.getLogger(__name__)

MEASURED_AS = 300.0  # seconds of the run whose speed is measured: that takes a hundredth, 3 s, or three chunks of steps
LOWEST, HIGHEST = 1e-6, 1.0  # learning rates tried
SMOOTHING = 0.9  # of losses: about ten steps
SETTLING = 10  # steps, a fifth of them at most, after which smoothed losses are more than a few noisy batches
CLEARLY = 0.8  # of the loss it began with: what lies above is taken for noise
DIVERGED = 3.0  # times the lowest loss ends the test
MARGIN = 10.0  # between the rate where the loss was lowest and the peak that is proposed


def dry_run(config: TrainConfig) -> None:
    """Does all that comes before a run's first step, and logs the table and the time of the run.

    Raises:
        DataError, WeightsError, BackendError, TrainError, CheckpointError: As the run would.
    """
    with _prepared(config) as run:
        if run.step < run.last_step:
            speed = step_budget.measure_speed(run.train_step, run.group, run.step, MEASURED_AS)
            _log(run, summary.time_row(speed, run.last_step - run.step))
        _log(run, f"nothing is trained, and nothing written into {run.folder}")


def find_learning_rate(config: TrainConfig, steps: int) -> float | None:
    """The learning-rate range test (Smith 2017, arXiv:1506.01186).

    The rate grows from LOWEST to HIGHEST in so many steps, by the same factor each, until the loss is DIVERGED times
    its lowest. Logs rates and losses, a line whenever the rate has doubled, and a rate to try.

    Returns:
        A peak to try with --lr: the rate where the smoothed loss was lowest, less MARGIN. Where it never fell clearly,
        as from trained weights, the last rate before it rose takes that one's place. None if nothing can be said; never
        less than LOWEST.

    Raises:
        DataError, WeightsError, BackendError, TrainError, CheckpointError: As the run would.
    """
    with _prepared(config) as run:
        growth = (HIGHEST / LOWEST) ** (1 / max(1, steps - 1))
        settled, mean, said = min(SETTLING, steps // 5), 0.0, -math.inf
        begin, lowest, best, before_rise = math.inf, math.inf, LOWEST, LOWEST
        rises = False
        step = 0
        while step < steps:
            count = min(run.train_step.max_steps, LOG_EVERY, steps - step)
            rates = [LOWEST * growth**k for k in range(step, step + count)]
            losses = run.group.mean(run.train_step.run(run.step + step, rates))
            for rate, loss in zip(rates, losses, strict=True):
                step += 1
                mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
                smooth = mean / (1 - SMOOTHING**step)
                if not smooth <= DIVERGED * lowest:
                    _log(run, f"learning rate {rate:.2g}: the loss diverges")
                    rises, step = True, steps
                    break
                if math.log10(rate) - said >= 0.3:
                    said = math.log10(rate)
                    _log(run, f"learning rate {rate:.2g}: loss {smooth:.5f}")
                if step < settled:
                    continue
                if step == settled:
                    begin = smooth
                if smooth < lowest:
                    lowest, best = smooth, rate
                rises = smooth * CLEARLY > begin
                before_rise = before_rise if rises else rate
        fell = lowest < CLEARLY * begin
        what = f"lowest at {best:.2g}"
        if not fell:
            best, what = before_rise, "the loss never fell clearly below where it began"
            what += f", and rises beyond {best:.2g}" if rises else ""
        if not fell and (not rises or best < MARGIN * LOWEST):
            _log(run, f"{what}; no peak to propose")
            return None
        peak = max(best / MARGIN, LOWEST)
        _log(run, f"{what}; a peak to try: {option('lr', float(f'{peak:.1g}'))}")
        return peak


@contextlib.contextmanager
def _prepared(config: TrainConfig) -> Iterator[Trainer]:
    """A run as it is before its first step; its folder is not written into."""
    group, lock, run = ProcessGroup(config.device), RunLock(), None
    try:
        start = resolve_start(config, group, lock)
        run = Trainer(start, group, lambda done, total: None, time.monotonic, time.monotonic())
        with contextlib.closing(run):
            run.log_table()
            yield run
    finally:
        run = None  # what talks to other processes goes before the group does
        lock.close()
        group.leave()


def _log(run: Trainer, line: str) -> None:
    if run.group.is_main:
        logger.info(line)

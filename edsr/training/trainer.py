"""Training from folders of images (Lim et al. 2017, section 4.2), on one device or, under torchrun, on many.

A run folder holds `last.safetensors` and `best.safetensors`, averaged weights that `upscale --model` takes;
`checkpoint-*`, from which a stopped run continues as if it had not been stopped (`edsr.training.checkpoint`); and what
`edsr.training.run_log` writes. A run is determined by its options and images alone: patches depend on (seed, step),
initial weights on the seed, and nothing else is random, so that a checkpoint needs no state of a random generator.
"""

import contextlib
import gc
import logging
import math
import time
import zlib
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from edsr.devices import ProcessGroup
from edsr.errors import CheckpointError, DivergenceError, TrainError, WeightsError
from edsr.wording import named, option

from . import checkpoint, config_file, recipe, resuming, setup, step_budget, summary
from .checkpoint import Checkpoint
from .config import ADVERSARIAL, AUTO, TrainConfig
from .consistency import remembered, run_signature
from .intervals import MIN_SAVE_SECONDS, IntervalTrigger
from .lock import RunLock, make_folder
from .progress import Progress
from .publishing import publish, published, published_score, scores_by_name
from .resuming import RunStart
from .run_log import LOG_EVERY, RunLogger
from .run_record import check_record
from .validation import Scores, ValidationSets, mean_absolute_error, probe_patches

logger = logging.getLogger(__name__)

# A run that ends with so many times the error that it began with logs it; with DivergenceMonitor.JUMP, it has failed.
WORSE = 1.25
MAX_ROLLBACKS = 3  # times a run may go back to its last checkpoint with half the learning rate


def train(
    config: TrainConfig,
    stopping: Callable[[], bool] = lambda: False,
    validating: Callable[[int, int], object] = lambda done, total: None,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Progress, None, bool]:
    """Trains, yielding after each step, on a GPU after each chunk of steps; closing the iterator saves and ends it.

    Args:
        config: What to train.
        stopping: Asked between chunks; once it is true (in any process), the run is saved and ends.
        validating: Called while the network is validated, with how many images are done, of how many.
        clock: Gives seconds.

    Returns:
        Whether the run ended because `stopping` was true in this process or another.

    Raises:
        DataError, WeightsError, BackendError, TrainError: Before the first step.
        TrainError, CheckpointError: Later.
    """
    started = clock()
    group = ProcessGroup(config.device)
    run, lock = None, RunLock()
    try:
        run = Trainer(resuming.resolve_start(config, group, lock), group, validating, clock, started)
        with contextlib.closing(run):
            run.begin(lock)
            return (yield from run.steps(stopping))
    finally:
        run = None  # what talks to other processes goes before the group does
        lock.close()
        group.leave()


class Trainer:
    """One run between its start and its end.

    `step` steps are done, `saved_step` of them safe on disk.
    """

    def __init__(
        self,
        start: RunStart,
        group: ProcessGroup,
        watch: Callable[[int, int], object],
        clock: Callable[[], float],
        started: float,
    ):
        config, loaded, self.is_new, self.decay = start
        self.group, self.watch, self.clock, self.started = group, watch, clock, started
        self.config, self.folder = config, Path(config.out)
        images, held_out = setup.load_images(config, group)
        self.probe = probe_patches(images[0], config.degradation)
        # In the main process, which alone measures.
        self.validation = ValidationSets(held_out, config.degradation) if held_out and group.is_main else None
        self._ranked = self.validation is not None and config.model != ADVERSARIAL  # whether the best PSNR is best
        model = setup.build_model(config, group)
        if group.device.type == "cuda":
            torch.backends.cudnn.benchmark = not config.deterministic
            torch.use_deterministic_algorithms(config.deterministic)
            # Every element is written before it is read. (torch's stub leaves this one out.)
            torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        execution = setup.choose_execution(config, group.device, model)
        self._make_step = setup.step_factory(config, group, model, images, execution)
        self.train_step = self._make_step(self._ema_decay(config.steps))

        self.divergence, self.initial_error = recipe.DivergenceMonitor(config.loss), None
        self.step, self.best_psnr, self.lr_factor, self.rollbacks, self.seconds = 0, -math.inf, 1.0, 0, 0.0
        self.images = [len(images[0]), zlib.crc32(b"".join(of_scale.index.tobytes() for of_scale in images))]
        if config.resume:
            self._restore(loaded)
        self.initial_error = self._measure_start() if self.initial_error is None else self.initial_error
        if config.steps == AUTO:
            self._fix_steps()
        self.validating = IntervalTrigger(config.interval(config.val_every), LOG_EVERY, clock=clock)
        self.saving = IntervalTrigger(config.interval(config.save_every), min_seconds=MIN_SAVE_SECONDS, clock=clock)
        self.unlogged_losses: list[float] = []
        self.run_log: RunLogger | None = None
        self.stopwatch = summary.Stopwatch()
        self.table = summary.rows(self.config, group, execution, model, images, self.validation)

    def _log(self, line: str) -> None:
        """Of several processes the main one logs."""
        if self.group.is_main:
            logger.info(line)

    def _ema_decay(self, steps: int | str) -> float:
        """How much of the averaged weights stays from step to step, in a run of so many."""
        if steps == AUTO:  # as most runs that are not short; who fixes the steps asks again
            return recipe.ema_decay(0, "wsd")
        if self.decay is not None:  # what comes out is to be of the small rates, not of what was before
            return recipe.ema_decay(int(steps) - self.decay.first)
        return recipe.ema_decay(int(steps), self.config.schedule)

    def _measure_start(self) -> float:
        """The error of what the run starts from, as all processes measure it. Raises DivergenceError."""
        error = mean_absolute_error(self.train_step.ema, self.probe)
        if not error <= self.divergence.JUMP * recipe.UNTRAINED:
            raise DivergenceError(
                f"{self.folder}: what it would go on from has diverged (it is off by {error:.3g}, a gray image by "
                f"{recipe.UNTRAINED} at most); start anew with a smaller {named('lr')}, or from other weights"
            )
        return error

    def _failure(self) -> str | None:
        """Why the run must not end here, the same in all processes; None if it may."""
        if self.divergence.suspicion is not None:
            return self.divergence.suspicion
        now = mean_absolute_error(self.train_step.ema, self.probe)
        initial = max(recipe.LEVEL, min(self.initial_error or 0.0, recipe.UNTRAINED))
        finding = f"the network is {now:.3g} off the target, where it began with {initial:.3g}"
        if self.group.any(self.group.is_main and not now <= self.divergence.JUMP * initial):
            return finding
        if now > WORSE * initial and self.config.model != ADVERSARIAL:
            self._log(f"{finding}: that was better; try a smaller {named('lr')}, or more steps")
        return None

    def _fix_steps(self) -> None:
        """Sets as many steps as fit into the minutes; what the run began with stays as it was."""
        minutes = self.config.minutes or 0
        speed = step_budget.measure_speed(self.train_step, self.group, self.step, 60 * minutes, self.clock)
        count = step_budget.steps_that_fit(speed, self.started + 60 * minutes - self.clock())
        fixed = self.group.broadcast([], {"steps": self.step + count})
        assert fixed is not None
        ema_decay = self._ema_decay(fixed["steps"])
        if ema_decay != self._ema_decay(AUTO):
            before = self.train_step.tensors()
            del self.train_step  # with its graph, and hooks on gradients, for other processes, which lie in cycles
            gc.collect()
            self.train_step = self._make_step(ema_decay)
            for name, tensor in self.train_step.tensors().items():
                tensor.copy_(before[name])
        self.config = replace(self.config, steps=fixed["steps"])
        self._log(step_budget.describe(speed, count, minutes))

    def log_table(self) -> None:
        """Logs what the run is, unless it is at its end."""
        for row in self.table if self.step < self.last_step else ():
            self._log(row)

    def begin(self, lock: RunLock) -> None:
        """Logs what will be done, and saves the beginning, so that there is something to go back to."""
        if self.decay is not None and self.is_new:
            falling = f"{self.lr_factor * self.config.lr * self.decay.lr_share:.3g}"
            where = f"step {self.step} of {self.decay.source}"
            self._log(f"{self.folder}: from {where} on the learning rate falls from {falling} to 0")
        elif not self.is_new:
            self._log(f"resuming {self.folder} at step {self.step}")
        self.saved_step = -1 if self.is_new else self.step
        if self.group.is_main:
            make_folder(self.folder)
            lock.acquire(self.folder)
            if self.is_new and checkpoint.exists(self.folder):  # made while this process read its images
                raise TrainError(f"{self.folder} holds a run by now; add {option('resume')} to continue it")
        self._save(None)
        if self.group.is_main:
            if self.decay is None:  # which options alone do not make
                config_file.write(self.config, self.folder)
            self.run_log = RunLogger(self.folder, self.step, self.config.wandb)
        self.log_table()

    def close(self) -> None:
        self.train_step.close()
        if self.run_log is not None:
            self.run_log.close()

    @property
    def last_step(self) -> int:
        """Steps in all."""
        return int(self.config.steps)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, numbered from 0."""
        if self.decay is not None:
            return self.lr_factor * self.decay.learning_rate(step, self.last_step, self.config.lr)
        return self.lr_factor * recipe.learning_rate(step, self.last_step, self.config.lr, self.config.schedule)

    def steps(self, stopping: Callable[[], bool]) -> Generator[Progress, None, bool]:
        """Takes the steps that are left; see `train`."""
        interrupted = late = False
        if self.step >= self.last_step:
            self._log(f"{self.folder}: has had its {self.last_step} steps already")
        try:
            while self.step < self.last_step and not (interrupted or late):
                yield self.run_chunk()
                flags = self.group.mean([float(stopping()), float(self._is_late())])
                interrupted, late = (flag > 0 for flag in flags)
        except GeneratorExit:  # closed at its yield, where the state is whole, as it need not be after other exceptions
            self._save(None)
            raise
        self._save(None)
        return interrupted

    def _is_late(self) -> bool:
        minutes = self.config.minutes
        return minutes is not None and self.clock() - self.started > 60 * minutes

    def run_chunk(self) -> Progress:
        """Takes as many steps as come before something may be due."""
        first, started, warm = self.step, time.perf_counter(), not self.train_step.warm_up_steps
        ends = [_next_multiple(first, n) for n in (self.validating.every, self.saving.every, LOG_EVERY) if n]
        count = min(*ends, self.last_step, first + self.train_step.max_steps) - first
        rates = [self.learning_rate(step) for step in range(first, first + count)]
        losses = self.train_step.run(first, rates)
        # Clocks differ: what is due by the main process's is due. It says so along with the losses.
        due = [self.group.is_main and trigger.due(first + count) for trigger in (self.validating, self.saving)]
        *losses, validate_now, save_now = self.group.mean([*losses, *map(float, due)])
        diverged = self.divergence(losses)
        self.step += count
        ended = self.step == self.last_step
        validate_now, save_now = validate_now > 0 or ended, save_now > 0 or ended
        if diverged is None and (validate_now or save_now) and not self.train_step.is_finite():
            diverged = count - 1, "a weight is not finite"
        if diverged is None and ended and (reason := self._failure()) is not None:
            diverged = count - 1, reason
        if diverged is not None:
            index, reason = diverged
            self._roll_back(first + index + 1, reason)
            return Progress(self.step, self.last_step, self.folder, losses[index], rates[index], 0.0, rolled_back=True)
        elapsed = time.perf_counter() - started
        speed = count * self.config.batch / elapsed
        self.seconds += elapsed
        if warm and (row := self.stopwatch.add(count, elapsed, self.last_step - self.step)) is not None:
            self._log(row)
        self.unlogged_losses += losses
        if self.divergence.suspicion is not None:  # neither published nor gone back to, unless the loss falls again
            validate_now = save_now = False
        scores = self._validate() if validate_now else None
        mean_loss = float(np.mean(self.unlogged_losses))
        logged = self.step % LOG_EVERY == 0 or scores is not None or ended
        if logged and self.run_log is not None:
            values = {"patches_per_second": round(speed, 2), "seconds": round(self.seconds, 2)}
            values |= self.train_step.other_losses()
            self.run_log.log(self.step, loss=mean_loss, lr=rates[-1], **values, **scores_by_name(scores, "psnr"))
        if logged:
            self.unlogged_losses = []
        if save_now:
            self._save(scores)
        done = Progress(self.step, self.last_step, self.folder, float(np.mean(losses)), rates[-1], speed)
        done = replace(done, mean_loss=mean_loss, logged=logged)
        return (
            done
            if scores is None
            else replace(done, psnr=scores.psnr, psnr_degraded=scores.degraded, psnr_sets=scores.sets)
        )

    def _validate(self) -> Scores | None:
        """In the main process alone; the others wait at their next step."""
        if self.validation is None:
            return None
        with self.validating.timed():
            scores, samples = self.validation.measure(self.train_step.ema, self.watch)
            if self.run_log is not None:
                self.run_log.log_images(self.step, samples)
            least = self.validation.bicubic.psnr
            if self._ranked and self.step == self.last_step and scores.psnr < least:
                finding = f"validation is {scores.psnr:.2f} dB, where bicubic has {least:.2f}"
                self._log(f"{finding}: too little is learned so far")
            if self._ranked and scores.mean > self.best_psnr:
                self.best_psnr = scores.mean
                self._publish("best", scores)
        return scores

    def _roll_back(self, step: int, reason: str) -> None:
        """Goes back to the last checkpoint, with half the learning rate from there on."""
        rollbacks, factor = self.rollbacks + 1, self.lr_factor / 2
        if rollbacks > MAX_ROLLBACKS:
            raise DivergenceError(
                f"at step {step} {reason}, for the {rollbacks}th time, with {self.lr_factor:g} of the learning rate; "
                f"start again with a smaller {named('lr')}, or look at the images"
            )
        # It may have begun before it was detected, by a mean over some steps.
        before = step - recipe.DivergenceMonitor.FAST
        self._restore(checkpoint.load_latest(self.folder, before, check_record) if self.group.is_main else None)
        self.train_step.other_losses()
        self.rollbacks, self.lr_factor, self.unlogged_losses, self.saved_step = rollbacks, factor, [], self.step
        if self.group.is_main:  # so that a run resumed before the next one goes on from here, and as this one does
            checkpoint.remove_later(self.folder, self.step)
            checkpoint.write(self.folder, Checkpoint(self.step, self.train_step.tensors(), self._record()))
        if self.run_log is not None:
            self.run_log.roll_back(self.step)
            self.run_log.log(self.step, rollbacks=rollbacks, lr_factor=factor)
        self._log(f"at step {step} {reason}: back to step {self.step}, with {factor:g} of the learning rate")

    def _save(self, scores: Scores | None) -> None:
        """Writes a checkpoint, and the latest weights for upscale --model, in the main process."""
        if self.step == self.saved_step:
            return
        beginning = self.saved_step < 0
        if self.divergence.suspicion is not None and not beginning:
            self._log(f"step {self.step} is not saved, step {self.saved_step} is: {self.divergence.suspicion}")
            return
        if self.group.is_main:
            with self.saving.timed():
                if not beginning:
                    self._publish("last", scores)
                    # The last is all that can be called best where nothing is validated, or PSNR is not what is wanted.
                    if not self._ranked or not published(self.folder, "best").exists():
                        self._publish("best", scores)
                checkpoint.write(self.folder, Checkpoint(self.step, self.train_step.tensors(), self._record()))
        self.saved_step = self.step

    def _publish(self, name: str, scores: Scores | None) -> None:
        path, more = published(self.folder, name), {"decay": self.decay, "lr_factor": self.lr_factor, "scores": scores}
        try:
            publish(self.train_step.ema, path, self.config, self.step, self.images[0], **more)
        except WeightsError as error:
            safe = f"step {self.saved_step} is safe; make room, then continue with {option('resume')}"
            raise CheckpointError(f"{error}; {safe}") from None

    def _record(self) -> dict:
        """What a checkpoint keeps beside tensors."""
        return {
            "options": run_signature(self.config),
            "remembered": remembered(self.config),
            "decay": self.decay and [*self.decay],
            "images": self.images,
            "seconds": self.seconds,
            "best_psnr": self.best_psnr if math.isfinite(self.best_psnr) else None,
            "divergence": self.divergence.state(),
            "lr_factor": self.lr_factor,
            "rollbacks": self.rollbacks,
            "initial_error": self.initial_error,
        }

    def _restore(self, loaded: Checkpoint | None) -> None:
        """Takes the state from a checkpoint. loaded: None in all processes but the main one, which tells them."""
        own = self.train_step.tensors()
        if loaded is not None:
            if {k: t.shape for k, t in loaded.tensors.items()} != {k: t.shape for k, t in own.items()}:
                raise TrainError(f"{self.folder}: its checkpoint is of another network; choose another {named('out')}")
            for name, tensor in own.items():
                tensor.copy_(loaded.tensors[name])
        record = None if loaded is None else loaded.record | {"step": loaded.step}
        record = self.group.broadcast(own.values(), record)
        assert record is not None
        self.step, self.seconds = record["step"], record["seconds"]
        self.best_psnr = -math.inf if record["best_psnr"] is None else record["best_psnr"]
        self.lr_factor, self.rollbacks = record["lr_factor"], record["rollbacks"]
        if self.group.is_main and self.config.interval(self.config.val_every) is None:
            # Nobody would validate at that step again.
            self.best_psnr = max(self.best_psnr, published_score(published(self.folder, "best")))
        if record["images"] == self.images:
            self.divergence.restore(record["divergence"])
            self.initial_error = record.get("initial_error", self.initial_error)
        else:
            self.divergence = recipe.DivergenceMonitor(self.config.loss)  # others may be harder
            self._log("the images are not those this run began with; it goes on, but not as it would have")


def _next_multiple(step: int, every: int) -> int:
    return (step // every + 1) * every

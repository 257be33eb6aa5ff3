"""Training from folders of images (Lim et al. 2017, section 4.2), on one device or, under torchrun, on many.

A run folder holds `last.safetensors` and `best.safetensors`, averaged weights that `upscale --model` takes;
`checkpoint-*`, from which a stopped run continues as if it had not been stopped (`edsr.training.checkpoint`); and what
`edsr.training.run_log` writes. A run is decided by its options and images alone: patches depend on (seed, step),
weights at the start on the seed, and nothing else is random, so that a checkpoint needs no state of a random generator.
"""

import contextlib
import gc
import math
import time
import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edsr.data import PatchLoader
from edsr.devices import ProcessGroup
from edsr.errors import TrainError, WeightsError
from edsr.models import EDSR, PRESETS, worth_collapsing
from edsr.weights import read_info, save_model

from . import checkpoint, recipe, resuming, setup, step_budget
from .checkpoint import Checkpoint
from .config import AUTO, TrainConfig, remembered, run_signature
from .intervals import APART, Cadence
from .resuming import Origin
from .run_log import LOG_EVERY, RunLogger
from .step import TrainStep
from .validation import Scores, misfit, plain, probe, validate, worsened

WORSE = 1.25  # times the misfit that a run began with: one that ends with more is told; with Watch.JUMP, it has failed
MAX_ROLLBACKS = 3  # times a run may go back to its last checkpoint with half the learning rate


@dataclass(frozen=True)
class Progress:
    """Steps done, of `steps` in all, of the run in `folder`. loss: its mean over those just done. psnr: dB on luma over
    the validation images, where just measured; psnr_degraded: over the same degraded, of a run that trains on such.
    speed: patches a second, over all processes."""

    step: int
    steps: int
    folder: Path
    loss: float
    lr: float
    speed: float
    psnr: float | None = None
    psnr_degraded: float | None = None

    @property
    def validated(self) -> str:
        """What was just measured, for a person; "" where nothing was."""
        more = "" if self.psnr_degraded is None else f", degraded {self.psnr_degraded:.3f} dB"
        return "" if self.psnr is None else f"{self.psnr:.3f} dB{more}"

    @property
    def finished(self) -> bool:
        """Whether the run is at its end."""
        return self.step == self.steps


def train(
    options: TrainConfig,
    say: Callable[[str], None] = lambda line: None,
    stopping: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Progress, None, None]:
    """Runs `options`, yielding after each step, on a GPU after each portion of them.

    say: told in one line what a person should know. stopping: asked between portions; once it is true (in any
    process), the run is saved and ends. Closing the iterator saves and ends it, too. clock: tells seconds. Raises
    DataError, WeightsError, BackendError or TrainError before the first step, TrainError or CheckpointError later.
    """
    begun = clock()
    ranks = ProcessGroup(options.device)
    say = say if ranks.is_main else lambda line: None
    run = None
    try:
        run = Trainer(resuming.find(options, ranks, say), ranks, say, clock, begun)
        with contextlib.closing(run):
            yield from run.steps(stopping)
    finally:
        run = None  # what talks to other processes goes before the group does
        ranks.leave()


class Trainer:
    """One run between its start and its end. `step` steps are done, `saved` of them safe on disk."""

    def __init__(
        self,
        origin: Origin,
        ranks: ProcessGroup,
        say: Callable[[str], None],
        clock: Callable[[], float],
        begun: float,
    ):
        options, found, self.begins, self.decay = origin
        self.ranks, self.say, self.clock, self.begun = ranks, say, clock, begun
        self.options, self.folder = options, Path(options.out)
        images, self.validation = setup.images(options, ranks, say)
        self.probe = probe(images, options.degradation)
        self.worsened = None
        if options.degradation and self.validation and ranks.is_main:
            self.worsened = worsened(self.validation, options.degradation)

        torch.manual_seed(options.seed)
        model = EDSR(replace(PRESETS[options.model], scale=options.scale))
        if not options.resume:
            setup.initialize(model, options, say)
        model.to(ranks.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: torch's stub
        if ranks.device.type == "cuda":
            torch.backends.cudnn.benchmark = not options.deterministic
            torch.use_deterministic_algorithms(options.deterministic)
            # Every element is written before it is read. (torch's stub leaves this one out.)
            torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        block = setup.block(options, model, ranks)
        share = (ranks.rank, ranks.world)
        feed = PatchLoader(
            images, options.patch, options.batch, options.seed, ranks.device, block, share, options.degradation
        )
        dtype = setup.dtype(options, ranks)
        ops = setup.ops(options, ranks, dtype, model.config.features, say)
        collapsed = worth_collapsing(ranks.device, options.batch // ranks.world * options.patch**2)
        self._build = lambda averaging: TrainStep(
            model, feed, ranks, options.loss, averaging, dtype, ops, options.graph, say, collapsed
        )
        self.stepper = self._build(self._averaging(options.steps))

        self.divergence, self.misfit = recipe.DivergenceMonitor(options.loss), None
        self.step, self.best, self.factor, self.rollbacks, self.seconds = 0, -math.inf, 1.0, 0, 0.0
        self.images = [len(images), zlib.crc32(images.index.tobytes())]
        if options.resume:
            self._restore(found)
        self.misfit = self._sound_misfit() if self.misfit is None else self.misfit
        if options.steps == AUTO:
            self._fix_steps()
        self.validating = Cadence(options.every(options.val_every), LOG_EVERY, clock=clock)
        self.saving = Cadence(options.every(options.save_every), apart=APART, clock=clock)
        self.noted: list[float] = []
        self._set_out()

    def _averaging(self, steps: int | str) -> float:
        """How much of the averaged weights stays from step to step, in a run of so many."""
        if steps == AUTO:  # as most runs that are not short; who fixes the steps asks again
            return recipe.ema_decay(0, "wsd")
        if self.decay is not None:  # what comes out is to be of the small rates, not of what was before
            return recipe.ema_decay(int(steps) - self.decay.first)
        return recipe.ema_decay(int(steps), self.options.schedule)

    def _sound_misfit(self) -> float:
        """Of what the run sets out with, by all processes alike. Raises TrainError if that has diverged."""
        value = misfit(self.stepper.ema, self.probe)
        if not value <= self.divergence.JUMP * recipe.UNTRAINED:
            raise TrainError(
                f"{self.folder}: what it would go on from has diverged (it is off by {value:.3g}, a gray image by "
                f"{recipe.UNTRAINED} at most); start anew with a smaller --lr, or from other weights"
            )
        return value

    def _failed(self) -> str | None:
        """Why the end of a run is none, the same in all processes."""
        if self.divergence.doubt is not None:
            return self.divergence.doubt
        now = misfit(self.stepper.ema, self.probe)
        began = max(recipe.LEVEL, min(self.misfit or 0.0, recipe.UNTRAINED))
        found = f"the network is {now:.3g} off the truth, where it began with {began:.3g}"
        if self.ranks.any(self.ranks.is_main and not now <= self.divergence.JUMP * began):
            return found
        if now > WORSE * began:
            self.say(f"{found}: that was better; try a smaller --lr, or more steps")
        return None

    def _fix_steps(self) -> None:
        """As many as fit into the minutes, with what the run began with as it was."""
        minutes = self.options.minutes or 0
        rate = step_budget.rate(self.stepper, self.ranks, self.step, 60 * minutes, self.clock)
        count = step_budget.fitting(rate, self.begun + 60 * minutes - self.clock())
        fixed = self.ranks.broadcast([], {"steps": self.step + count})
        assert fixed is not None
        averaging = self._averaging(fixed["steps"])
        if averaging != self._averaging(AUTO):
            before = self.stepper.tensors()
            del self.stepper  # with its graph, and what listens to gradients for other processes, which lies in cycles
            gc.collect()
            self.stepper = self._build(averaging)
            for name, tensor in self.stepper.tensors().items():
                tensor.copy_(before[name])
        self.options = replace(self.options, steps=fixed["steps"])
        self.say(step_budget.told(rate, count, minutes))

    def _set_out(self) -> None:
        """Says what will be done, and saves the beginning, so that there is something to go back to."""
        if self.decay is not None and self.begins:
            falling = f"{self.factor * self.options.lr * self.decay.share:.3g}"
            where = f"step {self.step} of {self.decay.source}"
            self.say(f"{self.folder}: from {where} on the learning rate falls from {falling} to 0")
        elif not self.begins:
            self.say(f"resuming {self.folder} at step {self.step}")
        self.saved = -1 if self.begins else self.step  # what is on disk already
        self.journal = None
        if self.ranks.is_main:
            _make(self.folder)
        self._save(None)
        if self.ranks.is_main:
            self.journal = RunLogger(self.folder, self.step, self.say)

    def close(self) -> None:
        self.stepper.close()
        if self.journal is not None:
            self.journal.close()

    @property
    def last(self) -> int:
        """Steps in all."""
        return int(self.options.steps)

    def rate(self, step: int) -> float:
        """Of learning."""
        options = self.options
        if self.decay is not None:
            return self.factor * self.decay.rate(step, self.last, options.lr)
        return self.factor * recipe.learning_rate(step, self.last, options.lr, options.schedule)

    def steps(self, stopping: Callable[[], bool]) -> Generator[Progress, None, None]:
        if self.step >= self.last:
            self.say(f"{self.folder}: has had its {self.last} steps already")
        try:
            while self.step < self.last:
                yield self._run_chunk()
                if self.ranks.any(stopping() or self._late()):
                    break
        except GeneratorExit:  # closed at its yield, where the state is whole, as it need not be after other exceptions
            self._save(None)
            raise
        self._save(None)

    def _run_chunk(self) -> Progress:
        """As many steps as come before something may be due."""
        first, begun = self.step, time.perf_counter()
        ends = [_next(first, every) for every in (self.validating.every, self.saving.every, LOG_EVERY) if every]
        count = min(*ends, self.last, first + self.stepper.most) - first
        rates = [self.rate(step) for step in range(first, first + count)]
        losses = self.stepper.run(first, rates)
        # Clocks differ: what is due by the first process's is due. It says so along with the losses.
        due = [self.ranks.is_main and cadence.due(first + count) for cadence in (self.validating, self.saving)]
        *losses, look, save = self.ranks.mean([*losses, *map(float, due)])
        wrong = self.divergence(losses)
        self.step += count
        ended = self.step == self.last
        look, save = look > 0 or ended, save > 0 or ended
        if wrong is None and (look or save) and not self.stepper.finite():
            wrong = count - 1, "a weight is not finite"
        if wrong is None and ended and (why := self._failed()) is not None:
            wrong = count - 1, why
        if wrong is not None:
            self._roll_back(first + wrong[0] + 1, wrong[1])
            return Progress(self.step, self.last, self.folder, losses[wrong[0]], rates[wrong[0]], 0.0)
        elapsed = time.perf_counter() - begun
        speed = count * self.options.batch / elapsed
        self.seconds += elapsed
        self.noted += losses
        if self.divergence.doubt is not None:  # neither published nor gone back to, unless the loss comes down again
            look = save = False
        scores = self._validate() if look else None
        if self.journal is not None and (self.step % LOG_EVERY == 0 or scores is not None or ended):
            values = {"loss": float(np.mean(self.noted)), "lr": rates[-1], "patches_per_second": round(speed, 2)}
            values |= {"seconds": round(self.seconds, 2)} | _told(scores, "psnr")
            self.journal.log(self.step, **values)
            self.noted = []
        if save:
            self._save(scores)
        told = _told(scores, "psnr")
        return Progress(self.step, self.last, self.folder, float(np.mean(losses)), rates[-1], speed, **told)

    def _validate(self) -> Scores | None:
        """In the first process alone; the others wait at their next step."""
        if not self.ranks.is_main or self.validation is None:
            return None
        with self.validating.measured():
            psnr, samples = validate(self.stepper.ema, self.validation, self.options.scale)
            scores = Scores(psnr)
            if self.worsened is not None:
                psnr_degraded, more = validate(self.stepper.ema, self.worsened, self.options.scale)
                scores = Scores(psnr, psnr_degraded)
                samples |= {f"degraded-{name}": sample for name, sample in more.items()}
            if self.journal is not None:
                self.journal.show(self.step, samples)
            if self.step == self.last and psnr < (least := plain(self.validation)):
                self.say(f"validation is {psnr:.2f} dB, where bicubic has {least:.2f}: it has learnt too little so far")
            if scores.both > self.best:
                self.best = scores.both
                self._publish("best", scores)
        return scores

    def _roll_back(self, step: int, why: str) -> None:
        """To the last checkpoint, with half the learning rate from there on."""
        setbacks, factor = self.rollbacks + 1, self.factor / 2
        if setbacks > MAX_ROLLBACKS:
            raise TrainError(
                f"at step {step} {why}, for the {setbacks}th time, with {self.factor:g} of the learning rate; "
                f"start again with a smaller --lr, or look at the images"
            )
        # The trouble may be older than its sign, which is a mean over some steps.
        before = step - recipe.DivergenceMonitor.FAST
        self._restore(checkpoint.load_latest(self.folder, self.say, before) if self.ranks.is_main else None)
        self.rollbacks, self.factor, self.noted, self.saved = setbacks, factor, [], self.step
        if self.journal is not None:
            self.journal.back(self.step)
            self.journal.log(self.step, setbacks=setbacks, lr_factor=factor)
        self.say(f"at step {step} {why}: back to step {self.step}, with {factor:g} of the learning rate")

    def _save(self, scores: Scores | None) -> None:
        """A checkpoint, and the latest weights for upscale --model, by the first process."""
        if self.step == self.saved:
            return
        beginning = self.saved < 0
        if self.divergence.doubt is not None and not beginning:
            self.say(f"step {self.step} is not saved, step {self.saved} is: {self.divergence.doubt}")
            return
        self.saved = self.step
        if not self.ranks.is_main:
            return
        with self.saving.measured():
            if not beginning:
                self._publish("last", scores)
                # Where there is nothing to validate on, the last is all that can be called best.
                if not self.validation or not self._published("best").exists():
                    self._publish("best", scores)
            record = {"options": run_signature(self.options), "remembered": remembered(self.options)}
            record |= {"decay": self.decay and [*self.decay], "pictures": self.images, "seconds": self.seconds}
            record |= {"best": self.best if math.isfinite(self.best) else None, "watch": self.divergence.state()}
            record |= {"factor": self.factor, "setbacks": self.rollbacks, "misfit": self.misfit}
            checkpoint.write(self.folder, Checkpoint(self.step, self.stepper.tensors(), record))

    def _published(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _publish(self, name: str, scores: Scores | None) -> None:
        options = self.options
        training = {"data": [Path(d).name for d in options.data], "pictures": self.images[0], "steps": self.step}
        training |= {k: getattr(options, k) for k in ("batch", "patch", "lr", "loss", "schedule", "seed")}
        training |= {} if self.decay is None else {"decay_from": self.decay.first}
        training |= {} if self.factor == 1 else {"lr_factor": self.factor}
        training |= {} if options.degradation is None else {"degrade": str(options.degradation)}
        training |= {key: round(value, 4) for key, value in _told(scores, "validation_psnr").items()}
        save_model(self.stepper.ema, self._published(name), training=training)

    def _restore(self, found: Checkpoint | None) -> None:
        """found: None in all processes but the first, which tells them."""
        own = self.stepper.tensors()
        if found is not None:
            if found.tensors.keys() != own.keys():
                raise TrainError(f"{self.folder}: its checkpoint is of another network; choose another --out")
            for name, tensor in own.items():
                tensor.copy_(found.tensors[name])
        record = self.ranks.broadcast(own.values(), found.record | {"step": found.step} if found is not None else None)
        assert record is not None
        self.step, self.seconds = record["step"], record["seconds"]
        self.best = -math.inf if record["best"] is None else record["best"]
        self.factor, self.rollbacks = record["factor"], record["setbacks"]
        if self.ranks.is_main and self.options.every(self.options.val_every) is None:
            self.best = max(self.best, _score(self._published("best")))  # nobody would find that step again
        if record["pictures"] == self.images:
            self.divergence.restore(record["watch"])
            self.misfit = record.get("misfit", self.misfit)
        else:
            self.divergence = recipe.DivergenceMonitor(self.options.loss)  # others may be harder
            self.say("the images are not those this run began with; it goes on, but not as it would have")

    def _late(self) -> bool:
        minutes = self.options.minutes
        return minutes is not None and self.clock() - self.begun > 60 * minutes


def _told(scores: Scores | None, name: str) -> dict[str, float]:
    """Of `scores` what there is, by name."""
    values = {} if scores is None else {name: scores.psnr, f"{name}_degraded": scores.degraded}
    return {key: value for key, value in values.items() if value is not None}


def _score(path: Path) -> float:
    """The score of weights that a run has published, -inf if there is none."""
    with contextlib.suppress(WeightsError):
        training = read_info(path)["training"] or {}
        return Scores(training.get("validation_psnr", -math.inf), training.get("validation_psnr_degraded")).both
    return -math.inf


def _make(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainError(f"{run}: cannot be made ({error.strerror}); choose another --out") from None


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every

"""Training from folders of pictures (Lim et al. 2017, section 4.2), on one device or, under torchrun, on many.

A run folder holds `last.safetensors` and `best.safetensors`, averaged weights that `upscale --model` takes;
`checkpoint-*`, from which a stopped run continues as if it had not been stopped (`edsr.checkpoint`); and what
`edsr.journal` writes. A run is decided by its options and pictures alone: patches depend on (seed, step), weights at
the start on the seed, and nothing else is random, so that a checkpoint needs no state of a random generator.
"""

import contextlib
import importlib.util
import math
import time
import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edsr import checkpoint, data, metrics, recipe, weights
from edsr.checkpoint import Checkpoint
from edsr.engine import EngineError
from edsr.journal import NOTED, Journal
from edsr.model import EDSR, PRESETS
from edsr.options import TrainError, TrainOptions, check, compare, identity
from edsr.patches import Feed
from edsr.pictures import Pictures
from edsr.ranks import Ranks
from edsr.resize import bicubic
from edsr.step import BLOCK_FLOPS, Step
from kernels import reference

SETBACKS = 3  # times a run may go back to its last checkpoint with half the learning rate


@dataclass(frozen=True)
class Progress:
    """Steps done. loss: its mean over those just done. psnr: dB on luma over the validation pictures, where just
    measured. speed: patches a second, over all processes. finished: whether the run is at its end."""

    step: int
    loss: float
    lr: float
    speed: float
    psnr: float | None = None
    finished: bool = False


def train(
    options: TrainOptions,
    say: Callable[[str], None] = lambda line: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Generator[Progress, None, None]:
    """Runs `options`, yielding after each step, on a GPU after each portion of them.

    say: told in one line what a person should know. stopping: asked between portions; once it is true (in any
    process), the run is saved and ends. Closing the iterator saves and ends it, too. Raises DataError, WeightsError,
    EngineError or TrainError before the first step, TrainError or CheckpointError later.
    """
    ranks = Ranks(options.device)
    run = None
    try:
        run = _Run(options, ranks, say if ranks.first else lambda line: None)
        with contextlib.closing(run):
            yield from run.steps(stopping)
    finally:
        run = None  # what talks to other processes goes before the group does
        ranks.leave()


class _Run:
    """One run between its start and its end. `step` steps are done, `saved` of them safe on disk."""

    def __init__(self, options: TrainOptions, ranks: Ranks, say: Callable[[str], None]):
        self.begun = time.monotonic()
        self.options, self.ranks, self.say = options, ranks, say
        self.folder = Path(options.out)
        check(options, ranks.world, ranks.first)
        pictures, self.validation = _pictures(options, ranks, say)

        torch.manual_seed(options.seed)
        model = EDSR(replace(PRESETS[options.model], scale=options.scale))
        found = checkpoint.newest(self.folder, say) if options.resume and ranks.first else None
        if found is not None:
            compare(options, found.record["options"], self.folder)
        elif not options.resume:
            _initialise(model, options, say if ranks.first else lambda line: None)
        model.to(ranks.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: torch's stub
        if ranks.device.type == "cuda":
            torch.backends.cudnn.benchmark = not options.deterministic
            torch.use_deterministic_algorithms(options.deterministic)
            # Every element is written before it is read. (torch's stub leaves this one out.)
            torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        block = _block(options, model, ranks)
        share = (ranks.rank, ranks.world)
        feed = Feed(pictures, options.patch, options.batch, options.seed, ranks.device, block, share)
        decay, dtype = recipe.ema_decay(options.steps), _dtype(options, ranks)
        ops = _ops(options, ranks, dtype, model.config.features)
        self.stepper = Step(model, feed, ranks, options.loss, decay, dtype, ops, options.graph, say)

        self.watch = recipe.Watch()
        self.step, self.best, self.factor, self.setbacks, self.seconds = 0, -math.inf, 1.0, 0, 0.0
        self.pictures = [len(pictures), zlib.crc32(pictures.table.tobytes())]
        if options.resume:
            self._restore(found)
            say(f"resuming {self.folder} at step {self.step}")
        self.saved = self.step if options.resume else -1  # what is on disk already
        self.journal = None
        if ranks.first:
            _make(self.folder)
            self.journal = Journal(self.folder, self.step, say)
        self.noted: list[float] = []

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()

    def steps(self, stopping: Callable[[], bool]) -> Generator[Progress, None, None]:
        options = self.options
        if self.step == options.steps:
            self.say(f"{self.folder}: has had its {options.steps} steps already")
        if self.saved < 0:
            self._save(None)  # so that there is something to go back to
        try:
            while self.step < options.steps:
                yield self._portion()
                if self.ranks.any(stopping() or self._late()):
                    break
        except GeneratorExit:  # closed at its yield, where the state is whole, as it need not be after other exceptions
            self._save(None)
            raise
        self._save(None)

    def _portion(self) -> Progress:
        """As many steps as come before something is due."""
        options, first, start = self.options, self.step, time.perf_counter()
        ends = [_next(first, every) for every in (options.val_every, options.save_every, NOTED)]
        count = min(*ends, options.steps, first + self.stepper.most) - first
        rates = [
            self.factor * recipe.learning_rate(step, options.steps, options.lr, options.schedule)
            for step in range(first, first + count)
        ]
        losses = self.ranks.mean(self.stepper.run(first, rates))
        wrong = self.watch(losses)
        self.step += count
        ended = self.step == options.steps
        due = ended or self.step % options.val_every == 0 or self.step % options.save_every == 0
        if wrong is None and due and not self.stepper.finite():
            wrong = count - 1, "a weight is not finite"
        if wrong is not None:
            self._go_back(first + wrong[0] + 1, wrong[1])
            return Progress(self.step, losses[wrong[0]], rates[wrong[0]], 0.0)
        elapsed = time.perf_counter() - start
        speed = count * options.batch / elapsed
        self.seconds += elapsed
        self.noted += losses
        psnr = None
        if self.validation and (ended or self.step % options.val_every == 0):
            psnr = self._validate()
        if self.journal is not None and (self.step % NOTED == 0 or psnr is not None or ended):
            values = {"loss": float(np.mean(self.noted)), "lr": rates[-1], "images_per_second": round(speed, 2)}
            values |= {"seconds": round(self.seconds, 2)} | ({} if psnr is None else {"psnr": psnr})
            self.journal.note(self.step, **values)
            self.noted = []
        if due:
            self._save(psnr)
        return Progress(self.step, float(np.mean(losses)), rates[-1], speed, psnr, ended)

    def _validate(self) -> float | None:
        """In the first process alone; the others wait at their next step."""
        if not self.ranks.first or self.validation is None:
            return None
        psnr, samples = validate(self.stepper.average, self.validation, self.options.scale)
        if self.journal is not None:
            self.journal.show(self.step, samples)
        return psnr

    def _go_back(self, step: int, why: str) -> None:
        """To the last checkpoint, with half the learning rate from there on."""
        setbacks, factor = self.setbacks + 1, self.factor / 2
        if setbacks > SETBACKS:
            raise TrainError(
                f"at step {step} {why}, for the {setbacks}th time, with {self.factor:g} of the learning rate; "
                f"start again with a smaller --lr, or look at the pictures"
            )
        # The trouble may be older than its sign, which is a mean over some steps.
        before = step - recipe.Watch.FAST
        self._restore(checkpoint.newest(self.folder, self.say, before) if self.ranks.first else None)
        self.setbacks, self.factor, self.noted, self.saved = setbacks, factor, [], self.step
        self.say(f"at step {step} {why}: back to step {self.step}, with {factor:g} of the learning rate")

    def _save(self, psnr: float | None) -> None:
        """A checkpoint, and the weights for upscale --model, by the first process."""
        if self.step == self.saved:
            return
        self.saved = self.step
        if not self.ranks.first:
            return
        options = self.options
        better = psnr is not None and psnr > self.best
        if psnr is not None and better:
            self.best = psnr
        training = {"data": [Path(d).name for d in options.data], "pictures": self.pictures[0], "steps": self.step}
        training |= {k: getattr(options, k) for k in ("batch", "patch", "lr", "loss", "schedule", "seed")}
        training |= {} if psnr is None else {"validation_psnr": round(psnr, 4)}
        if self.step > 0:
            weights.save_model(self.stepper.average, self.folder / "last.safetensors", training=training)
            # Where there is nothing to validate on, the last is all that can be called best.
            if better or not self.validation or not (self.folder / "best.safetensors").exists():
                weights.save_model(self.stepper.average, self.folder / "best.safetensors", training=training)
        record = {"options": identity(self.options), "pictures": self.pictures, "seconds": self.seconds}
        record |= {"best": self.best if math.isfinite(self.best) else None, "watch": self.watch.state()}
        record |= {"factor": self.factor, "setbacks": self.setbacks}
        checkpoint.write(self.folder, Checkpoint(self.step, self.stepper.tensors(), record))

    def _restore(self, found: Checkpoint | None) -> None:
        """found: None in all processes but the first, which tells them."""
        own = self.stepper.tensors()
        if found is not None:
            if found.tensors.keys() != own.keys():
                raise TrainError(f"{self.folder}: its checkpoint is of another network; choose another --out")
            for name, tensor in own.items():
                tensor.copy_(found.tensors[name])
        record = self.ranks.spread(own.values(), found.record | {"step": found.step} if found is not None else None)
        assert record is not None
        self.step, self.seconds = record["step"], record["seconds"]
        self.best = -math.inf if record["best"] is None else record["best"]
        self.factor, self.setbacks = record["factor"], record["setbacks"]
        self.watch.restore(record["watch"])
        if record["pictures"] != self.pictures:
            self.say("the pictures are not those this run began with; it goes on, but not as it would have")

    def _late(self) -> bool:
        minutes = self.options.minutes
        return minutes is not None and time.monotonic() - self.begun > 60 * minutes


def validate(model: EDSR, pictures: Pictures, scale: int) -> tuple[float, dict[str, np.ndarray]]:
    """Mean PSNR in dB on luma, a border of `scale` pixels left out; and of the first three pictures details at most
    192 pixels a side, uint8: bicubic, network and original side by side."""
    device = next(model.parameters()).device
    scores, samples = [], {}
    for i in range(len(pictures)):
        low, high = map(_eight_bits, pictures.pair(i))
        with torch.no_grad():
            x = torch.from_numpy(np.ascontiguousarray(low)).to(device).permute(2, 0, 1)[None].float().div_(255)
            y = model(x).clamp_(0, 1).mul_(255).round_().byte()[0].permute(1, 2, 0).cpu().numpy()
        scores.append(metrics.score(y, high, scale)[0])
        if i < 3:
            h, w = (min(192 // scale, side) * scale for side in low.shape[:2])
            views = bicubic(np.ascontiguousarray(low[: h // scale, : w // scale]), h, w), y[:h, :w], high[:h, :w]
            samples[f"sample/{i}"] = np.concatenate(views, axis=1)
    return float(np.mean(scores)), samples


def _eight_bits(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _pictures(options: TrainOptions, ranks: Ranks, say: Callable[[str], None]) -> tuple[Pictures, Pictures | None]:
    """To train on, and to validate on if there are any."""
    more = {"crop": options.crop, "cache": options.cache, "device": ranks.device}
    if ranks.local > 0 and options.cache:
        ranks.wait()  # for the first process of this machine to make the cache
    pictures, held = data.load(options.data, options.scale, options.patch, say, **more)
    if ranks.local == 0 and options.cache:
        ranks.wait()
    if options.val:
        held, _ = data.load([options.val], options.scale, 1, say)
    elif held is None:
        pictures, held = data.hold_back(pictures)
    say(f"{len(pictures)} pictures to train on, {len(held) if held else 0} to validate on")
    return pictures, held


def _make(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainError(f"{run}: cannot be made ({error.strerror}); choose another --out") from None


def _initialise(model: EDSR, options: TrainOptions, say: Callable[[str], None]) -> None:
    """Copies every tensor of the starting weights that has the same name and shape: for another scale, the body."""
    source = options.init
    if source is None and options.scale > 2 and 2 in weights.packaged().get(options.model, ()):
        source = options.model
    if source is None or source == "none":
        say("starting from random weights")
        return
    start = weights.load_model(source, scale=2 if source in PRESETS else None).state_dict()
    own = model.state_dict()
    taken = {name: tensor for name, tensor in start.items() if name in own and own[name].shape == tensor.shape}
    if "head.weight" not in taken:
        raise weights.WeightsError(f"{source}: not a network of the shape of {options.model}; give another --init")
    own.update(taken)
    model.load_state_dict(own)
    say(f"starting from {source}: {len(taken)} of {len(own)} tensors")


def _dtype(options: TrainOptions, ranks: Ranks) -> torch.dtype:
    auto = "bf16" if ranks.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[auto if options.precision == "auto" else options.precision]


def _ops(options: TrainOptions, ranks: Ranks, dtype: torch.dtype, features: int):
    """The ops to train with: on Triton kernels if asked for, or where they were measured to be faster."""
    triton = ranks.device.type == "cuda" and importlib.util.find_spec("triton") is not None
    if options.backend == "triton" and not triton:
        raise EngineError(f"--backend triton needs an NVIDIA GPU and triton, not {ranks.device}; use --backend torch")
    if options.backend == "torch" or not triton:
        return reference
    from kernels import training

    return training if options.backend == "triton" or training.fastest(dtype, features, ranks.device) else reference


def _block(options: TrainOptions, model: EDSR, ranks: Ranks) -> int:
    """Steps handed to the device at once; by arithmetic, so that all processes agree."""
    if ranks.device.type != "cuda":
        return 1
    # Each weight works on a pixel three times: forward, and for either gradient; the upsampler's on more, a little.
    pixels = options.batch // ranks.world * options.patch**2
    flops = 6 * pixels * sum(p.numel() for p in model.parameters())
    return max(1, min(250, int(BLOCK_FLOPS / flops)))


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every

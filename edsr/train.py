"""Training: L1 and Adam on random patches (Lim et al. 2017, section 4.2), a cosine schedule, averaged weights.

A run folder holds `last.safetensors` and `best.safetensors`, weights that `upscale --model` takes, and
`state.pt`, from which a stopped run continues as if it had not been stopped.
"""

import copy
import math
import os
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from edsr import imageio, metrics, weights
from edsr.data import DataError, PatchSampler, load_pairs
from edsr.model import EDSR, PRESETS

CLIP = 0.5  # largest norm of a gradient: several times the usual one, so that only outliers are cut


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Rises in a line over the first 500 steps or 2 %, the lesser, then falls to 0 along half a cosine."""
    warm = max(1, min(500, steps // 50))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def ema_decay(steps: int) -> float:
    """Of the averaged weights, which remember about a thousand steps, or a twentieth of a run of fewer than 20,000."""
    return 1 - 1 / max(1, min(1000, steps // 20))


@dataclass(frozen=True)
class TrainOptions:
    """What a run is. data, val: folders of pictures. patch: LR pixels a side. lr: learning rate at the start.

    init: weights to start from (preset name or file), or None for the default: the packaged x2 body of
    the same preset for scales 3 and 4, random weights otherwise; "none" for random weights always.
    val: None holds back one picture in forty, at most 10, and validates on their middles of 192 LR pixels.
    val_every: steps between checkpoints.
    """

    data: tuple[str, ...]
    out: str
    model: str = "edsr-baseline"
    scale: int = 2
    steps: int = 300_000
    batch: int = 16
    patch: int = 48
    lr: float = 1e-4
    val: str | None = None
    val_every: int = 1000
    init: str | None = None
    resume: bool = False
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Progress:
    """One step. loss: L1 in 0..1 units. psnr: dB on luma over the validation pictures, where just measured."""

    step: int
    loss: float
    lr: float
    psnr: float | None = None


def train(options: TrainOptions, say: Callable[[str], None] = lambda line: None) -> Generator[Progress, None, None]:
    """Runs `options`, yielding after each step; closing the iterator saves a checkpoint and ends the run.

    say: told in one line what a person should know (pictures left out, where the weights come from).
    Raises DataError, WeightsError or OSError with a line that says what to do, before the first step.
    """
    run = Path(options.out)
    _check(options, run)
    paths = [path for folder in options.data for path in imageio.find_pictures(folder)]
    if options.val:
        held = imageio.find_pictures(options.val)
    else:
        held = paths[:: max(40, len(paths) // 10)][:10] if len(paths) > 1 else []
        paths = [path for path in paths if path not in set(held)]
    say(f"reading {len(paths)} pictures")
    pairs = load_pairs(paths, options.scale, options.patch, say)
    validation = load_pairs(held, options.scale, 1, say) if held else []
    if not options.val:
        validation = [_centre(pair, options.scale) for pair in validation]
    say(f"{len(pairs)} pictures to train on, {len(validation)} to validate on")

    torch.manual_seed(options.seed)
    config = replace(PRESETS[options.model], scale=options.scale)
    model = EDSR(config)
    state = _load_state(run, options) if options.resume else None
    if state is None:
        _initialise(model, options, say)
    device = torch.device(options.device)
    model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: torch's stub
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr, fused=device.type != "mps")
    average, update_average = copy.deepcopy(model), get_ema_multi_avg_fn(ema_decay(options.steps))
    step, best = 0, -math.inf
    if state is not None:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, best = state["step"], state["best"]
        say(f"resuming {run} at step {step}")

    sampler = PatchSampler(pairs, options.scale, options.patch, options.batch, options.seed)
    run.mkdir(parents=True, exist_ok=True)
    saved = step

    def save(psnr: float | None) -> None:
        nonlocal best, saved
        training = {"data": [Path(d).name for d in options.data], "pictures": len(pairs), "steps": step}
        training |= {"batch": options.batch, "patch": options.patch, "lr": options.lr, "seed": options.seed}
        training |= {} if psnr is None else {"validation_psnr": round(psnr, 4)}
        weights.save_model(average, run / "last.safetensors", training=training)
        better = psnr is not None and psnr > best
        # Where there is nothing to validate on, the last is all that can be called best.
        if better or not validation or not (run / "best.safetensors").exists():
            best = psnr if psnr is not None else best
            weights.save_model(average, run / "best.safetensors", training=training)
        record = {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "best": best,
        }
        _save_state(run, record | {"options": _identity(options)})
        saved = step

    try:
        while step < options.steps:
            lr = learning_rate(step, options.steps, options.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr
            low, high = (t.to(device, memory_format=torch.channels_last) for t in sampler(step))
            loss = F.l1_loss(model(low), high)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            with torch.no_grad():
                update_average(list(average.parameters()), list(model.parameters()), step)
            step += 1
            value = loss.item()
            if not math.isfinite(value):
                raise DataError(f"the loss became {value} at step {step}; continue with --resume and a smaller --lr")
            psnr = None
            if step % options.val_every == 0 or step == options.steps:
                psnr = validate(average, validation, options.scale) if validation else None
                save(psnr)
            yield Progress(step, value, lr, psnr)
    except GeneratorExit:  # closed at its yield, where the state is whole, as it need not be after other exceptions
        if step > saved:
            save(None)
        raise


def validate(model: EDSR, pairs: list[tuple[np.ndarray, np.ndarray]], scale: int) -> float:
    """Mean PSNR in dB on luma, a border of `scale` pixels left out, over (LR, HR) pairs of uint8."""
    device = next(model.parameters()).device
    scores = []
    with torch.no_grad():
        for low, high in pairs:
            x = torch.from_numpy(low).to(device).permute(2, 0, 1)[None].float().div_(255)
            y = model(x).clamp_(0, 1).mul_(255).round_()
            scores.append(metrics.score(y[0].permute(1, 2, 0).cpu().numpy(), high, scale)[0])
    return float(np.mean(scores))


def _centre(pair: tuple[np.ndarray, np.ndarray], scale: int, side: int = 192) -> tuple[np.ndarray, np.ndarray]:
    """The middle of an (LR, HR) pair, at most `side` LR pixels each way: enough to compare steps by, and quick."""
    low, high = pair
    height, width = min(side, low.shape[0]), min(side, low.shape[1])
    y, x = (low.shape[0] - height) // 2, (low.shape[1] - width) // 2
    s = scale
    return low[y : y + height, x : x + width], high[y * s : (y + height) * s, x * s : (x + width) * s]


def _check(options: TrainOptions, run: Path) -> None:
    if options.model not in PRESETS:
        raise weights.WeightsError(f"unknown model {options.model!r}: choose {' or '.join(PRESETS)}")
    for name in ("steps", "batch", "patch", "val_every"):
        if getattr(options, name) < 1:
            raise DataError(f"--{name.replace('_', '-')} must be 1 or more, not {getattr(options, name)}")
    if run.exists() and not run.is_dir():
        raise DataError(f"{run} is a file; give a folder with --out")
    if not options.resume and (run / "state.pt").exists():
        raise DataError(f"{run} holds a run already; add --resume to continue it, or choose another --out")
    if options.resume and not (run / "state.pt").exists():
        raise DataError(f"{run} holds no run to resume; leave --resume out to start one")


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


def _identity(options: TrainOptions) -> dict:
    """What must be the same for a run to be the same run."""
    values = asdict(options)
    return {name: values[name] for name in ("model", "scale", "steps", "batch", "patch", "seed")}


def _load_state(run: Path, options: TrainOptions) -> dict:
    state = torch.load(run / "state.pt", map_location="cpu", weights_only=True)
    for name, value in _identity(options).items():
        if state["options"][name] != value:
            raise DataError(f"{run} was started with --{name} {state['options'][name]}, not {value}")
    return state


def _save_state(run: Path, record: dict) -> None:
    """Atomic: a run killed here keeps its previous state."""
    part = run / "state.pt.part"
    torch.save(record, part)
    os.replace(part, run / "state.pt")

"""The options of a training run, and whether they make sense."""

from dataclasses import asdict, dataclass
from pathlib import Path

from edsr import checkpoint, recipe, weights
from edsr.model import PRESETS


class TrainError(Exception):
    """A run that cannot be begun or go on; one line that says what to do."""


@dataclass(frozen=True)
class TrainOptions:
    """What a run is. data, val: as `edsr.data.load` takes them. patch: LR pixels a side. lr: its peak.

    loss, schedule: see `edsr.recipe`. init: weights to start from (preset name or file), or None for the default: the
    packaged x2 body of the same preset for scales 3 and 4, random weights otherwise; "none" for random weights always.
    val: None holds back some of data. val_every, save_every: steps between validations, between checkpoints.
    minutes: time after which to save and stop. precision: "auto" (bf16 on CUDA, else fp32), "fp32" or "bf16".
    backend: "triton" (this project's kernels), "torch", or "auto": triton where it was measured to be faster.
    crop, cache: see `edsr.data.load`. graph: whether to use CUDA graphs. deterministic: bits that repeat on CUDA too.
    """

    data: tuple[str, ...]
    out: str
    model: str = "edsr-baseline"
    scale: int = 2
    steps: int = 300_000
    batch: int = 16
    patch: int = 48
    lr: float = 2e-4
    loss: str = "l1"
    schedule: str = "cosine"
    val: str | None = None
    val_every: int = 1000
    save_every: int = 1000
    init: str | None = None
    resume: bool = False
    minutes: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    crop: int | None = None
    cache: str | None = None
    graph: bool = True
    deterministic: bool = False


def check(options: TrainOptions, world: int, first: bool) -> None:
    """Raises TrainError or WeightsError if no run can come of these, with `world` processes; the first alone looks
    into the run's folder, which it will make."""
    run = Path(options.out)
    if options.model not in PRESETS:
        raise weights.WeightsError(f"unknown model {options.model!r}: choose {' or '.join(PRESETS)}")
    for name in ("steps", "batch", "patch", "val_every", "save_every"):
        if getattr(options, name) < 1:
            raise TrainError(f"--{name.replace('_', '-')} must be 1 or more, not {getattr(options, name)}")
    for name, choices in (("loss", recipe.LOSSES), ("schedule", recipe.SCHEDULES)):
        if getattr(options, name) not in choices:
            raise TrainError(f"--{name} must be {' or '.join(choices)}, not {getattr(options, name)!r}")
    if options.batch % world:
        raise TrainError(f"--batch {options.batch} cannot be shared evenly by {world} processes")
    if run.exists() and not run.is_dir():
        raise TrainError(f"{run} is a file; give a folder with --out")
    inside = next((folder for folder in options.data if Path(folder).resolve() in run.resolve().parents), None)
    if inside is not None:  # its plot and samples would be trained on after the next start
        raise TrainError(f"{run} lies in {inside}, a folder of pictures; choose another --out")
    if first and not options.resume and checkpoint.exists(run):
        raise TrainError(f"{run} holds a run already; add --resume to continue it, or choose another --out")
    if first and options.resume and not checkpoint.exists(run):
        raise TrainError(f"{run} holds no run to resume; leave --resume out to start one")


def identity(options: TrainOptions) -> dict:
    """What must be the same for a run to be the same run. The learning rate may be changed on purpose."""
    names = ("model", "scale", "steps", "batch", "patch", "loss", "schedule", "seed", "crop")
    return {name: asdict(options)[name] for name in names}


def compare(options: TrainOptions, before: dict, run: Path) -> None:
    """Raises TrainError if a run begun with the identity `before` is not this one."""
    for name, value in identity(options).items():
        if before[name] != value:
            raise TrainError(f"{run} was started with --{name} {before[name]}, not {value}")

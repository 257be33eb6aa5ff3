"""The options of a training run, whether they make sense, and which of them a run remembers."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from edsr.data import Degradation, parse_degradation
from edsr.errors import TrainError, WeightsError
from edsr.models import PRESETS

from . import checkpoint, recipe

AUTO = "auto"
IDENTITY = ("model", "scale", "steps", "batch", "patch", "loss", "schedule", "seed", "crop", "degrade")
PLACES = ("data", "val", "cache")
# What may be changed when a run is resumed. The learning rate on purpose; what computes, because machines differ.
CHANGEABLE = ("lr", "precision", "deterministic", "val_every", "save_every")
UNLESS_GIVEN = 1000  # steps between validations, and between checkpoints, where time must decide nothing


@dataclass(frozen=True)
class TrainConfig:
    """What a run is. data, val: as `edsr.data.load_dataset` takes them. patch: LR pixels a side. lr: its peak.

    loss, schedule: see `edsr.training.recipe`. steps: "auto" for as many as fit into `minutes`, measured at the
    start. init: weights to start from (file, or packaged name: of this scale, if there are such, else x2), or None
    for the default: the packaged x2 body of the same preset for scales 3 and 4, random weights otherwise; "none" for
    random weights always. val: None holds back some of data.
    val_every, save_every: steps between validations, between checkpoints; None: see `edsr.training.intervals`, or
    UNLESS_GIVEN if deterministic. minutes: time after which to save and stop.

    resume: whether to go on with the run in `out`. given: names of the options that were chosen, where others are
    defaults; a resumed run has those from the run that it goes on with. None: all are chosen (but for data, if empty).
    decay: steps in which the learning rate falls to 0, after a copy of the state of the run in `source`; "auto" as for
    steps. Its result is a run of its own in `out`; "" for the folder of the source's name, "-decay-" and its step.

    degrade: what is done to LR patches, as `edsr.data.degradation.parse_mixture` reads it; None: nothing.

    precision: "auto" (bf16 on CUDA, else fp32), "fp32" or "bf16". backend: "triton" (this project's kernels for GPUs),
    "winograd" (those for CPUs), "torch", or "auto": ours where they were measured to be faster. crop, cache: see
    `edsr.data.load_dataset`. graph: whether to use CUDA graphs. deterministic: bits that repeat on CUDA too.
    """

    data: tuple[str, ...]
    out: str
    model: str = "edsr-baseline"
    scale: int = 2
    steps: int | Literal["auto"] = 300_000
    batch: int = 16
    patch: int = 48
    lr: float = 2e-4
    loss: str = "l1"
    schedule: str = "cosine"
    val: str | None = None
    val_every: int | None = None
    save_every: int | None = None
    init: str | None = None
    resume: bool = False
    source: str | None = None
    decay: int | Literal["auto"] | None = None
    given: frozenset[str] | None = None
    minutes: float | None = None
    seed: int = 0
    degrade: str | None = None
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    crop: int | None = None
    cache: str | None = None
    graph: bool = True
    deterministic: bool = False

    def every(self, number: int | None) -> int | None:
        """val_every or save_every as `edsr.training.intervals` takes it."""
        return UNLESS_GIVEN if number is None and self.deterministic else number

    @property
    def degradation(self) -> Degradation | None:
        """What `degrade` means. Raises TrainError."""
        try:
            return None if self.degrade is None else parse_degradation(self.degrade)
        except ValueError as error:
            raise TrainError(f"--degrade: {error}") from None


def check(options: TrainConfig, world: int, first: bool, place: str = "--out") -> None:
    """Raises TrainError or WeightsError if no run can come of these, with `world` processes; the first alone looks
    into the run's folder, which it will make. Those of a resumed run are what `recall` gives. place: the option that
    names the folder."""
    run = Path(options.out)
    if options.model not in PRESETS:
        raise WeightsError(f"unknown model {options.model!r}: choose {' or '.join(PRESETS)}")
    for name in ("steps", "decay", "batch", "patch", "val_every", "save_every"):
        value = getattr(options, name)
        if value is not None and value != AUTO and value < 1:
            raise TrainError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")
    for name in ("decay", "steps"):
        if getattr(options, name) == AUTO and options.minutes is None:
            raise TrainError(f"--{name} auto needs to know for how long; add --minutes")
    for name, choices in (("loss", recipe.LOSSES), ("schedule", recipe.SCHEDULES)):
        if getattr(options, name) not in choices:
            raise TrainError(f"--{name} must be {' or '.join(choices)}, not {getattr(options, name)!r}")
    _ = options.degradation
    if options.batch % world:
        raise TrainError(f"--batch {options.batch} cannot be shared evenly by {world} processes")
    if run.exists() and not run.is_dir():
        raise TrainError(f"{run} is a file; give a folder with {place}")
    within = {run.resolve(), *run.resolve().parents}
    inside = next((folder for folder in options.data if Path(folder).resolve() in within), None)
    if inside is not None:  # its plot and samples would be trained on after the next start
        raise TrainError(f"{run} lies in {inside}, a folder of images; choose another {place}")
    if first and not options.resume and checkpoint.exists(run):
        raise TrainError(f"{run} holds a run already; add --resume to continue it, or choose another --out")


def run_signature(options: TrainConfig) -> dict:
    """What must be the same for a run to be the same run, but for the steps of one that may be of any length."""
    named = {name: asdict(options)[name] for name in IDENTITY}
    return named | {"degrade": options.degradation and str(options.degradation)}


def remembered(options: TrainConfig) -> dict:
    """What a run keeps beside that, so that it can be resumed by its name alone. Paths are absolute."""
    kept = {name: asdict(options)[name] for name in (*CHANGEABLE, *PLACES)}
    kept |= {"init": options.init and Path(options.init).name}  # only to compare, wherever the file is by now
    kept |= {name: kept[name] and os.path.abspath(kept[name]) for name in PLACES[1:]}
    return kept | {"data": [os.path.abspath(source) for source in options.data]}


def recall(options: TrainConfig, record: dict, run: Path) -> TrainConfig:
    """The options of a run that is resumed: of what was not given, what its checkpoint's `record` holds.

    Raises TrainError if what was given makes it another run, and names all that does.
    """
    before = record["options"] | record.get("remembered", {})
    if "data" in before:
        before["data"] = tuple(before["data"])
    given = set(before if options.given is None else options.given)
    given -= {"steps"} if options.steps == AUTO else set()
    given -= set() if options.data else {"data"}
    differ = _differ("init", before["init"], Path(options.init).name) if options.init and "init" in before else []
    options = replace(options, **{name: value for name, value in before.items() if name not in given})
    if not options.data:
        raise TrainError(f"{run} does not remember its images; name them with --data")
    for name, value in run_signature(options).items():
        free = name == "steps" and options.schedule == "wsd" and record.get("decay") is None
        # Runs of before there was --degrade lack it.
        differ += [] if free else _differ(name, record["options"].get(name), value)
    if differ:
        raise TrainError(f"{run} was started {'; '.join(differ)}")
    return options


def _differ(name: str, was: object, value: object) -> list[str]:
    """What to say where an option is not what it was; nothing where it is."""
    how = f"without --{name}" if was is None else f"with --{name} {was}"
    return [] if was == value else [f"{how}, not {'without' if value is None else value}"]

"""Where a run comes from: it is begun, resumed, or the decay of another."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from edsr.devices import ProcessGroup
from edsr.errors import TrainError

from . import checkpoint, recipe
from .checkpoint import Checkpoint
from .config import AUTO, TrainConfig, check, recall


class Decay(NamedTuple):
    """The end of a run, after `first` steps of the one in `source`, where the learning rate was `share` of its peak."""

    source: str
    first: int
    share: float

    def rate(self, step: int, steps: int, peak: float) -> float:
        """Of learning, at a step of this end, which comes after `steps` steps."""
        return recipe.decayed(step, self.first, steps, self.share * peak)


class Origin(NamedTuple):
    """options: complete. found: what to go on from, in the first process alone. begins: whether the run's folder is yet
    to be made. decay: set for a run that is one, begun now or before."""

    options: TrainConfig
    found: Checkpoint | None = None
    begins: bool = True
    decay: Decay | None = None


def find(options: TrainConfig, ranks: ProcessGroup, say: Callable[[str], None]) -> Origin:
    """What the options ask for; the first process alone looks at folders, and tells the others.

    Raises TrainError, WeightsError or CheckpointError if it cannot be done. Writes nothing.
    """
    origin = Origin(options)
    if options.resume:
        found = told = None
        if ranks.is_main:
            run, out, begins, found = _resumed(options, say) if options.decay is None else _split_off(options, say)
            told = {"run": str(run), "out": str(out), "begins": begins, "record": found.record}
        told = ranks.broadcast([], told)
        assert told is not None
        if options.decay is not None:  # says how many more, and what that makes is in the record
            options = replace(options, steps=AUTO)
        options = replace(recall(options, told["record"], Path(told["run"])), out=told["out"])
        decay = told["record"].get("decay")
        origin = Origin(options, found, told["begins"], decay and Decay(*decay))
    check(origin.options, ranks.world_size, ranks.is_main)
    return origin


def _resumed(options: TrainConfig, say: Callable[[str], None]) -> tuple[Path, Path, bool, Checkpoint]:
    run = Path(options.out)
    return run, run, False, _newest(run, say)


def _split_off(options: TrainConfig, say: Callable[[str], None]) -> tuple[Path, Path, bool, Checkpoint]:
    """The run, the folder of its decay, whether that is yet to be made, and what to go on from."""
    run = Path(options.source or "")
    last = _newest(run, say)
    before = last.record["options"]
    share = recipe.learning_rate(last.step, before["steps"], 1.0, before["schedule"])
    if last.record.get("decay") is not None:
        share = Decay(*last.record["decay"]).rate(last.step, before["steps"], 1.0)
    if share <= 0:
        raise TrainError(f"{run} is at its end, where its learning rate is 0 already")
    decay = Decay(str(run.resolve()), last.step, share)
    steps = AUTO if options.decay in (AUTO, None) else last.step + options.decay
    out = Path(options.out) if options.out else run.resolve().with_name(f"{run.resolve().name}-decay-{last.step}")
    if checkpoint.exists(out):
        found = checkpoint.load_latest(out, say)
        same = steps in (AUTO, found.record["options"]["steps"]) and found.record.get("decay") == [*decay]
        if not same:
            raise TrainError(f"{out} holds another run; continue that with --resume {out}, or choose another --out")
        return out, out, False, found
    # What is hidden there may be half a checkpoint, of this very decay killed at its start.
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise TrainError(f"{out} exists; choose another --out")
    record = last.record | {"options": before | {"steps": steps}, "decay": [*decay]}
    record |= {"best": None, "setbacks": 0, "misfit": None}  # it is judged by what it begins with
    return run, out, True, last._replace(record=record)


def _newest(run: Path, say: Callable[[str], None]) -> Checkpoint:
    if not checkpoint.exists(run):
        raise TrainError(f"{run} holds no run to resume; leave --resume out to start one")
    return checkpoint.load_latest(run, say)

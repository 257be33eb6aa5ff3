"""Where a run starts: anew, from its own checkpoint, or as the decay of another."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from edsr.devices import ProcessGroup
from edsr.errors import TrainError
from edsr.wording import either, named

from . import checkpoint, recipe
from .checkpoint import Checkpoint
from .config import AUTO, TrainConfig
from .consistency import check, check_places, recall
from .lock import RunLock
from .run_record import check_record


class Decay(NamedTuple):
    """The end of a run, in which the learning rate falls to 0.

    Args:
        source: Folder of the run that it continues.
        first: Steps of that run.
        lr_share: Share of its peak that the learning rate had there.
    """

    source: str
    first: int
    lr_share: float

    def learning_rate(self, step: int, steps: int, peak: float) -> float:
        """At a step of this end, which comes after `steps` steps."""
        return recipe.linear_decay(step, self.first, steps, self.lr_share * peak)


class RunStart(NamedTuple):
    """Where a run starts.

    Args:
        config: Its options, complete.
        checkpoint: What to go on from, in the main process alone; None for a run that starts anew.
        is_new: Whether the run's folder is yet to be made.
        decay: Set for a run that is one, begun now or before.
    """

    config: TrainConfig
    checkpoint: Checkpoint | None = None
    is_new: bool = True
    decay: Decay | None = None


def resolve_start(config: TrainConfig, group: ProcessGroup, lock: RunLock) -> RunStart:
    """Finds where the run starts; the main process alone looks at folders, and tells the others. Writes nothing.

    Args:
        config: The options that were given.
        group: The processes of the run.
        lock: Of its folder: acquired in the main process if the folder exists, before anything in it is read.

    Raises:
        TrainError, WeightsError, CheckpointError: It cannot be done; another process trains there.
    """
    start = RunStart(config)
    if config.resume:
        loaded = message = None
        if group.is_main:
            run, out, is_new, loaded = (_continue if config.decay is None else _branch_off)(config, lock)
            message = {"run": str(run), "out": str(out), "is_new": is_new, "record": loaded.record}
        message = group.broadcast([], message)
        assert message is not None
        if config.decay is not None:  # says how many more, and what that makes is in the record
            config = replace(config, steps=AUTO)
        config = replace(recall(config, message["record"], Path(message["run"])), out=message["out"])
        decay = message["record"].get("decay")
        start = RunStart(config, loaded, message["is_new"], decay and Decay(*decay))
    check(start.config, group.world_size, group.is_main)
    if group.is_main:
        check_places(Path(start.config.out))
    if group.is_main and Path(start.config.out).is_dir():
        lock.acquire(Path(start.config.out))
    return start


def _continue(config: TrainConfig, lock: RunLock) -> tuple[Path, Path, bool, Checkpoint]:
    """As `_branch_off`, of a run that goes on in its own folder."""
    run = Path(config.out)
    if run.is_dir():
        lock.acquire(run)
    return run, run, False, _load(run)


def _branch_off(config: TrainConfig, lock: RunLock) -> tuple[Path, Path, bool, Checkpoint]:
    """The run, the folder of its decay, whether that is yet to be made, and what to go on from."""
    run = Path(config.source or "")
    last = _load(run)
    before = last.record["options"]
    share = recipe.learning_rate(last.step, before["steps"], 1.0, before["schedule"])
    if last.record.get("decay") is not None:
        share = Decay(*last.record["decay"]).learning_rate(last.step, before["steps"], 1.0)
    if share <= 0:
        raise TrainError(f"{run} is at its end, where its learning rate is 0 already")
    decay = Decay(str(run.resolve()), last.step, share)
    steps = AUTO if config.decay in (AUTO, None) else last.step + config.decay
    out = Path(config.out) if config.out else run.resolve().with_name(f"{run.resolve().name}-decay-{last.step}")
    if checkpoint.exists(out):
        lock.acquire(out)
        found = checkpoint.load_latest(out, check=check_record)
        same = steps in (AUTO, found.record["options"]["steps"]) and found.record.get("decay") == [*decay]
        if not same:
            resume = either(f"out={str(out)!r}, resume=True", f"--resume {out}")
            raise TrainError(f"{out} holds another run; continue that with {resume}, or choose another {named('out')}")
        return out, out, False, found
    # What is hidden there may be half a checkpoint, of this very decay killed at its start.
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise TrainError(f"{out} exists; choose another {named('out')}")
    record = last.record | {"options": before | {"steps": steps}, "decay": [*decay]}
    record |= {"best_psnr": None, "rollbacks": 0, "initial_error": None}  # it is judged by what it begins with
    return run, out, True, last._replace(record=record)


def _load(run: Path) -> Checkpoint:
    if not checkpoint.exists(run):
        raise TrainError(f"{run} holds no run to resume; leave {named('resume')} out to start one")
    return checkpoint.load_latest(run, check=check_record)

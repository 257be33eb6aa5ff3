"""Copies the newest state of a training run to where it is kept, in files that are whole at any moment."""

import os
import shutil
from pathlib import Path

from edsr.system import atomic_folder, remove_abandoned


def mirror(run: Path, out: Path, aside: Path) -> None:
    """The newest checkpoint of `run` as `out`/checkpoint, with best.safetensors and metrics.jsonl beside it.

    Once there is a checkpoint there is one at any moment, where the system can exchange two folders (Linux, on most
    disks); elsewhere there is none for an instant, while the new one takes the old one's place.

    aside: a folder on the same disk, for files that are not whole yet.
    """
    for name in ("best.safetensors", "metrics.jsonl"):
        if (run / name).exists():
            part = aside / name
            shutil.copyfile(run / name, part)
            os.replace(part, out / name)
    newest = max(run.glob("checkpoint-*"), key=_step, default=None)
    if newest is None or _same(newest, out / "checkpoint"):
        return
    remove_abandoned(out)  # what was killed while it wrote
    with atomic_folder(out / "checkpoint") as part:
        shutil.copytree(newest, part, dirs_exist_ok=True)


def _step(checkpoint: Path) -> int:
    """Names are of eight digits or more, so that as words they are in another order."""
    digits = checkpoint.name.partition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def _same(a: Path, b: Path) -> bool:
    states = a / "state.json", b / "state.json"
    return all(state.exists() for state in states) and states[0].read_bytes() == states[1].read_bytes()

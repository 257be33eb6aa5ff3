"""Copies the newest state of a training run to where it is kept, in files that are whole at any moment."""

import os
import shutil
from pathlib import Path


def mirror(run: Path, out: Path, aside: Path) -> None:
    """The newest checkpoint of `run` as `out`/checkpoint, with best.safetensors and metrics.jsonl beside it.

    aside: a folder on the same disk, for what is not whole yet.
    """
    for name in ("best.safetensors", "metrics.jsonl"):
        if (run / name).exists():
            part = aside / name
            shutil.copyfile(run / name, part)
            os.replace(part, out / name)
    newest = max(run.glob("checkpoint-*"), default=None)
    if newest is None or _same(newest, out / "checkpoint"):
        return
    part, old = aside / "checkpoint", aside / "old"
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(newest, part)
    if (out / "checkpoint").exists():
        os.rename(out / "checkpoint", old)
    os.rename(part, out / "checkpoint")
    shutil.rmtree(old, ignore_errors=True)


def _same(a: Path, b: Path) -> bool:
    states = a / "state.json", b / "state.json"
    return all(state.exists() for state in states) and states[0].read_bytes() == states[1].read_bytes()

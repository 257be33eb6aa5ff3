"""Processes that stop at a chosen point until they are let go, so that a test kills them there and not by luck."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOOK = """
import os, sys, time
from pathlib import Path

def held(target):
    for folder in Path(os.path.abspath(os.fsdecode(target))).parents:
        try:
            pattern, count = Path(f"{folder}.hold").read_text().split()
        except OSError:
            continue
        return sum(1 for _ in folder.rglob(pattern)) >= int(count)
    return False

def hook(event, arguments):
    if event in ("os.link", "os.rename"):
        while held(arguments[1]):
            time.sleep(0.02)

sys.addaudithook(hook)
"""
"""Python runs it when it starts, as sitecustomize."""


def holding(folder: Path) -> dict[str, str]:
    """The environment of processes that heed `held`. folder: for a file that they read."""
    (folder / "sitecustomize.py").write_text(HOOK)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


@contextmanager
def held(folder: Path, pattern: str, count: int) -> Iterator[None]:
    """Inside, once `count` files or folders below `folder` match, nothing new gets its name there: who has finished
    something waits, before it is renamed. Processes must start inside."""
    note = folder.with_name(f"{folder.name}.hold")
    note.write_text(f"{pattern} {count}")
    try:
        yield
    finally:
        note.unlink()

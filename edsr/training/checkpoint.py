"""Checkpoints, from which a stopped run continues: folders that appear whole or not at all.

`checkpoint-00001000/` holds `state.json` (numbers, and length and CRC-32 of each other file) and shards of at most
15 MB, `00.safetensors`, ... (tensors). The newest two are kept: should one be damaged, the other serves.
"""

import json
import logging
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load, save
from torch import Tensor

from edsr.errors import CheckpointError
from edsr.system import atomic_folder, remove_abandoned

logger = logging.getLogger(__name__)

SHARD_BYTES = 15_000_000  # bytes of tensors in a file, but for a larger single tensor: small enough to be sent anywhere
KEPT = 2
VERSION = 2
# Names of version 1 and what they are now: keys of the record, and the first part of tensors' names.
VERSION_1_NAMES = {
    "best": "best_psnr",
    "factor": "lr_factor",
    "setbacks": "rollbacks",
    "watch": "divergence",
    "pictures": "images",
    "misfit": "initial_error",
    "average": "ema",
    "adam": "optimizer",
}


class Checkpoint(NamedTuple):
    """The state of a run.

    Args:
        step: Steps done.
        tensors: By name, on the CPU: `model.*`, `ema.*` (averaged weights) and `optimizer.*`.
        record: The rest, in values that JSON has.
    """

    step: int
    tensors: dict[str, Tensor]
    record: dict


def write(run: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint under `run`, synced to disk before it gets its name, and removes all but the newest KEPT.

    Raises:
        CheckpointError: The disk refuses. What was there before stays.
    """
    folder = run / f"checkpoint-{checkpoint.step:08d}"
    try:
        run.mkdir(parents=True, exist_ok=True)
        remove_abandoned(run)
        with atomic_folder(folder) as part:
            files = {}
            for i, tensors in enumerate(_shards(checkpoint.tensors)):
                name, data = f"{i:02d}.safetensors", save(tensors)
                (part / name).write_bytes(data)
                files[name] = [len(data), zlib.crc32(data)]
            state = {"version": VERSION, "step": checkpoint.step, "files": files, "record": checkpoint.record}
            (part / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        for old in _folders(run)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        last = next((f"; step {_step(old)} is safe" for old in _folders(run)), "")
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror}){last}; make room, then continue with --resume"
        ) from None


def exists(run: Path) -> bool:
    """Whether `run` holds a checkpoint, intact or not."""
    return bool(_folders(run))


def load_latest(run: Path, before: int | None = None) -> Checkpoint:
    """Reads the newest intact checkpoint under `run`, of step `before` or earlier; the oldest if none is so early.

    Damaged ones are passed over, with a warning.

    Raises:
        CheckpointError: None is intact.
    """
    folders = _folders(run)
    if before is not None:
        folders = [p for p in folders if _step(p) <= before] + [p for p in folders if _step(p) > before][::-1]
    for folder in folders:
        try:
            return read(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning(f"{folder}: damaged ({str(error).splitlines()[0]}); trying another")
    raise CheckpointError(f"{run}: holds no intact checkpoint; leave --resume out and choose another --out")


def read(folder: Path) -> Checkpoint:
    """Reads one checkpoint, of this version or version 1.

    Raises:
        OSError, ValueError, KeyError, TypeError: It is damaged.
    """
    state = json.loads((folder / "state.json").read_bytes())
    version = state["version"]
    if version not in (1, VERSION):
        raise ValueError(f"version {version}, this program reads 1 and {VERSION}")
    tensors = {}
    for name, (length, crc) in state["files"].items():
        data = (folder / name).read_bytes()
        if (len(data), zlib.crc32(data)) != (length, crc):
            raise ValueError(f"{name} is not as it was written")
        tensors |= load(data)
    record = state["record"]
    if version == 1:
        record = {VERSION_1_NAMES.get(key, key): value for key, value in record.items()}
        tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
    return Checkpoint(state["step"], tensors, record)


def _renamed(tensor: str) -> str:
    """The name of a tensor of version 1 today."""
    first, dot, rest = tensor.partition(".")
    return VERSION_1_NAMES.get(first, first) + dot + rest


def _shards(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in groups of at most SHARD_BYTES, each of at least one."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    yield shard


def _folders(run: Path) -> list[Path]:
    """The checkpoints, newest first."""
    found = [p for p in run.glob("checkpoint-*") if p.is_dir() and _step(p) >= 0] if run.is_dir() else []
    return sorted(found, key=_step, reverse=True)


def _step(folder: Path) -> int:
    digits = folder.name.removeprefix("checkpoint-")
    return int(digits) if digits.isdecimal() else -1

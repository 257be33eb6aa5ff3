"""Checkpoints, from which a stopped run continues: folders that appear whole or not at all.

`checkpoint-00001000/` holds `state.json` (numbers, and length and CRC-32 of each other file) and shards of at most
15 MB, `00.safetensors`, ... (tensors). The newest two are kept: should one be damaged, the other serves.
"""

import json
import logging
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from edsr.errors import CheckpointError
from edsr.strict_json import loads
from edsr.system import atomic_folder, remove_abandoned
from edsr.wording import named, option

logger = logging.getLogger(__name__)

SHARD_BYTES = 15_000_000  # bytes of tensors in a file, but for a larger single tensor: small enough to be sent anywhere
MAX_STATE_BYTES = 1_000_000  # of state.json, which has a few thousand
MAX_PIECE_BYTES = 2_000_000_000
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
            f"{folder}: cannot be written ({error.strerror}){last}; make room, then continue with {option('resume')}"
        ) from None


def remove_later(run: Path, step: int) -> None:
    """Removes the checkpoints under `run` of steps after `step`."""
    for folder in _folders(run):
        if _step(folder) > step:
            shutil.rmtree(folder, ignore_errors=True)


def exists(run: Path) -> bool:
    """Whether `run` holds a checkpoint, intact or not."""
    return bool(_folders(run))


def places(run: Path) -> list[Path]:
    """All that has a checkpoint's name, be it one or not."""
    return sorted(path for path in run.glob("checkpoint-*") if _step(path) >= 0) if run.is_dir() else []


def load_latest(run: Path, before: int | None = None, check: Callable[[dict], None] | None = None) -> Checkpoint:
    """Reads the newest intact checkpoint under `run`, of step `before` or earlier; the oldest if none is so early.

    Damaged ones are passed over, with a warning.

    Args:
        run: The run's folder.
        before: See above.
        check: Raises ValueError for a record that is damaged.

    Raises:
        CheckpointError: None is intact.
    """
    folders = _folders(run)
    if before is not None:
        folders = [p for p in folders if _step(p) <= before] + [p for p in folders if _step(p) > before][::-1]
    for folder in folders:
        try:
            found = read(folder)
            if check is not None:
                check(found.record)
            return found
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            logger.warning(f"{folder}: damaged ({reason[:200]}); trying another")
    raise CheckpointError(
        f"{run}: holds no intact checkpoint; leave {named('resume')} out and choose another {named('out')}"
    )


def read(folder: Path) -> Checkpoint:
    """Reads one checkpoint, of this version or version 1.

    Raises:
        OSError, ValueError, KeyError, TypeError: It is damaged.
    """
    state = loads(_read_file(folder / "state.json", MAX_STATE_BYTES))
    version, step, files, record = (state[key] for key in ("version", "step", "files", "record"))
    if version not in (1, VERSION):
        raise ValueError(f"version {version}, this program reads 1 and {VERSION}")
    if not isinstance(files, dict) or not files or not isinstance(record, dict):
        raise ValueError("state.json lists no files, or no record")
    if step != _step(folder) or isinstance(step, bool):
        raise ValueError(f"state.json is of step {step}")
    tensors = {}
    for name, (length, crc) in files.items():
        if Path(name).name != name or "\0" in name:
            raise ValueError(f"{name} is not a name of a file in it")
        data = _read_file(folder / name, MAX_PIECE_BYTES)
        if (len(data), zlib.crc32(data)) != (length, crc):
            raise ValueError(f"{name} is not as it was written")
        try:
            tensors |= load(data)
        except SafetensorError as error:
            raise ValueError(f"{name} is not a file of tensors: {error}") from None
    if version == 1:
        record = {VERSION_1_NAMES.get(key, key): value for key, value in record.items()}
        tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
    return Checkpoint(step, tensors, record)


def _read_file(path: Path, limit: int) -> bytes:
    """A file's content; ValueError for what is no file, such as a pipe, which may never end, or too large."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") if stat.S_ISREG(os.fstat(handle).st_mode) else _refuse(handle, path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise ValueError(f"{path.name} is too large")
        return file.read()


def _refuse(handle: int, path: Path) -> BinaryIO:
    os.close(handle)
    raise ValueError(f"{path.name} is not a regular file")


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

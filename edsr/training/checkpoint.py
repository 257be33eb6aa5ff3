"""What a stopped run continues from: a folder of files of at most 15 MB, which appears whole or not at all.

`checkpoint-00001000/` holds `state.json` (numbers, and length and CRC-32 of each other file) and
`00.safetensors`, ... (tensors). The newest two are kept: should one be damaged, the other serves.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load, save
from torch import Tensor

from edsr.errors import CheckpointError

SHARD_BYTES = 15_000_000  # bytes of tensors in a file, but for a larger single tensor: small enough to be sent anywhere
KEPT = 2
VERSION = 1


class Checkpoint(NamedTuple):
    """step: steps done. tensors: by name, on the CPU. record: whatever JSON can say."""

    step: int
    tensors: dict[str, Tensor]
    record: dict


def write(run: Path, checkpoint: Checkpoint) -> None:
    """Writes it under `run`, synced to disk before it gets its name, and removes all but the newest KEPT.

    Raises CheckpointError if the disk refuses; what was there before stays.
    """
    folder = run / f"checkpoint-{checkpoint.step:08d}"
    part = run / f".{folder.name}.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        files = {}
        for i, tensors in enumerate(_shards(checkpoint.tensors)):
            name, data = f"{i:02d}.safetensors", save(tensors)
            _write(part / name, data)
            files[name] = [len(data), zlib.crc32(data)]
        state = {"version": VERSION, "step": checkpoint.step, "files": files, "record": checkpoint.record}
        _write(part / "state.json", json.dumps(state, indent=1).encode())
        _sync(part)
        if folder.exists():  # the same step once more
            shutil.rmtree(folder)
        os.rename(part, folder)
        _sync(run)
        for old in _folders(run)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        last = next((f"; step {_step(old)} is safe" for old in _folders(run)), "")
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror}){last}; make room, then continue with --resume"
        ) from None


def exists(run: Path) -> bool:
    """Whether `run` holds a checkpoint, intact or not."""
    return bool(_folders(run))


def load_latest(run: Path, say: Callable[[str], None], before: int | None = None) -> Checkpoint:
    """The newest intact checkpoint under `run`, of step `before` or earlier; the oldest if none is so early.

    say: told of damaged ones. Raises CheckpointError if none is intact.
    """
    folders = _folders(run)
    if before is not None:
        folders = [p for p in folders if _step(p) <= before] + [p for p in folders if _step(p) > before][::-1]
    for folder in folders:
        try:
            return _read(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(f"{folder}: damaged ({str(error).splitlines()[0]}); trying another")
    raise CheckpointError(f"{run}: holds no intact checkpoint; leave --resume out and choose another --out")


def _read(folder: Path) -> Checkpoint:
    state = json.loads((folder / "state.json").read_bytes())
    if state["version"] != VERSION:
        raise ValueError(f"version {state['version']}, this program reads {VERSION}")
    tensors = {}
    for name, (length, crc) in state["files"].items():
        data = (folder / name).read_bytes()
        if (len(data), zlib.crc32(data)) != (length, crc):
            raise ValueError(f"{name} is not as it was written")
        tensors |= load(data)
    return Checkpoint(state["step"], tensors, state["record"])


def _shards(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    piece: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if piece and size + tensor.nbytes > SHARD_BYTES:
            yield piece
            piece, size = {}, 0
        piece[name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    yield piece


def _folders(run: Path) -> list[Path]:
    """Newest first."""
    found = [p for p in run.glob("checkpoint-*") if p.is_dir() and _step(p) >= 0] if run.is_dir() else []
    return sorted(found, key=_step, reverse=True)


def _step(folder: Path) -> int:
    digits = folder.name.removeprefix("checkpoint-")
    return int(digits) if digits.isdecimal() else -1


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes the names in a folder last, where the system can (Windows cannot, and need not)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

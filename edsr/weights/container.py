"""Files of tensors, safetensors or PyTorch's own, read without running code and within bounds.

Which of the two a file is, its first bytes say, not its name. All sizes in it are checked against the file's before
torch or safetensors see it: the tensors of a file take at most as much memory as the file has bytes.
"""

import os
import pickle
import re
import stat
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from safetensors import safe_open

from edsr.errors import WeightsError
from edsr.resources import available_memory

from .kinds import describe, describe_archive

MAX_BYTES = 4_000_000_000
"""Of a file of weights. The largest published network has 0.2 GB; a checkpoint may keep an optimizer's state, too."""

MAX_PICKLE_BYTES = 8_000_000
"""Of the description of the tensors in a checkpoint: names and shapes."""

MAX_COMPRESSION = 4
"""How many times as large as the file its content may be: weights, if compressed at all, hardly become smaller."""

_LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6: a pickled magic number
_DAMAGED = "damaged, or not a file of weights"


def read_file(path: Path) -> tuple[Any, dict[str, str]]:
    """A file's content, unchecked, and the metadata in its header.

    Raises:
        WeightsError: It is none, damaged, too large, or holds code; without the file's name.
    """
    try:
        with _open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(512)
            file.seek(0)
            _check_size(size)
            if _is_safetensors(start):
                with safe_open(path, "pt") as tensors:
                    content = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
                    return content, tensors.metadata() or {}
            if start.startswith(b"PK"):
                _check_archive(file, size)
            elif start.startswith(_LEGACY_START):
                _check_legacy(file, size)
            else:
                what = describe(start, path)
                raise WeightsError(f"not a file of weights, but {what}" if what else f"{_DAMAGED}")
            file.seek(0)
            with warnings.catch_warnings(action="ignore"):  # they are about formats; the result says it all
                return torch.load(file, map_location="cpu", weights_only=True), {}
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror or _first_line(error)})") from error
    except MemoryError as error:
        raise WeightsError("there is not enough memory to read it") from error
    except Exception as error:  # neither reader documents what damaged bytes may lead it to raise
        raise _as_weights_error(error) from error


def _open_regular(path: Path) -> IO[bytes]:
    """Opens a file that is neither a pipe nor a device; these could be read without end."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise WeightsError("is not a regular file")
    return os.fdopen(handle, "rb")


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise WeightsError(f"has {size / 1e9:.1f} GB, and files of weights at most {MAX_BYTES / 1e9:.0f}; give another")
    if size > MAX_BYTES // 16 and 2 * size > (available := available_memory()):
        raise WeightsError(f"needs {2 * size / 1e9:.1f} GB of memory, of which {available / 1e9:.1f} GB are free")


def _is_safetensors(start: bytes) -> bool:
    """Whether it begins with the length of a table, below 4 GB, and a JSON table."""
    return start[4:9] == b"\0\0\0\0{"


def _as_weights_error(error: Exception) -> WeightsError:
    if code := re.search(r"GLOBAL (\S+)|reduce for \w+ function (\S+)", str(error)):
        return WeightsError(f"it holds code ({code[1] or code[2]}) and is refused; ask for its state_dict alone")
    line = re.split(r"[Ww]eights_only| WeightsUnpickler", _first_line(error))[0].strip(" .:(")
    return WeightsError(f"{_DAMAGED}: {line}" if line else _DAMAGED)


def _first_line(error: BaseException) -> str:
    """Of its message, at most 120 characters."""
    return next(iter(str(error).splitlines()), "")[:120] or type(error).__name__


# --- What torch.load would allocate


def _check_archive(file: IO[bytes], size: int) -> None:
    """Checks a zip archive of torch.save: what its entries unpack to, and what tensors its pickle asks for.

    Raises:
        WeightsError: It is another archive, or claims more than it has.
    """
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_COMPRESSION * size:
            sizes = f"{size / 1e6:.1f} MB would be unpacked to {unpacked / 1e6:.1f} MB"
            raise WeightsError(f"{sizes}, which no weights are; it is refused; give the file as torch.save wrote it")
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        kind = describe_archive(list(entries))
        if kind == "TorchScript":
            raise WeightsError("it holds code (TorchScript) and is refused; ask for its state_dict alone")
        if len(pickles) != 1:
            raise WeightsError(f"not a file of weights, but {kind}")
        folder = pickles[0].removesuffix("data.pkl")
        if entries[pickles[0]].file_size > MAX_PICKLE_BYTES:
            raise WeightsError(_DAMAGED)
        with archive.open(pickles[0]) as data:
            claims = _claimed_storages(data)
    for key, length in claims.items():
        entry = entries.get(f"{folder}data/{key}")
        if entry is None or length > entry.file_size:
            raise WeightsError(f"{_DAMAGED}: it holds less than its tensors need")


def _check_legacy(file: IO[bytes], size: int) -> None:
    """The same for the format of PyTorch before 1.6: five pickles, then all numbers."""
    reader = _Reader(file, min(size, MAX_PICKLE_BYTES))
    claims: dict[str, int] = {}
    for _ in range(5):  # a magic number, a version, the system, the content, the keys of the storages
        claims |= _claimed_storages(reader)
    if sum(claims.values()) > size:
        raise WeightsError(f"{_DAMAGED}: it holds less than its tensors need")


class _Reader:
    """At most so many bytes of a file, whatever sizes are asked for."""

    def __init__(self, file: IO[bytes], left: int):
        self.file, self.left = file, left

    def read(self, count: int) -> bytes:
        data = self.file.read(max(0, min(count, self.left)))
        self.left -= len(data)
        return data

    def readline(self) -> bytes:
        data = self.file.readline(self.left)
        self.left -= len(data)
        return data

    def readinto(self, buffer: bytearray) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Inert:
    """Stands for whatever a pickle would make: takes all that is done to it and does nothing."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, *arguments: Any) -> "_Inert":
        return _Inert("")

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    add = extend = append


# What torch.load would call with a size that only the pickle knows.
_GREEDY = {("builtins", "bytearray"), ("__builtin__", "bytearray")}
_GREEDY |= {("torch.storage", kind) for kind in ("UntypedStorage", "TypedStorage", "_UntypedStorage")}


class _Claims(pickle._Unpickler):
    """Goes through a pickle without making anything, and notes what storages it asks for.

    This is the implementation in Python: the one in C allocates what a pickle claims.
    """

    # All but the one that allocates what it claims.
    dispatch: ClassVar = {k: v for k, v in pickle._Unpickler.dispatch.items() if k != pickle.BYTEARRAY8[0]}

    def __init__(self, file: Any):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _GREEDY:
            raise WeightsError(f"it holds code ({module}.{name}) and is refused; ask for its state_dict alone")
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Inert(name)

    def persistent_load(self, pid: Any) -> _Inert:
        if isinstance(pid, tuple) and pid[0] in ("storage", b"storage") and isinstance(pid[1], _Inert):
            kind, key, numel = pid[1].name, str(pid[2]), pid[4]
            size = numel * _SIZES.get(kind, 1)
            if not isinstance(numel, int) or size < 0:
                raise WeightsError(_DAMAGED)
            self.storages[key] = max(size, self.storages.get(key, 0))
        return _Inert("")


_SIZES = {
    "DoubleStorage": 8, "LongStorage": 8, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
    "FloatStorage": 4, "IntStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "ShortStorage": 2,
}  # fmt: skip


def _claimed_storages(file: Any) -> dict[str, int]:
    """How many bytes each storage that a pickle names is to have."""
    claims = _Claims(file)
    claims.load()
    return claims.storages

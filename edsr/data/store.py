"""Decoded images end to end in two flat buffers, in memory or in files mapped into it."""

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edsr.errors import DataError
from edsr.system import atomic_folder, available_memory, remove_abandoned

logger = logging.getLogger(__name__)

_FORMAT = 1  # of the cache: to be raised when what is stored, or how images are reduced, changes


@dataclass
class PairedImages:
    """Decoded images and their reductions, end to end, row by row, in two flat buffers.

    hr: [P·s², 3], lr: [P, 3]; uint8, or, if any image has 16 bits, the bits of uint16 levels as int16, because
    torch gathers int16 on every device, but not uint16. Gray is repeated to three channels.
    table: int64 [n, 5], in pixels: offset into hr, offset into lr, LR height, LR width; then the number of the
    image in the set, which crops of one image share. An HR image is `scale` times as high and wide.
    """

    scale: int
    hr: Tensor
    lr: Tensor
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    @property
    def nbytes(self) -> int:
        return self.hr.nbytes + self.lr.nbytes

    def pair(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(LR [h, w, 3], HR [s·h, s·w, 3]) of a row of the table, uint8 or uint16; views where possible."""
        high, low, height, width, _ = self.index[i].tolist()
        s = self.scale
        return _pixels_of(self.lr, low, height, width), _pixels_of(self.hr, high, s * height, s * width)

    def to(self, device: torch.device | str) -> "PairedImages":
        return replace(self, hr=self.hr.to(device), lr=self.lr.to(device))


def pack(pairs: Sequence[tuple[np.ndarray, np.ndarray]], scale: int) -> PairedImages:
    """Images from (LR [h, w, 3], HR [s·h, s·w, 3]) pairs, all uint8 or all uint16."""
    heights, widths = np.array([low.shape[:2] for low, _ in pairs], np.int64).T
    ends = np.cumsum(heights * widths)
    starts = ends - heights * widths
    table = np.stack([starts * scale**2, starts, heights, widths, np.arange(len(pairs))], 1)
    lr, hr = (np.concatenate([pair[side].reshape(-1, 3) for pair in pairs]) for side in (0, 1))
    return PairedImages(scale, _to_tensor(hr), _to_tensor(lr), table)


def _pixels_of(pixels: Tensor, start: int, height: int, width: int) -> np.ndarray:
    flat = pixels[start : start + height * width].cpu().numpy()
    return (flat.view(np.uint16) if flat.dtype == np.int16 else flat).reshape(height, width, 3)


def _to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels)


class MemoryStore:
    """The buffers in memory, filled from their beginning; what stays empty is never touched."""

    def __init__(self, pixels: int, scale: int, dtype: np.dtype):
        low = pixels // scale**2
        need, available = (pixels + low) * 3 * dtype.itemsize, available_memory()
        if need > available // 2:
            sizes = f"{need / 1e9:.1f} GB decoded, more than half of the {available / 1e9:.1f} GB of memory available"
            raise DataError(f"the images are {sizes}; add --cache DIR to keep them in files")
        self.scale, self.filled = scale, 0
        try:
            self.hr, self.lr = np.empty((pixels, 3), dtype), np.empty((low, 3), dtype)
        except MemoryError:
            raise DataError(f"no memory for {need / 1e9:.1f} GB of images; add --cache DIR") from None

    def add(self, hr: np.ndarray, lr: np.ndarray) -> None:
        start, self.filled = self.filled, self.filled + lr.size // 3
        area = self.scale**2
        self.lr[start : self.filled] = lr.reshape(-1, 3)
        self.hr[start * area : self.filled * area] = hr.reshape(-1, 3)

    def finish(self, table: np.ndarray) -> PairedImages:
        hr, lr = self.hr[: self.filled * self.scale**2], self.lr[: self.filled]
        return PairedImages(self.scale, _to_tensor(hr), _to_tensor(lr), table)


class DiskCache:
    """The buffers as files: a folder for each set of sources and each plan, with hr.bin, lr.bin, table.bin, index.json.

    The index is written last, and the folder gets its name when all is on disk. It holds what the set was made of.
    """

    def __init__(self, root: Path, scale: int, name: Sequence[str], settings: Sequence, paths: Sequence[Path]):
        self.root, self.scale = root, scale
        self.folder = root / f"x{scale}-{_digest((*map(os.fsencode, name), scale, *settings))[:16]}"
        self.key = _digest((_FORMAT, *map(_file_stamp, paths)))

    def open(self) -> PairedImages | None:
        """What is kept, or None if there is nothing, or nothing of use, which is logged."""
        images = self._read()
        if images is not None:
            logger.info(f"{len(images)} images found in {self.folder}")
        return images

    def _read(self) -> PairedImages | None:
        try:
            index = json.loads((self.folder / "index.json").read_text())
            if index["key"] != self.key:
                logger.info(f"{self.folder}: the images have changed since, reading them again")
                return None
            dtype, low = np.dtype(index["dtype"]), index["pixels"]
            rows = (self.folder / "table.bin").read_bytes()
            if zlib.crc32(rows) != index["table"] or dtype not in (np.uint8, np.uint16):
                raise ValueError
            table = np.frombuffer(rows, np.int64).reshape(-1, 5)
            hr, lr = (self._map(name, n, dtype) for name, n in (("hr.bin", low * self.scale**2), ("lr.bin", low)))
        except FileNotFoundError:
            if self.folder.exists():
                logger.warning(f"{self.folder}: incomplete, reading the images again")
            return None
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning(f"{self.folder}: damaged, reading the images again")
            return None
        return PairedImages(self.scale, _to_tensor(hr), _to_tensor(lr), table)

    def _map(self, name: str, pixels: int, dtype: np.dtype) -> np.ndarray:
        path = self.folder / name
        if path.stat().st_size != pixels * 3 * dtype.itemsize:
            raise ValueError
        return np.memmap(path, dtype, "c", shape=(pixels, 3))  # "c": torch wants to be allowed to write


class DiskCacheWriter:
    """Fills a cache image by image, in a folder that gets the cache's name when `finish` is called, or is removed."""

    def __init__(self, cache: DiskCache, pixels: int, dtype: np.dtype):
        self.cache, self.dtype, self.pixels, self.filled = cache, dtype, pixels, 0
        self._stack = ExitStack()

    def __enter__(self) -> "DiskCacheWriter":
        need = (self.pixels + self.pixels // self.cache.scale**2) * 3 * self.dtype.itemsize
        with self._as_data_error():
            self.cache.root.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.cache.root)
            free = shutil.disk_usage(self.cache.root).free
            if need > free:
                sizes = f"{need / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
                raise DataError(f"{self.cache.root}: {sizes}; choose another folder with --cache")
            with ExitStack() as stack:
                self._folder = stack.enter_context(atomic_folder(self.cache.folder))
                self._files = [stack.enter_context(open(self._folder / f"{kind}.bin", "xb")) for kind in ("hr", "lr")]
                self._stack = stack.pop_all()
        return self

    def add(self, hr: np.ndarray, lr: np.ndarray) -> None:
        with self._as_data_error():
            for file, pixels in zip(self._files, (hr, lr), strict=True):
                file.write(pixels.data)
        self.filled += lr.size // 3

    def finish(self, table: np.ndarray) -> PairedImages:
        index = {
            "key": self.cache.key,
            "dtype": self.dtype.name,
            "pixels": self.filled,
            "table": zlib.crc32(table.tobytes()),
        }
        with self._as_data_error():
            (self._folder / "table.bin").write_bytes(table.tobytes())
            (self._folder / "index.json").write_text(json.dumps(index))
            self._stack.close()
        images = self.cache._read()
        if images is None:
            raise DataError(f"{self.cache.folder}: cannot be read after it was written; choose another with --cache")
        return images

    def __exit__(self, *error: Any) -> None:
        with suppress(OSError):  # of a full disk, which `add` or `finish` has raised before
            self._stack.__exit__(*error)

    @contextmanager
    def _as_data_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = f"cannot be written ({error.strerror})"
            raise DataError(f"{self.cache.root}: {why}; choose another folder with --cache") from None


def _digest(value: tuple) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _file_stamp(path: Path) -> tuple:
    try:
        status = path.stat()
    except OSError:
        return (os.fsencode(path),)
    return os.path.abspath(os.fsencode(path)), status.st_size, status.st_mtime_ns

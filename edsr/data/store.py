"""Decoded images end to end in two flat buffers, in memory or in files mapped into it."""

import hashlib
import json
import logging
import os
import shutil
import stat
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
from edsr.resources import available_memory
from edsr.strict_json import loads
from edsr.system import atomic_folder, remove_abandoned, why_unwritable
from edsr.wording import either, named

logger = logging.getLogger(__name__)

_FORMAT = 1  # of the cache: to be raised when what is stored, or how images are downscaled, changes
HR_START, LR_START, HEIGHT, WIDTH, IMAGE = range(5)  # columns of PairedImages.index


@dataclass
class PairedImages:
    """HR images and their LR counterparts, end to end, row by row, in two flat buffers.

    Attributes:
        scale: How many times as high and wide as its LR image an HR image is.
        hr: [P·s², 3], uint8, or, if any image has 16 bits, the bits of uint16 levels as int16, because torch gathers
            int16 on every device, but not uint16. Gray is repeated to three channels.
        lr: [P, 3], as hr.
        index: int64 [n, 5], in pixels: offset into hr, offset into lr, LR height, LR width; then the number of the
            image in the dataset, which crops of one image share.
    """

    scale: int
    hr: Tensor
    lr: Tensor
    index: np.ndarray

    @classmethod
    def from_pairs(cls, pairs: Sequence[tuple[np.ndarray, np.ndarray]], scale: int) -> "PairedImages":
        """Concatenates (LR [h, w, 3], HR [s·h, s·w, 3]) pairs, all uint8 or all uint16."""
        heights, widths = np.array([lr.shape[:2] for lr, _ in pairs], np.int64).T
        ends = np.cumsum(heights * widths)
        starts = ends - heights * widths
        index = np.stack([starts * scale**2, starts, heights, widths, np.arange(len(pairs))], 1)
        lr, hr = (np.concatenate([pair[side].reshape(-1, 3) for pair in pairs]) for side in (0, 1))
        return cls(scale, _to_tensor(hr), _to_tensor(lr), index)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def nbytes(self) -> int:
        return self.hr.nbytes + self.lr.nbytes

    def pair(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(LR [h, w, 3], HR [s·h, s·w, 3]) of a row of the index, uint8 or uint16; views where possible."""
        hr_start, lr_start, height, width, _ = self.index[i].tolist()
        s = self.scale
        return _image_at(self.lr, lr_start, height, width), _image_at(self.hr, hr_start, s * height, s * width)

    def to(self, device: torch.device | str) -> "PairedImages":
        return replace(self, hr=self.hr.to(device), lr=self.lr.to(device))


def _image_at(pixels: Tensor, start: int, height: int, width: int) -> np.ndarray:
    flat = pixels[start : start + height * width].cpu().numpy()
    return (flat.view(np.uint16) if flat.dtype == np.int16 else flat).reshape(height, width, 3)


def _to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels)


class MemoryStore:
    """Buffers in memory, filled from their beginning; what stays empty is never touched."""

    def __init__(self, pixels: int, scale: int, dtype: np.dtype):
        lr_pixels = pixels // scale**2
        folder = either("cache=DIR", "--cache DIR")
        need, available = (pixels + lr_pixels) * 3 * dtype.itemsize, available_memory()
        if need > available // 2:
            sizes = f"{need / 1e9:.1f} GB decoded, more than half of the {available / 1e9:.1f} GB of memory available"
            raise DataError(f"the images are {sizes}; add {folder} to keep them in files")
        self.scale, self.filled = scale, 0
        try:
            self.hr, self.lr = np.empty((pixels, 3), dtype), np.empty((lr_pixels, 3), dtype)
        except MemoryError:
            raise DataError(f"no memory for {need / 1e9:.1f} GB of images; add {folder}") from None

    def add(self, hr: np.ndarray, lr: np.ndarray) -> None:
        start, self.filled = self.filled, self.filled + lr.size // 3
        area = self.scale**2
        self.lr[start : self.filled] = lr.reshape(-1, 3)
        self.hr[start * area : self.filled * area] = hr.reshape(-1, 3)

    def finish(self, index: np.ndarray) -> PairedImages:
        hr, lr = self.hr[: self.filled * self.scale**2], self.lr[: self.filled]
        return PairedImages(self.scale, _to_tensor(hr), _to_tensor(lr), index)


class DiskCache:
    """Buffers as files: a folder for each list of sources and settings, with hr.bin, lr.bin, table.bin, index.json.

    table.bin holds `PairedImages.index`; index.json the digest of the source files that the images were read from.
    """

    def __init__(self, root: Path, scale: int, name: Sequence[str], settings: Sequence, paths: Sequence[Path]):
        self.root, self.scale = root, scale
        self.folder = root / f"x{scale}-{_digest((*map(os.fsencode, name), scale, *settings))[:16]}"
        self.key = _digest((_FORMAT, *map(_file_stamp, paths)))

    def open(self) -> PairedImages | None:
        """The images, or None if there are none, or none that can be used; which of them is logged."""
        images = self._read()
        if images is not None:
            logger.info(f"{len(images)} images found in {self.folder}")
        return images

    def require_writable(self) -> None:
        """Raises DataError, before images are read, if they cannot be kept."""
        if why := why_unwritable(self.root):
            raise DataError(f"{self.root}: cannot be written ({why}); choose another folder with {named('cache')}")

    def _read(self) -> PairedImages | None:
        try:
            header = loads(_regular(self.folder / "index.json").read_bytes())
            if header["key"] != self.key:
                logger.info(f"{self.folder}: the images have changed since, reading them again")
                return None
            dtype, pixels = np.dtype(header["dtype"]), header["pixels"]
            rows = _regular(self.folder / "table.bin").read_bytes()
            if zlib.crc32(rows) != header["table"] or dtype not in (np.uint8, np.uint16):
                raise ValueError
            index = np.frombuffer(rows, np.int64).reshape(-1, 5)
            _check_index(index, pixels, self.scale)
            hr, lr = (self._map(name, n, dtype) for name, n in (("hr.bin", pixels * self.scale**2), ("lr.bin", pixels)))
        except FileNotFoundError:
            if self.folder.exists():
                logger.warning(f"{self.folder}: incomplete, reading the images again")
            return None
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning(f"{self.folder}: damaged, reading the images again")
            return None
        return PairedImages(self.scale, _to_tensor(hr), _to_tensor(lr), index)

    def _map(self, name: str, pixels: int, dtype: np.dtype) -> np.ndarray:
        path = _regular(self.folder / name)
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
                raise DataError(f"{self.cache.root}: {sizes}; choose another folder with {named('cache')}")
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

    def finish(self, index: np.ndarray) -> PairedImages:
        header = {
            "key": self.cache.key,
            "dtype": self.dtype.name,
            "pixels": self.filled,
            "table": zlib.crc32(index.tobytes()),
        }
        with self._as_data_error():
            (self._folder / "table.bin").write_bytes(index.tobytes())
            (self._folder / "index.json").write_text(json.dumps(header))
            self._stack.close()
        images = self.cache._read()
        if images is None:
            raise DataError(
                f"{self.cache.folder}: cannot be read after it was written; choose another with {named('cache')}"
            )
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
            raise DataError(f"{self.cache.root}: {why}; choose another folder with {named('cache')}") from None


def _regular(path: Path) -> Path:
    """The path of a file; ValueError for what is none, such as a pipe, which may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a regular file")
    return path


def _check_index(index: np.ndarray, pixels: int, scale: int) -> None:
    """Raises ValueError if an image would lie outside of the buffers."""
    hr_start, lr_start, height, width = index.T[:4].astype(object)  # of any size
    ends = lr_start + height * width, hr_start + height * width * scale**2
    if (index < 0).any() or (ends[0] > pixels).any() or (ends[1] > pixels * scale**2).any():
        raise ValueError("the index points outside of the images")


def _digest(value: tuple) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _file_stamp(path: Path) -> tuple:
    try:
        status = path.stat()
    except OSError:
        return (os.fsencode(path),)
    return os.path.abspath(os.fsencode(path)), status.st_size, status.st_mtime_ns

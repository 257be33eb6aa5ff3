"""Writes image pairs as HDF5: patches in the layout of the 91-image files, whole images in that of Set5's."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from edsr.errors import DataError, ImageError
from edsr.images import matlab_bicubic
from edsr.progress import BatchProgress, Silent
from edsr.system import atomic_file, remove_abandoned, why_unwritable_file
from edsr.wording import named, option

from .dataset import map_in_threads, read_pairs, scan_groups
from .hdf5 import ENDINGS, import_h5py
from .sources import ImageGroup, LoadSpec, SourceFile, find_div2k, find_files

logger = logging.getLogger(__name__)

PATCH = 48
"""HR pixels a side of a patch, unless told: a multiple of every scale."""

_LUMA = np.array([65.481, 128.553, 24.966])  # of BT.601, from 0..1 to 0..219; black is 16
_CHUNK = 2**16  # bytes that HDF5 reads at least


class Layout(NamedTuple):
    """What is written.

    Attributes:
        scale: How many times larger HR is than LR.
        patch: HR pixels a side; None: whole images.
        stride: HR pixels from one patch to the next.
        color: "luma" or "rgb".
        upscaled: Whether LR is upscaled by bicubic.
    """

    scale: int
    patch: int | None
    stride: int
    color: str
    upscaled: bool


class Prepared(NamedTuple):
    """What `prepare_hdf5` has written: so many pairs, from so many images."""

    pairs: int
    images: int
    layout: Layout


def prepare_hdf5(
    sources: Sequence[str | Path],
    out: str | Path,
    scale: int = 2,
    kind: str = "train",
    *,
    patch: int | None = None,
    stride: int | None = None,
    color: str = "luma",
    upscaled: bool = False,
    overwrite: bool = False,
    progress: BatchProgress | None = None,
) -> Prepared:
    """Writes the images of folders as pairs of HR and LR into an HDF5 file, whole or not at all.

    LR images are made of whole images as MATLAB's bicubic does, but where DIV2K's layout or an HDF5 file has them. What
    is left out, and why, is logged.

    Args:
        sources: See `edsr.data.load_dataset`; of DIV2K's layout the training or the validation images, by `kind`.
        out: The file, *.h5 or *.hdf5.
        scale: How many times larger HR is than LR.
        kind: "train": patches, datasets `lr` [N, h, w] and `hr` [N, H, W]. "eval": whole images, cropped to a multiple
            of the scale, groups `lr` and `hr` with a dataset for each, "0", "1" and so on, in order of path.
        patch: HR pixels a side of a patch, by default 48; a multiple of the scale unless `upscaled`.
        stride: HR pixels from one patch to the next, likewise; by default as many as a patch has.
        color: "luma": BT.601's, 16..235, float32, not rounded; a gray image as it is, 0..255, as MATLAB's scripts have
            it. "rgb": uint8, with a last axis of 3; patches are uint16 where images have 16 bits.
        upscaled: Upscales LR by bicubic to the size of HR, as SRCNN wants it.
        overwrite: Whether an existing file is replaced.
        progress: Shows how many images are done.

    Raises:
        DataError: A source or option is unfit, no image is left, or the file cannot be written.
    """
    if isinstance(sources, str | os.PathLike):
        raise TypeError(f"sources are a list of files and folders, not {sources!r}")
    out = Path(out)
    layout = _check_layout(scale, kind, patch, stride, color, upscaled)
    files = [file for source in sources for file in _find(Path(source), kind, scale)]
    _check_output(out, files, overwrite)
    spec = LoadSpec(scale, 1)
    side = layout.patch or scale
    groups, largest = scan_groups(files, spec, -(-side // scale) * scale)
    if not groups:
        most = f" or a {named('patch')} of {largest // scale * scale} at most" if kind == "train" and largest else ""
        raise DataError(f"no image left; give other folders{most}")
    deep = kind == "train" and color == "rgb" and any(group.is_16bit for group in groups)
    with _as_data_error(out):
        remove_abandoned(out.parent)
        paths = [path for file in files for path in file if path is not None]
        with atomic_file(out, overwrite, paths) as file, ThreadPoolExecutor(1) as thread:
            target = _Target(file)
            work = thread.submit(_write, target, groups, layout, deep, out, progress or Silent())
            try:
                return work.result()
            except BaseException:  # an interruption, which only this thread knows of
                target.stop()
                raise


def _write(
    target: "_Target", groups: list[ImageGroup], layout: Layout, deep: bool, out: Path, progress: BatchProgress
) -> Prepared:
    """Writes the file, not in the main thread: HDF5 calls Python to write, and an interruption there would end in a
    crash, or pass unseen. deep: whether RGB is written with 16 bits.
    """
    with target.noticing(), import_h5py(out).File(target, "w") as hdf5:
        return _fill(hdf5, target, groups, layout, deep, out, progress)


def _fill(
    hdf5: Any,
    target: "_Target",
    groups: list[ImageGroup],
    layout: Layout,
    deep: bool,
    out: Path,
    progress: BatchProgress,
) -> Prepared:
    count = sum(group.count for group in groups)
    logger.info(f"reading {count} image{'s' * (count != 1)}")
    writer, images = (_Images if layout.patch is None else _Patches)(hdf5, layout), 0
    read = partial(_read, layout=layout, deep=deep)
    with progress.file(out.name, 1, count, out) as bar:
        for group, pairs in zip(groups, map_in_threads(read, groups), strict=True):
            try:
                hr, lr = pairs.result()
            except ImageError as error:
                logger.warning(str(error))
            else:
                for pair in zip(hr, lr, strict=True):
                    for _ in writer.add(*pair):
                        target.check()
                images += group.count
            bar.advance(group.count)
    if images == 0:
        raise DataError("no image left that can be read; give other folders")
    return Prepared(writer.count, images, layout)


class _Target:
    """A file for HDF5, which prints errors as tracebacks, and passes over some: the first is kept, and nothing more
    written.
    """

    def __init__(self, file: BinaryIO):
        self._file: Any = file
        self._error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        return self._attempt(lambda: self._file.read(size), b"")

    def readinto(self, buffer: memoryview) -> int:
        return self._attempt(lambda: self._file.readinto(buffer), 0)

    def write(self, data: memoryview) -> int:
        return self._attempt(lambda: self._file.write(data), len(data))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._attempt(lambda: self._file.seek(offset, whence), 0)

    def tell(self) -> int:
        return self._attempt(self._file.tell, 0)

    def truncate(self, size: int) -> int:
        return self._attempt(lambda: self._file.truncate(size), size)

    def flush(self) -> None:
        self._attempt(self._file.flush, None)

    def _attempt(self, action: Callable[[], Any], failed: Any) -> Any:
        if self._error is None:
            try:
                return action()
            except Exception as error:
                self._error = error
        return failed

    def stop(self) -> None:
        """Nothing more is written, and `check` raises an error."""
        self._error = self._error or InterruptedError()

    def check(self) -> None:
        """Raises the error that there was."""
        if self._error is not None:
            raise self._error

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """In place of what HDF5 says of an error, and where it says nothing, the error is raised."""
        try:
            yield
        except Exception:
            self.check()
            raise
        self.flush()
        self.check()


class _Images:
    """Groups `hr` and `lr`, with a dataset for each image."""

    def __init__(self, hdf5: Any, layout: Layout):
        self._hdf5, self.count = hdf5, 0

    def add(self, hr: np.ndarray, lr: np.ndarray) -> Iterator[None]:
        """Writes a pair, and yields after each part of it."""
        for key, pixels in ("hr", hr), ("lr", lr):
            self._hdf5[f"{key}/{self.count}"] = pixels
        self.count += 1
        yield


class _Patches:
    """Datasets `hr` and `lr` of patches, a row of which is written at a time."""

    def __init__(self, hdf5: Any, layout: Layout):
        self._hdf5, self._layout, self.count = hdf5, layout, 0

    def add(self, hr: np.ndarray, lr: np.ndarray) -> Iterator[None]:
        """Writes the patches of a pair, and yields after each row of them."""
        side, stride, unit = self._layout.patch or 0, self._layout.stride, hr.shape[0] // lr.shape[0]
        columns = range(0, hr.shape[1] - side + 1, stride)
        for y in range(0, hr.shape[0] - side + 1, stride):
            for key, pixels, n in ("hr", hr, 1), ("lr", lr, unit):
                rows = pixels[y // n : (y + side) // n]
                self._append(key, np.stack([rows[:, x // n : (x + side) // n] for x in columns]))
            self.count += len(columns)
            yield

    def _append(self, key: str, patches: np.ndarray) -> None:
        shape = patches.shape[1:]
        if key not in self._hdf5:
            chunk = max(1, _CHUNK // patches[0].nbytes)
            self._hdf5.create_dataset(key, (0, *shape), patches.dtype, maxshape=(None, *shape), chunks=(chunk, *shape))
        dataset = self._hdf5[key]
        dataset.resize(self.count + len(patches), 0)
        dataset[self.count :] = patches


# --- images


def _read(group: ImageGroup, layout: Layout, deep: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """HR and LR images of a group, as they are written. Raises ImageError."""
    depth = np.dtype(np.uint16 if deep or (group.is_16bit and layout.color == "luma") else np.uint8)
    hr, lr = read_pairs(group, LoadSpec(layout.scale, 1), depth)
    small = [_upscale(image, *hr.shape[1:3]) for image in lr] if layout.upscaled else lr
    convert = partial(_convert, layout=layout)
    return list(map(convert, hr)), list(map(convert, small))


def _upscale(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """MATLAB's bicubic, rounded once, at the end."""
    larger = matlab_bicubic(image.astype(np.float64), height, width)
    return np.clip(np.floor(larger + 0.5), 0, np.iinfo(image.dtype).max).astype(image.dtype)


def _convert(image: np.ndarray, layout: Layout) -> np.ndarray:
    """[h, w, 1 or 3] as it is written: luma [h, w], or [h, w, 3] (a gray one [h, w], unless it is for patches)."""
    gray = image.shape[2] == 1
    if layout.color == "rgb":
        return image[..., 0] if gray and layout.patch is None else np.broadcast_to(image, (*image.shape[:2], 3))
    white = np.iinfo(image.dtype).max
    if gray:
        return (image[..., 0] * (255 / white)).astype(np.float32)
    return (16 + np.einsum("hwc,c->hw", image, _LUMA / white)).astype(np.float32)


# --- arguments


def _check_layout(scale: int, kind: str, patch: int | None, stride: int | None, color: str, upscaled: bool) -> Layout:
    if kind not in ("train", "eval") or color not in ("luma", "rgb"):
        raise ValueError(f"kind is train or eval, and color luma or rgb, not {kind!r} and {color!r}")
    if kind == "eval":
        if patch is not None or stride is not None:
            lead = f"{named('patch')} and {named('stride')} are for patches to train on"
            raise DataError(f"{lead}; leave them out, or give {option('kind', 'train')}", misuse=True)
        return Layout(scale, None, 1, color, upscaled)
    patch = PATCH if patch is None else patch
    stride = patch if stride is None else stride
    for name, value in ("patch", patch), ("stride", stride):
        if value < 1 or (value % scale and not upscaled):
            raise DataError(f"{named(name)} must be a multiple of {scale}, in HR pixels, not {value}", misuse=True)
    return Layout(scale, patch, stride, color, upscaled)


def _find(source: Path, kind: str, scale: int) -> list[SourceFile]:
    if (source / "DIV2K_train_HR").is_dir():
        return find_div2k(source, "train" if kind == "train" else "valid", scale)
    return find_files(source)


def _check_output(out: Path, files: list[SourceFile], overwrite: bool) -> None:
    """Raises DataError, before images are read, if the file cannot be written."""
    if out.suffix.lower() not in ENDINGS:
        raise DataError(f"{out}: HDF5 files are told by their names; name it {out.stem}.h5", misuse=True)
    if os.path.lexists(out) and not overwrite:
        raise DataError(f"{out} exists; add {option('overwrite')} to replace it")
    if out.exists() and any(file.path.exists() and os.path.samefile(out, file.path) for file in files):
        raise DataError(f"{out}: is the source itself; name another file")
    if why := why_unwritable_file(out):
        raise DataError(f"{out}: {why}")
    import_h5py(out)


@contextmanager
def _as_data_error(out: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise DataError(f"{out} exists; add {option('overwrite')} to replace it") from None
    except OSError as error:
        why = error.strerror or str(error).partition("\n")[0]
        raise DataError(f"{out}: cannot be written ({why})") from None

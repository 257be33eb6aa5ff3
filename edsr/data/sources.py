"""Where training images come from: folders, DIV2K's layout, image files, HDF5; found and scanned, not yet decoded."""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edsr.errors import DataError, ImageError
from edsr.images import READABLE, ImageReader, passed_over, read_opaque, scan_images, to_depth
from edsr.wording import named

from .value_range import find_white, measure

logger = logging.getLogger(__name__)

_HDF5 = (".h5", ".hdf5")
_LR_NAME, _HR_NAME = (
    re.compile(pattern, re.IGNORECASE) for pattern in (r"(.*[_-])?LR([_-]?x?\d|[_-].*)?", r"(.*[_-])?HR([_-].*)?")
)  # of folders, as in Flickr2K_LR_bicubic beside Flickr2K_HR


class SourceFile(NamedTuple):
    """An image or HDF5 file; lr_path: the file of its LR image, where the layout has one."""

    path: Path
    lr_path: Path | None = None


def find_files(path: Path) -> list[SourceFile]:
    """The file of this name, or all images in the folder, at any depth. Raises DataError."""
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; give another with {named('data')}")
        return [SourceFile(path)]
    found = _find_images(path, recursive=True)
    for file in found:
        if "DIV2K_train_HR" in file.parts[len(path.parts) :]:
            # Taken as any folder, its LR images and its validation images would be trained on as well.
            root = Path(*file.parts[: file.parts.index("DIV2K_train_HR")])
            raise DataError(f"{path}: DIV2K lies deeper in it; give {root} itself with {named('data')}")
    folders = {parent for file in found for parent in file.parents if parent.is_relative_to(path) and parent != path}
    lr, hr = (sorted(folder for folder in folders if kind.fullmatch(folder.name)) for kind in (_LR_NAME, _HR_NAME))
    if lr and hr:
        raise DataError(
            f"{path}: reductions ({lr[0]}) would be trained on as originals; give {hr[0]} with {named('data')}"
        )
    return [SourceFile(file) for file in found]


def find_div2k(folder: Path, split: str, scale: int, limit: int | None = None, crop: bool = False) -> list[SourceFile]:
    """The images of DIV2K's "train" or "valid"; how many have a reduction of their own is logged.

    Args:
        folder: The one in which DIV2K's own lie.
        split: "train" or "valid".
        scale: Reductions are looked for in X{scale}, as 0001x{scale} or 0001, in any format.
        limit: The most images.
        crop: Whether images will be cut into squares, and reductions left alone.

    Raises:
        DataError: There are no images, or two reductions of one.
    """
    lr_folder = folder / f"DIV2K_{split}_LR_bicubic" / f"X{scale}"
    paths = _find_images(folder / f"DIV2K_{split}_HR")[:limit]
    reductions: defaultdict[str, list[Path]] = defaultdict(list)
    if lr_folder.is_dir():
        for path in sorted(lr_folder.iterdir()):
            if path.suffix.lower() in READABLE and path.is_file():
                reductions[path.stem].append(path)
    files = []
    for path in paths:
        found = reductions.get(f"{path.stem}x{scale}", []) + reductions.get(path.stem, [])
        if len(found) > 1 and not crop:
            names = " and ".join(file.name for file in found)
            raise DataError(f"{lr_folder}: {names} may both be the reduction of {path.name}; keep one of them")
        files.append(SourceFile(path, found[0] if found else None))
    given = sum(file.lr_path is not None for file in files)
    if crop and given:
        cut = f"each square that {named('crop')} cuts"
        logger.info(f"reductions in {lr_folder} are not used: {cut} is reduced by bicubic")
    elif not crop and given:
        rest = "" if given == len(files) else f"; the other {len(files) - given} are reduced by bicubic"
        logger.info(f"{lr_folder} has reductions of {given} of {len(files)} originals{rest}")
    elif not crop:
        logger.info(f"{lr_folder} has reductions of none of {len(files)} originals: all are reduced by bicubic")
    return files


def _find_images(folder: Path, recursive: bool = False) -> list[Path]:
    """The images in a folder; how many other files there are is logged. Raises DataError."""
    try:
        scan = scan_images(folder, recursive)
    except ImageError as error:
        raise DataError(f"{error}; give another with {named('data')}") from None
    if scan.others:
        logger.info(passed_over(scan.others, f"of {folder} are "))
    return scan.images


class LoadSpec(NamedTuple):
    """How images are loaded: see `load_dataset`. block: HR pixels read at once from HDF5."""

    scale: int
    patch: int
    crop: int | None = None
    device: torch.device = torch.device("cpu")
    block: int = 2**22


@dataclass(frozen=True)
class ImageGroup:
    """Images of one size that are read together: the one of a file, or many from HDF5.

    Attributes:
        name: What messages call them.
        count: How many there are.
        height: Of each, in HR pixels.
        width: Of each, in HR pixels.
        is_16bit: Whether HR or LR has 16 bits.
        read: Gives HR [count, height, width, 1 or 3], uint8 or uint16, and LR where the source has it. Raises
            ImageError.
        warnings: What does not come out as it stands in the files, in lines without their names.
    """

    name: str
    count: int
    height: int
    width: int
    is_16bit: bool
    read: Callable[[], tuple[np.ndarray, ...]]
    warnings: tuple[str, ...] = ()

    def kept_pixels(self, spec: LoadSpec) -> int:
        """HR pixels that are stored: whole crops, or whole LR pixels."""
        unit = spec.crop or spec.scale
        return self.count * (self.height // unit * unit) * (self.width // unit * unit)


def scan_file(file: SourceFile, spec: LoadSpec) -> list[ImageGroup]:
    """The images in a file, without decoding them. Raises ImageError, or DataError for HDF5."""
    if file.path.suffix.lower() in _HDF5:
        return _scan_hdf5(file.path, spec)
    lr_path = None if spec.crop else file.lr_path
    with ImageReader(file.path, sixteen=True, with_alpha=True) as reader:
        height, width, is_16bit = reader.height, reader.width, reader.dtype == np.uint16
        warnings = reader.warnings
    if lr_path is not None:
        with ImageReader(lr_path, sixteen=True, with_alpha=True) as reader:
            if (reader.height, reader.width) != (height // spec.scale, width // spec.scale):
                sizes = f"{reader.width} x {reader.height} pixels, {file.path} {width} x {height}"
                raise ImageError(f"{lr_path}: has {sizes}, not {spec.scale} times as many each way")
            is_16bit = is_16bit or reader.dtype == np.uint16
            warnings += tuple(line for line in reader.warnings if line not in warnings)
    return [ImageGroup(str(file.path), 1, height, width, is_16bit, partial(_read_image, file.path, lr_path), warnings)]


def _read_image(hr_path: Path, lr_path: Path | None) -> tuple[np.ndarray, ...]:
    return tuple(read_opaque(path, sixteen=True)[None] for path in (hr_path, lr_path) if path is not None)


@contextmanager
def _open_hdf5(path: Path, kind: type[Exception]) -> Iterator[Any]:
    """An h5py.File; whatever goes wrong with it becomes an exception of this kind, with a message of one line."""
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path}: HDF5 is read through h5py: pip install 'edsr-triton[train]'") from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        why = str(error).partition("\n")[0]
        raise kind(f"{path}: cannot be read as HDF5 ({why}), get an intact copy") from None


def _scan_hdf5(path: Path, spec: LoadSpec) -> list[ImageGroup]:
    with _open_hdf5(path, DataError) as file:
        many = hasattr(file.get("hr"), "ndim")  # a dataset with all images, not a group with one for each
        names = [""] if many else [f"/{name}" for name in sorted(file.get("hr") or [""], key=lambda n: (len(n), n))]
        keys = [(f"lr{name}", f"hr{name}") for name in names]
        _check_datasets(path, file, [key for pair in keys for key in pair], (3, 4) if many else (2, 3))
        sides = {"lr": [lr_key for lr_key, _ in keys], "hr": [hr_key for _, hr_key in keys]}
        ranges = {side: measure(_blocks(file, names, spec.block)) for side, names in sides.items()}
        white = find_white(str(path), ranges)
        if any(ranges.values()):
            logger.info(f"{path}: floating-point values are taken for 0 (black) to {white:g} (white)")
        return [group for pair in keys for group in _scan_pair(path, file, *pair, many, white, spec)]


def _check_datasets(path: Path, file: Any, keys: list[str], axes: tuple[int, int]) -> None:
    for key in keys:
        data = file.get(key)
        if not hasattr(data, "ndim"):
            raise DataError(f"{path}: holds no {key}; in the 91-image layout there are lr and hr, of equal number")
        shape = _to_nhwc(_placeholder(data), axes == (3, 4)).shape if data.ndim in axes else (0,)
        if not (data.dtype.kind == "f" or data.dtype in (np.uint8, np.uint16)) or shape[-1] not in (1, 3):
            kinds = "gray or RGB images of uint8, uint16 or floating point"
            raise DataError(f"{path}: {key} is {data.dtype} {list(data.shape)}, not {kinds}")


def _placeholder(data: Any) -> np.ndarray:
    """An array of a dataset's shape, with no memory behind it."""
    return np.broadcast_to(np.uint8(0), data.shape)


def _scan_pair(
    path: Path, file: Any, lr_key: str, hr_key: str, many: bool, white: float, spec: LoadSpec
) -> list[ImageGroup]:
    lr, hr = (_to_nhwc(_placeholder(file[key]), many) for key in (lr_key, hr_key))
    if hr.shape[:3] != (len(lr), lr.shape[1] * spec.scale, lr.shape[2] * spec.scale):
        why = "; files written for SRCNN hold lr upscaled already, of no use here" if lr.shape == hr.shape else ""
        shapes = f"{hr_key} {list(file[hr_key].shape)} is not {spec.scale} x {lr_key} {list(file[lr_key].shape)}"
        raise DataError(f"{path}: {shapes}{why}")
    is_16bit = np.uint16 in (file[lr_key].dtype, file[hr_key].dtype)
    step = max(1, spec.block // max(1, hr.shape[1] * hr.shape[2]))
    groups = []
    for start in range(0, len(hr), step):
        stop = min(start + step, len(hr))
        name = f"{path}: {hr_key}[{start}:{stop}]" if many else f"{path}: {hr_key}"
        read = partial(_read_hdf5, path, (hr_key, lr_key), slice(start, stop) if many else (), white)
        groups.append(ImageGroup(name, stop - start, hr.shape[1], hr.shape[2], is_16bit, read))
    return groups


def _blocks(file: Any, keys: list[str], block: int) -> Iterator[np.ndarray]:
    """All floating-point values of datasets, at most about `block` at a time."""
    for key in keys:
        if file[key].dtype.kind == "f":
            step = max(1, block // max(1, int(np.prod(file[key].shape[1:]))))
            yield from (file[key][start : start + step] for start in range(0, len(file[key]), step))


def _read_hdf5(path: Path, keys: tuple[str, str], rows: slice | tuple[()], white: float) -> tuple[np.ndarray, ...]:
    with _open_hdf5(path, ImageError) as file:
        return tuple(_to_integers(_to_nhwc(file[key][rows], rows != ()), white, f"{path}: {key}") for key in keys)


def _to_nhwc(values: np.ndarray, many: bool) -> np.ndarray:
    """[N, h, w, C] from the axes that HDF5 files have; `many`: whether N is one of them."""
    values = values if many else values[None]
    if values.ndim == 3:
        return values[..., None]
    return np.moveaxis(values, 1, 3) if values.shape[3] not in (1, 3) and values.shape[1] in (1, 3) else values


def _to_integers(values: np.ndarray, white: float, name: str) -> np.ndarray:
    if values.dtype in (np.uint8, np.uint16):
        return values
    if not np.isfinite(values).all():
        raise ImageError(f"{name}: holds values that are no numbers")
    return to_depth(values, np.uint8, white=white)

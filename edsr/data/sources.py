"""Where training images come from: folders, DIV2K's layout, image files, HDF5; found and scanned, not yet decoded."""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edsr.errors import DataError, ImageError
from edsr.images import READABLE, ImageReader, passed_over, read_opaque, scan_images
from edsr.wording import named

from .hdf5 import BLOCK, Hdf5Images, is_hdf5

logger = logging.getLogger(__name__)

_LR_NAME, _HR_NAME = (
    re.compile(pattern, re.IGNORECASE) for pattern in (r"(.*[_-])?LR([_-]?x?\d|[_-].*)?", r"(.*[_-])?HR([_-].*)?")
)  # of folders, as in Flickr2K_LR_bicubic beside Flickr2K_HR


class SourceFile(NamedTuple):
    """An image or HDF5 file; lr_path: the file of its LR image, where the layout has one."""

    path: Path
    lr_path: Path | None = None


def drop_doubles(files: Sequence[SourceFile], others: Sequence[SourceFile] = ()) -> list[SourceFile]:
    """The files without those named before, be it through a link, in them or in `others`; how many is logged.

    An image held out for validation would be trained on under its other name.
    """
    seen, kept = {os.path.realpath(file.path) for file in others}, []
    for file in files:
        path = os.path.realpath(file.path)
        if path not in seen:
            seen.add(path)
            kept.append(file)
    if count := len(files) - len(kept):
        logger.info(f"{count} file{'s are' if count > 1 else ' is'} named more than once: read only once")
    return kept


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
    block: int = BLOCK


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
    if is_hdf5(file.path):
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


def _scan_hdf5(path: Path, spec: LoadSpec) -> list[ImageGroup]:
    images, groups = Hdf5Images(path, spec.scale, spec.block), []
    images.white  # noqa: B018 - told before anything is read
    for part in images.sets:
        step = max(1, spec.block // max(1, part.height * part.width))
        for start in range(0, part.count, step):
            stop = min(start + step, part.count)
            name = f"{path}: {part.hr_key}" + (f"[{start}:{stop}]" if part.many else "")
            read = partial(images.read, part, start, stop)
            groups.append(ImageGroup(name, stop - start, part.height, part.width, part.is_16bit, read))
    return groups

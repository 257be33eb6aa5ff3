"""Images to train on: found (`edsr.data.sources`), decoded and downscaled once, and stored (`edsr.data.store`).

`load_dataset` reads folders (with those inside), single files, DIV2K's layout, and HDF5 in the layout of the 91-image
files. It gives images to train on, and images to validate on where DIV2K's layout brings them; elsewhere
`train_val_split` takes some images out of training for that.
"""

import logging
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edsr.errors import DataError, ImageError
from edsr.images import matlab_downscale, to_depth
from edsr.wording import named

from .sources import ImageGroup, LoadSpec, SourceFile, drop_doubles, find_div2k, find_files, scan_file
from .store import HEIGHT, HR_START, IMAGE, LR_START, WIDTH, DiskCache, DiskCacheWriter, MemoryStore, PairedImages

logger = logging.getLogger(__name__)

MAX_VALIDATION = 10  # images of DIV2K's validation set that are used


def load_dataset(
    sources: Sequence[str | Path],
    scale: int,
    patch: int,
    *,
    crop: int | None = None,
    cache: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> tuple[PairedImages, PairedImages | None]:
    """Loads images to train on, and to validate on where DIV2K's layout brings them.

    What is left out, and why, is logged; a file that is named more than once, also through a link, is read once, for
    validation if it is named for that.

    Args:
        sources: Folders, in which images are looked for at any depth; image files; HDF5 files (*.h5, *.hdf5) with
            datasets `lr` and `hr`, [N, h, w], [N, h, w, C] or [N, C, h, w], or groups of those names with a dataset
            for each image; folders that hold DIV2K_train_HR, from which DIV2K_train_LR_bicubic/X{scale} is used where
            it is there (0001x{scale} or 0001, in any format; a line says how many are missing), and the first 10
            images of DIV2K_valid_HR are used for validation. HDF5 values: uint8, uint16, or floating point in 0..1 or
            0..255, which is rounded to 8 bits; values that fit neither are refused. Alpha is left out where an image
            is opaque everywhere, and the image where it is not.
        scale: The upscaling factor.
        patch: LR pixels a side of a training patch; smaller images are left out.
        crop: Cuts every image into squares of so many HR pixels, from its top left corner on, leaving the rest out;
            each is then an image of its own, downscaled by itself, also where there are LR files.
        cache: A folder in which the buffers are kept as files, mapped into memory, and found by the next run; images
            are decoded again if one of the files has changed. Without it, they are held in memory.
        device: Where images are downscaled, if it is a CUDA device; else that is done on the CPU.

    Returns:
        The images to train on, and those to validate on or None.

    Raises:
        DataError: A source or option is unfit, no image is left, or memory or disk do not suffice.
    """
    if sources is None or isinstance(sources, str | os.PathLike):
        raise TypeError(f"sources are a list of files and folders, not {sources!r}")
    if crop is not None and (crop < 1 or crop % scale or crop // scale < patch):
        raise DataError(
            f"{named('crop')} must be a multiple of {scale} and at least a patch, {patch * scale}, not {crop}",
            misuse=True,
        )
    training, validation = [], []
    for source in sources:
        path = Path(source)
        if (path / "DIV2K_train_HR").is_dir():
            training += find_div2k(path, "train", scale, crop=crop is not None)
            if (path / "DIV2K_valid_HR").is_dir():
                validation += find_div2k(path, "valid", scale, MAX_VALIDATION)
        else:
            training += find_files(path)
    # Before caches are looked up, which may hold doubles.
    validation = drop_doubles(validation)
    training = drop_doubles(training, validation)
    if not training:
        raise DataError("no images given; name folders")
    target = torch.device(device)
    spec = LoadSpec(scale, patch, crop, target if target.type == "cuda" else torch.device("cpu"))
    names = [os.path.abspath(source) for source in sources]

    def load(split: str, files: list[SourceFile], spec: LoadSpec) -> PairedImages:
        store = None
        if cache is not None:
            paths = [path for file in files for path in file if path is not None]
            store = DiskCache(Path(cache), scale, [split, *names], (spec.patch, spec.crop), paths)
        return load_files(files, spec, store)

    images = load("train", training, spec)
    return images, load("validate", validation, spec._replace(patch=1, crop=None)) if validation else None


def load_validation(source: str | Path, scale: int) -> PairedImages:
    """Loads images to validate on: of DIV2K's folder its validation images, else all that `load_dataset` would find.

    Raises:
        DataError: As `load_dataset` does.
    """
    path = Path(source)
    try:
        if (path / "DIV2K_valid_HR").is_dir():
            return load_files(find_div2k(path, "valid", scale, MAX_VALIDATION), LoadSpec(scale, 1))
        return load_dataset([source], scale, 1)[0]
    except DataError as error:
        raise DataError(str(error).replace(f"with {named('data')}", f"with {named('val')}")) from None


def train_val_split(images: PairedImages, count: int = 20, side: int = 192) -> tuple[PairedImages, PairedImages | None]:
    """Takes some images out of training, for validation.

    Of n images n / 10 are held out, at least one and at most `count`, evenly spread; none if there is only one. Of an
    image cut into crops as many crops as make up the area of one validation image are used, and none of the others
    stays in training.

    Args:
        images: The images to split.
        count: The most images that are held out.
        side: The most LR pixels each way of a validation image, which is the center of the image held out: enough to
            compare steps by, and quick.

    Returns:
        The images to train on, and those to validate on or None.
    """
    numbers = images.index[:, IMAGE]
    distinct = np.unique(numbers)
    held_out = min(count, max(1, len(distinct) // 10)) if len(distinct) > 1 else 0
    if held_out == 0:
        return images, None
    chosen = distinct[(2 * np.arange(held_out) + 1) * len(distinct) // (2 * held_out)]
    centers = []
    for number in chosen:
        rows = np.flatnonzero(numbers == number)
        lr, _ = images.pair(rows[0])
        fit = max(1, side**2 // (lr.shape[0] * lr.shape[1]))
        skip = max(0, len(rows) - fit) // 2
        centers += [_center_crop(*images.pair(row), side, images.scale) for row in rows[skip : skip + fit]]
    rest = replace(images, index=images.index[~np.isin(numbers, chosen)])
    return rest, PairedImages.from_pairs(centers, images.scale)


def _center_crop(lr: np.ndarray, hr: np.ndarray, side: int, s: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = min(side, lr.shape[0]), min(side, lr.shape[1])
    y, x = (lr.shape[0] - height) // 2, (lr.shape[1] - width) // 2
    return lr[y : y + height, x : x + width], hr[y * s : (y + height) * s, x * s : (x + width) * s]


def load_files(files: Sequence[SourceFile], spec: LoadSpec, cache: DiskCache | None = None) -> PairedImages:
    """Decodes files, or takes what the cache has of them. Raises DataError if no image is left."""
    cached = cache.open() if cache else None
    if cached is not None:
        return cached
    if cache:
        cache.require_writable()
    groups, largest = scan_groups(files, spec, spec.crop or spec.patch * spec.scale)
    if not groups:
        fits = largest // spec.scale
        most = f", {fits} at most" if fits and not spec.crop else ""
        raise DataError(f"no image left; give other folders or a smaller {named('patch')}{most}")
    count = sum(group.count for group in groups)
    logger.info(f"reading {count} image{'s' * (count != 1)}")
    dtype = np.dtype(np.uint16 if any(group.is_16bit for group in groups) else np.uint8)
    pixels = sum(group.kept_pixels(spec) for group in groups)
    store = DiskCacheWriter(cache, pixels, dtype) if cache else nullcontext(MemoryStore(pixels, spec.scale, dtype))
    with store as buffers:
        index, number, filled = [np.empty((0, 5), np.int64)], 0, 0
        read = partial(_read_rgb, spec=spec, dtype=dtype)
        for group, pairs in zip(groups, map_in_threads(read, groups), strict=True):
            try:
                hr, lr = pairs.result()
            except ImageError as error:
                logger.warning(str(error))
                continue
            buffers.add(hr, lr)
            count, height, width = lr.shape[:3]
            start = filled + np.arange(count) * height * width
            rows = np.empty((count, 5), np.int64)
            rows[:, HR_START], rows[:, LR_START] = start * spec.scale**2, start
            rows[:, HEIGHT], rows[:, WIDTH] = height, width
            rows[:, IMAGE] = number + np.arange(count) // (count // group.count)
            index.append(rows)
            number, filled = number + group.count, filled + count * height * width
        if filled == 0:
            raise DataError("no image left that can be read; give other folders")
        return buffers.finish(np.concatenate(index))


def scan_groups(files: Sequence[SourceFile], spec: LoadSpec, least: int) -> tuple[list[ImageGroup], int]:
    """The images in files that have `least` HR pixels a side, and the side of the largest of the others.

    A file that is named more than once counts once. What is left out, and what is not read as it stands, is logged.
    Raises DataError for HDF5 that does not suit.
    """
    groups, small = [], []
    for scanned in map_in_threads(partial(scan_file, spec=spec), drop_doubles(files)):
        try:
            for group in scanned.result():
                (groups if min(group.height, group.width) >= least else small).append(group)
        except ImageError as error:
            logger.warning(str(error))
    _log_too_small(small, least)
    _log_warnings(groups)
    return groups, max((min(group.height, group.width) for group in small), default=0)


def _read_rgb(group: ImageGroup, spec: LoadSpec, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """HR [n, s·h, s·w, 3] and LR [n, h, w, 3] as they are stored. Raises ImageError."""
    hr, lr = read_pairs(group, spec, dtype)
    return _to_rgb(hr), _to_rgb(lr)


def read_pairs(group: ImageGroup, spec: LoadSpec, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """HR [n, s·h, s·w, 1 or 3] and LR [n, h, w, 1 or 3], which is made where there is none. Raises ImageError."""
    hr, *given = group.read()
    if hr.shape[:3] != (group.count, group.height, group.width):
        raise ImageError(f"{group.name}: has changed since it was opened")
    unit = spec.crop or spec.scale
    down, across = hr.shape[1] // unit, hr.shape[2] // unit
    hr = hr[:, : down * unit, : across * unit]
    if spec.crop:
        hr = hr.reshape(len(hr), down, unit, across, unit, -1).swapaxes(2, 3).reshape(-1, unit, unit, hr.shape[3])
    hr = to_depth(hr, dtype)
    if given and not spec.crop:
        lr = to_depth(given[0], dtype)
    else:
        n, height, width, channels = hr.shape
        stacked = hr.transpose(1, 2, 0, 3).reshape(height, width, -1)  # images as channels of one: [H, W, n·C]
        lr = matlab_downscale(stacked, spec.scale, spec.device)
        lr = lr.reshape(*lr.shape[:2], n, channels).transpose(2, 0, 1, 3)
    return hr, lr


def _to_rgb(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:3], 3)))


def _log_too_small(groups: list[ImageGroup], least: int) -> None:
    lines = [f"{g.name}: {g.width} x {g.height} is smaller than {least} x {least} pixels" for g in groups]
    if len(lines) > 5:
        count = sum(group.count for group in groups)
        lines = [f"{count} images are smaller than {least} x {least} pixels, the first of them {groups[0].name}"]
    for line in lines:
        logger.warning(f"{line}: left out")


def _log_warnings(groups: list[ImageGroup]) -> None:
    """Each warning once, with the first image that it is about and how many others."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for group in groups:
        for line in group.warnings:
            names[line].append(group.name)
    for line, (first, *others) in names.items():
        logger.info(f"{first}{f' and {len(others)} more' if others else ''}: {line}")


def map_in_threads(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Future]:
    """The results of `work` in order, computed by a few threads, a few items ahead of the caller."""
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

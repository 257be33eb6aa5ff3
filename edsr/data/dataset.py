"""Images to train on: found (`edsr.data.sources`), decoded once, reduced once, and kept (`edsr.data.store`).

`load_dataset` reads folders (with those inside), single files, DIV2K's layout, and HDF5 in the layout of the 91-image
files, and gives what to train on; and what to validate on, where DIV2K's layout brings it. Elsewhere
`train_val_split` takes some images out of training for that.
"""

import logging
import os
from collections import deque
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
from edsr.images import matlab_downscale

from .sources import SourceFile, ImageGroup, LoadSpec, find_div2k, find_files, scan_file
from .store import DiskCache, DiskCacheWriter, MemoryStore, PairedImages, pack

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
    """(images to train on, images to validate on or None).

    sources: folders, in which images are looked for at any depth; image files; HDF5 files (*.h5, *.hdf5) with
    datasets `lr` and `hr`, [N, h, w], [N, h, w, C] or [N, C, h, w], or groups of those names with a dataset for each
    image; folders that hold DIV2K_train_HR, from which DIV2K_train_LR_bicubic/X{scale} is used where it is there,
    and the first 10 images of DIV2K_valid_HR are given to validate on. HDF5 values: uint8, uint16, or floating
    point in 0..1 or 0..255, which is rounded to 8 bits.
    patch: LR pixels a side; smaller images are left out, which is logged.
    crop: cuts every image into squares of so many HR pixels, from its top left corner on, leaving the rest out;
    each is then an image of its own, reduced by itself, also where there are LR files.
    cache: a folder in which the buffers are kept as files, mapped into memory, and found by the next run; images
    are decoded again if one of the files has changed. Without it, they are held in memory.
    device: where images are reduced, if it is a CUDA device; else on the CPU.
    Raises DataError.
    """
    if crop is not None and (crop < 1 or crop % scale or crop // scale < patch):
        raise DataError(f"--crop must be a multiple of {scale} and at least a patch, {patch * scale}, not {crop}")
    training, validation = [], []
    for source in sources:
        path = Path(source)
        if (path / "DIV2K_train_HR").is_dir():
            training += find_div2k(path, "train", scale)
            if (path / "DIV2K_valid_HR").is_dir():
                validation += find_div2k(path, "valid", scale)[:MAX_VALIDATION]
        else:
            training += find_files(path)
    if not training:
        raise DataError("no images given; name folders with --data")
    target = torch.device(device)
    plan = LoadSpec(scale, patch, crop, target if target.type == "cuda" else torch.device("cpu"))
    names = [os.path.abspath(source) for source in sources]

    def collect(part: str, files: list[SourceFile], plan: LoadSpec) -> PairedImages:
        kept = None
        if cache is not None:
            paths = [path for file in files for path in file if path is not None]
            kept = DiskCache(Path(cache), scale, [part, *names], (plan.patch, plan.crop), paths)
        return load_files(files, plan, kept)

    images = collect("train", training, plan)
    return images, collect("validate", validation, plan._replace(patch=1, crop=None)) if validation else None


def train_val_split(images: PairedImages, count: int = 20, side: int = 192) -> tuple[PairedImages, PairedImages | None]:
    """(the images without some, the middles of those), for validation.

    Of n images n / 10 are held back, at least one and at most `count`, evenly spread; none if there is but one.
    Their middles have at most `side` LR pixels each way: enough to compare steps by, and quick. Of an image cut into
    crops as many are taken as make up that area, and none of the others stays in training.
    """
    numbers = images.index[:, 4]
    distinct = np.unique(numbers)
    held = min(count, max(1, len(distinct) // 10)) if len(distinct) > 1 else 0
    if held == 0:
        return images, None
    chosen = distinct[(2 * np.arange(held) + 1) * len(distinct) // (2 * held)]
    middles = []
    for number in chosen:
        rows = np.flatnonzero(numbers == number)
        low, _ = images.pair(rows[0])
        fit = max(1, side**2 // (low.shape[0] * low.shape[1]))
        skip = max(0, len(rows) - fit) // 2
        middles += [_center_crop(*images.pair(row), side, images.scale) for row in rows[skip : skip + fit]]
    rest = replace(images, table=images.index[~np.isin(numbers, chosen)])
    return rest, pack(middles, images.scale)


def _center_crop(low: np.ndarray, high: np.ndarray, side: int, s: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = min(side, low.shape[0]), min(side, low.shape[1])
    y, x = (low.shape[0] - height) // 2, (low.shape[1] - width) // 2
    return low[y : y + height, x : x + width], high[y * s : (y + height) * s, x * s : (x + width) * s]


def load_files(files: Sequence[SourceFile], plan: LoadSpec, cache: DiskCache | None) -> PairedImages:
    found = cache.open() if cache else None
    if found is not None:
        return found
    stacks, small = [], []
    for measured in _map_in_threads(partial(scan_file, plan=plan), files):
        try:
            for stack in measured.result():
                enough = min(stack.height, stack.width) >= (plan.crop or plan.patch * plan.scale)
                (stacks if enough else small).append(stack)
        except ImageError as error:
            logger.warning(str(error))
    _log_too_small(small, plan.crop or plan.patch * plan.scale)
    if not stacks:
        raise DataError("no image left; give other folders or a smaller --patch")
    logger.info(f"reading {sum(stack.count for stack in stacks)} images")
    dtype = np.dtype(np.uint16 if any(stack.sixteen for stack in stacks) else np.uint8)
    pixels = sum(stack.pixels(plan) for stack in stacks)
    kept = DiskCacheWriter(cache, pixels, dtype) if cache else nullcontext(MemoryStore(pixels, plan.scale, dtype))
    with kept as buffers:
        table, number, used = [np.empty((0, 5), np.int64)], 0, 0
        prepare = partial(_read_pairs, plan=plan, dtype=dtype)
        for stack, prepared in zip(stacks, _map_in_threads(prepare, stacks), strict=True):
            try:
                hr, lr = prepared.result()
            except ImageError as error:
                logger.warning(str(error))
                continue
            buffers.add(hr, lr)
            count, height, width = lr.shape[:3]
            start = used + np.arange(count) * height * width
            rows = np.empty((count, 5), np.int64)
            rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3] = start * plan.scale**2, start, height, width
            rows[:, 4] = number + np.arange(count) // (count // stack.count)
            table.append(rows)
            number, used = number + stack.count, used + count * height * width
        if used == 0:
            raise DataError("no image left that can be read; give other folders")
        return buffers.finish(np.concatenate(table))


def _read_pairs(stack: ImageGroup, plan: LoadSpec, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """HR [n, s·h, s·w, 3] and LR [n, h, w, 3] as they are kept. Raises ImageError."""
    hr, *given = stack.read()
    if hr.shape[:3] != (stack.count, stack.height, stack.width):
        raise ImageError(f"{stack.name}: has changed since it was opened")
    unit = plan.crop or plan.scale
    down, across = hr.shape[1] // unit, hr.shape[2] // unit
    hr = hr[:, : down * unit, : across * unit]
    if plan.crop:
        hr = hr.reshape(len(hr), down, unit, across, unit, -1).swapaxes(2, 3).reshape(-1, unit, unit, hr.shape[3])
    hr = _widen(hr, dtype)
    if given and not plan.crop:
        lr = _widen(given[0], dtype)
    else:
        n, height, width, channels = hr.shape
        small = matlab_downscale(hr.transpose(1, 2, 0, 3).reshape(height, width, -1), plan.scale, plan.device)
        lr = small.reshape(*small.shape[:2], n, channels).transpose(2, 0, 1, 3)
    return _to_rgb(hr), _to_rgb(lr)


def _to_rgb(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:3], 3)))


def _widen(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return pixels if pixels.dtype == dtype else pixels.astype(dtype) * dtype.type(257)  # 255 -> 65535


def _log_too_small(stacks: list[ImageGroup], least: int) -> None:
    lines = [f"{s.name}: {s.width} x {s.height} is smaller than {least} x {least} pixels" for s in stacks]
    if len(lines) > 5:
        count = sum(stack.count for stack in stacks)
        lines = [f"{count} images are smaller than {least} x {least} pixels, the first of them {stacks[0].name}"]
    for line in lines:
        logger.warning(f"{line}: left out")


def _map_in_threads(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Future]:
    """What `work` gives for each item, done by a few threads, a few items ahead of who takes it."""
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

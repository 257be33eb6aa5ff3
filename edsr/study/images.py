"""The images of a study: which are trained on, and the squares that are scored."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from edsr.errors import DataError, ImageError, StudyError
from edsr.images import matlab_downscale, read_opaque, scan_images
from edsr.system import atomic_folder
from edsr.training import is_flat
from edsr.wording import named

from .budgets import CROP, SCALES

logger = logging.getLogger(__name__)

HELD_OUT = 10  # of images in one folder, one in so many is scored and not trained on
LAYOUTS = ("", "images", "data/images")  # where BSD500, as it is distributed, has train and test


class Split(NamedTuple):
    """Files of images: trained on, and scored."""

    training: list[Path]
    test: list[Path]


def split_images(data: Sequence[Path], test: Path | None) -> Split:
    """Finds images, and tells those that are trained on from those that are scored.

    A folder that has `train` and `test` in it, as BSD500's, is taken at its word; of others every tenth image is held
    out, unless `test` is a folder of its own.

    Raises:
        DataError: There are none.
        StudyError: One is both trained on and scored.
    """
    if test is not None:
        split = Split(_find(data), _find([test]))
        trained = {path.resolve() for path in split.training}
        if both := [path for path in split.test if path.resolve() in trained]:
            raise StudyError(f"{both[0]}: would be trained on and scored; give other images with {named('test')}")
        return split
    if len(data) == 1:
        for layout in LAYOUTS:
            folder = data[0] / layout
            if (folder / "train").is_dir() and (folder / "test").is_dir():
                return Split(_find([folder / "train"]), _find([folder / "test"]))
    found = _find(data)
    held_out = found[HELD_OUT // 2 :: HELD_OUT]
    return Split([path for path in found if path not in {*held_out}], held_out)


def _find(folders: Sequence[Path]) -> list[Path]:
    found = []
    for folder in folders:
        try:
            found += [folder] if folder.is_file() else scan_images(folder, recursive=True).images
        except ImageError as error:
            raise DataError(f"{error}; give another with {named('data')}") from None
    if not found:
        raise DataError(f"{', '.join(map(str, folders))}: no images; give another with {named('data')}")
    return found


def make_test_squares(files: Sequence[Path], folder: Path, most: int) -> list[Path]:
    """Cuts the middle of images out as PNG files, CROP pixels a side; those that are there stay.

    Args:
        files: The images; those that are too small or cannot be read are named and left out. So are, but for their
            names, those whose middle is of one color: PSNR of what is exact is infinite.
        folder: Where to; it is made with all of them in it, or not at all.
        most: How many at most, spread over all files.

    Raises:
        StudyError: None is large enough and not of one color, or they cannot be written.
    """
    if not any(folder.glob("*.png")):
        chosen = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, most).astype(int))]
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with atomic_folder(folder) as part:
                _cut_squares(chosen, part)
        except OSError as error:
            raise StudyError(f"{folder}: cannot be written ({error.strerror}); make room") from None
    return sorted(folder.glob("*.png"))


def _cut_squares(files: Sequence[Path], folder: Path) -> None:
    made = flat = 0
    for i, path in enumerate(files):
        try:
            image = read_opaque(path)
        except ImageError as error:
            logger.warning("%s: left out", error)
            continue
        height, width = image.shape[:2]
        if min(height, width) < CROP:
            logger.info("%s: smaller than %d x %d pixels, left out", path, CROP, CROP)
            continue
        y, x = (height - CROP) // 2, (width - CROP) // 2
        whole = np.repeat(image, 3, 2) if image.shape[2] == 1 else image
        square = np.ascontiguousarray(whole[y : y + CROP, x : x + CROP])
        if is_flat(square, max(SCALES)):  # of the largest scale the least is scored
            flat += 1
            continue
        Image.fromarray(square).save(folder / f"{i:03d}-{path.stem}.png")  # two may have one name
        made += 1
    if flat:
        logger.warning("%d of %d images to score have a middle of one color, or one luma: left out", flat, len(files))
    if not made:
        kinds = f"of {CROP} x {CROP} pixels or more that is not of one color"
        raise StudyError(f"no image to score {kinds}; give others with {named('test')}")


def load_square(path: Path) -> np.ndarray:
    """uint8 [CROP, CROP, 3]."""
    return np.asarray(Image.open(path).convert("RGB"))


def reduce(square: np.ndarray, scale: int) -> np.ndarray:
    """The LR image of a square."""
    return matlab_downscale(square, scale)

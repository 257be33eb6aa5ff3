"""What is scored: originals and their low-resolution images, read one by one from folders or from an HDF5 file."""

import abc
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edsr.data import Hdf5Images, ImageSet, is_hdf5
from edsr.errors import EvaluateError
from edsr.images import matlab_downscale, passed_over, read_opaque, scan_folder, scan_images
from edsr.wording import named

from . import metrics
from .low_resolution import LowResolution

logger = logging.getLogger(__name__)

NAMES_SHOWN = 3
"""Names in the line about low-resolution images that nothing is done with."""


class Originals(abc.ABC):
    """Originals, and what people are told of them.

    Attributes:
        paths: Of each; its last part is the original's name.
        gray: How gray ones are scored, for a line; "" where that needs no word.
        gray_protocol: The protocol by which gray ones are scored.
        remarks: Lines on what is left out.
    """

    paths: Sequence[Path]
    gray: str
    gray_protocol: str
    remarks: Sequence[str] = ()

    @abc.abstractmethod
    def read(self, path: Path, warnings: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """An original, cropped to a multiple of the scale, and its low-resolution image.

        Args:
            path: One of `paths`.
            warnings: Where a line is added for each thing that is not read as it stands in the files.

        Returns:
            uint8 [s·h, s·w, 1 or 3] and [h, w, the same].

        Raises:
            EDSRError: They cannot be read, or do not suit.
        """


def list_originals(hr: Path, scale: int) -> Sequence[Path]:
    """The paths of what `find_originals` finds, without looking further. Raises DataError for HDF5,
    EvaluateError for another file."""
    if is_hdf5(hr):
        return _hdf5_names(Hdf5Images(hr, scale))[0]
    _check_folder(hr)
    return scan_folder(hr).images


def find_originals(hr: Path, lr: Path | None, scale: int, protocol: str) -> Originals:
    """The originals of a folder or of an HDF5 file; arguments as for `evaluate`.

    Raises:
        DataError: The HDF5 file cannot be read, or holds no such images.
        ImageError: A folder cannot be read, or holds no images.
        EvaluateError: `lr` has several folders for the scale, or is given beside HDF5; or nothing in it can be scored;
            or `hr` is another file.
    """
    if is_hdf5(hr):
        if lr is not None:
            why = "holds its low-resolution images itself"
            raise EvaluateError(f"{hr}: {why}; leave out {named('lr')}", misuse=True)
        return _Hdf5Originals(hr, scale, protocol)
    _check_folder(hr)
    return _FolderOriginals(hr, lr, scale, protocol)


def _check_folder(hr: Path) -> None:
    if hr.is_file():
        raise EvaluateError(f"{hr}: is a single file, and no HDF5; give its folder with {named('hr')}")


class _FolderOriginals(Originals):
    """Image files, with low-resolution images in another folder, or made."""

    def __init__(self, hr: Path, lr: Path | None, scale: int, protocol: str):
        self._scale, self._protocol, self.gray_protocol = scale, protocol, protocol
        as_they_are = "gray images are scored on their values as they are, 0 to 255"
        self.gray = {"y": as_they_are, "edsr": "gray images are scored as RGB, on luma"}.get(protocol, "")
        scan = scan_images(hr)
        self.paths = scan.images
        self.remarks = [passed_over(scan.others, f"of {hr} are ")] if scan.others else []
        self._lr = None if lr is None else LowResolution(lr, scale)
        if self._lr is not None and (unused := self._lr.unused(self.paths)):
            names = ", ".join(path.name for path in unused[:NAMES_SHOWN])
            more = f" and {len(unused) - NAMES_SHOWN} more" if len(unused) > NAMES_SHOWN else ""
            logger.info(f"low-resolution images without an original in {hr} are not scored: {names}{more}")

    def read(self, path: Path, warnings: list[str]) -> tuple[np.ndarray, np.ndarray]:
        whole, s = read_opaque(path, warnings=warnings), self._scale
        if _is_small(whole.shape[0], whole.shape[1], s, self._protocol):
            raise EvaluateError(f"{path}: {whole.shape[1]} x {whole.shape[0]} is too small to score; remove it")
        target = _crop(whole, s)
        return target, matlab_downscale(target, s) if self._lr is None else self._lr.read(path, target, warnings)


class _Hdf5Originals(Originals):
    """Images in the layout of `edsr.data.hdf5`, with low-resolution images beside them, or made.

    They are rounded to 8 bits, as MATLAB's `rgb2ycbcr` gives luma. That, in 16..235, is a gray image to the network and
    to the scores.
    """

    def __init__(self, path: Path, scale: int, protocol: str):
        self._images, self._scale, self._protocol = Hdf5Images(path, scale), scale, protocol
        self.gray_protocol = "y" if protocol == "edsr" else protocol  # luma is not converted to luma again
        self.gray = "gray images and luma are scored on their values as they are" if self.gray_protocol == "y" else ""
        self.paths, self._places = _hdf5_names(self._images)
        problems = [self._problem(part) for part in self._images.sets] if self.paths else ["holds no images"]
        if all(problems):
            raise EvaluateError(f"{path}: {problems[0]}")
        self._images.white  # noqa: B018 - an error of it is of all images

    def read(self, path: Path, warnings: list[str]) -> tuple[np.ndarray, np.ndarray]:
        part, i = self._places[path]
        if problem := self._problem(part):
            raise EvaluateError(f"{path}: {problem}")
        hr, *given = (np.ascontiguousarray(pixels[0]) for pixels in self._images.read(part, i, i + 1))
        target = _crop(hr, self._scale)
        if not given:
            return target, matlab_downscale(target, self._scale)
        if given[0].shape[2] != target.shape[2]:
            raise EvaluateError(f"{path}: one of lr and hr is gray, the other RGB; write both alike")
        return target, given[0]

    def _problem(self, part: ImageSet) -> str:
        """Why the images of a set cannot be scored; "" if they can."""
        if part.is_16bit:
            return "has 16 bits, scores are of 8 bits; write lr and hr as uint8 or floating point"
        small = _is_small(part.height, part.width, self._scale, self._protocol)
        return f"{part.width} x {part.height} pixels are too few to score; take larger images" if small else ""


def _hdf5_names(images: Hdf5Images) -> tuple[list[Path], dict[Path, tuple[ImageSet, int]]]:
    """The paths of images in a file, FILE.h5/NAME, and where they are in it: in a set, which of it."""
    places = {
        images.path / (f"{images.path.stem}[{i}]" if part.many else part.hr_key.partition("/")[2]): (part, i)
        for part in images.sets
        for i in range(part.count)
    }
    return list(places), places


def _is_small(height: int, width: int, s: int, protocol: str) -> bool:
    """Whether an original is too small to score."""
    cropped = min(height, width) // s * s
    return min(height, width) <= 2 * (s + 6) or cropped <= 2 * metrics.border_pixels(s, protocol)


def _crop(image: np.ndarray, s: int) -> np.ndarray:
    return image[: image.shape[0] // s * s, : image.shape[1] // s * s]

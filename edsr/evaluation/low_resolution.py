"""Low-resolution images by the names that projects and data sets give them."""

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edsr.errors import EvaluateError
from edsr.images import find_images, no_images, read_opaque, scan_folder
from edsr.wording import named

logger = logging.getLogger(__name__)

_MARKS = ("", "_lr", "-lr", "_lrbi", "_lrbic", "_bicubic")  # between an original's name and the scale
_DEPTH = 2  # of folders that are looked into: Set5/LR_bicubic/X2


class LowResolution:
    """A folder of low-resolution images, found by the name of their original, in upper or lower case.

    They lie in the folder itself or, if it has none, in the only one in it for the scale: `X2` as EDSR-PyTorch has
    it, `LRbicx2` as BasicSR, `LR_bicubic/X2` as DIV2K. The image of `NAME.png`, or `NAME_HR.png`, is called `NAME.png`,
    `NAMEx2.png`, `NAME_x2.png`, `NAME_LR.png`, `NAME_LRBI_x2.png` or the like.

    Raises:
        EvaluateError: Several folders in it may be meant.
        ImageError: A folder cannot be read, or there are no images.
    """

    def __init__(self, folder: Path, scale: int):
        self.folder, self.scale = _folder_for_scale(folder, scale), scale
        if self.folder != folder:
            logger.info(f"low-resolution images are read from {self.folder}")
        self._by_stem: defaultdict[str, list[Path]] = defaultdict(list)
        for path in find_images(self.folder):
            self._by_stem[path.stem.lower()].append(path)

    def read(self, original: Path, target: np.ndarray, warnings: list[str] | None = None) -> np.ndarray:
        """The image that belongs to an original, whose pixels are `target`.

        Args:
            original: The original's file.
            target: uint8 [s·h, s·w, 1 or 3].
            warnings: Where a line is added for each thing that is not read as it stands in the file.

        Returns:
            uint8 [h, w, 1 or 3], with as many channels as `target`.

        Raises:
            EvaluateError: There is none, several may be meant, or its size or kind is not that of the original.
            ImageError: It cannot be read.
        """
        s = self.scale
        found = [path for name in _names(original.stem, s) for path in self._by_stem.get(name, ())]
        if not found:
            names = f"{original.stem}.png or {original.stem}x{s}.png"
            raise EvaluateError(f"{self.folder} has no low-resolution image of {original.name} ({names})")
        if len(found) > 1:
            names = " and ".join(path.name for path in sorted(found))
            raise EvaluateError(f"{self.folder}: {names} may both belong to {original.name}; keep one of them")
        read: list[str] = []
        image = read_opaque(found[0], warnings=read)
        if warnings is not None:
            warnings += (f"its low-resolution image: {line}" for line in read)
        if (image.shape[0] * s, image.shape[1] * s) != target.shape[:2]:
            raise EvaluateError(
                f"{original.name}: {target.shape[1]} x {target.shape[0]} is not {s} times its low-resolution image, "
                f"{image.shape[1]} x {image.shape[0]}; check {named('scale')} and {named('lr')}"
            )
        if image.shape[2] == target.shape[2]:
            return image
        if any((pixels != pixels[..., :1]).any() for pixels in (image, target)):
            kinds = ("gray", "RGB") if image.shape[2] == 1 else ("RGB", "gray")
            raise EvaluateError(
                f"{original.name}: its low-resolution image is {kinds[0]}, not {kinds[1]}; check {named('lr')}"
            )
        return np.repeat(image, 3, 2) if image.shape[2] == 1 else np.ascontiguousarray(image[..., :1])

    def unused(self, originals: Sequence[Path]) -> list[Path]:
        """The images that belong to none of the originals, sorted."""
        names = {name for original in originals for name in _names(original.stem, self.scale)}
        return sorted(path for stem, paths in self._by_stem.items() if stem not in names for path in paths)


def _names(original: str, s: int) -> dict[str, None]:
    """What the image of an original may be called, both without extension; each once, in lower case."""
    stem = original.lower()
    roots = dict.fromkeys([stem, re.sub(rf"[_-](?:hr|gt)(?:[_-]?x{s})?$", "", stem)])
    ends = [f"{mark}{end}" for mark in _MARKS for end in ("", f"x{s}", f"_x{s}", f"-x{s}")]
    names = [f"{root}{end}" for root in roots for end in ends]
    return dict.fromkeys(names)


def _folder_for_scale(folder: Path, s: int) -> Path:
    """The folder itself if it has images, or else the one in it that is named for the scale."""
    scan = scan_folder(folder)
    if scan.images or scan.unreadable:
        return folder
    scaled = re.compile(rf"x{s}|(?:.*[_-])?lr(?:[_-]?[a-z]+)?[_-]?x{s}", re.IGNORECASE)
    found, level = [], [folder]
    for _ in range(_DEPTH):
        level = [inner for outer in level for inner in sorted(outer.iterdir()) if inner.is_dir()]
        found += [inner for inner in level if scaled.fullmatch(inner.name) and scan_folder(inner).images]
        level = [inner for inner in level if "lr" in inner.name.lower()]
    if len(found) > 1:
        names = " and ".join(str(path.relative_to(folder)) for path in found)
        raise EvaluateError(f"{folder}: images of x{s} lie in {names}; name one of these with {named('lr')}")
    if not found:
        raise no_images(folder)
    return found[0]

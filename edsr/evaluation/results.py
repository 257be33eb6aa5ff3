"""Results of networks that are scored or compared: what the networks are called, and where their images go."""

import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from edsr.errors import CompareError, EvaluateError
from edsr.images import ImageWriter
from edsr.system import why_unwritable
from edsr.wording import option

_ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt")


def check_upscaler(network: object) -> None:
    """Raises TypeError unless that upscales images."""
    if not hasattr(network, "bands"):
        raise TypeError(f"give edsr.Upscaler(model), on a device, not {type(network).__name__}")


def short_names(models: Sequence[str]) -> list[str]:
    """What to call networks beside each other: files by as many last parts of their paths as tell them apart.

    Args:
        models: As `edsr.weights.load_model` takes them, each once.
    """
    parts = [_parts(model) for model in models]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-n:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(models)  # they are one file by two names


def file_name(name: str) -> str:
    """A name without what not every file system takes in the name of a file."""
    return re.sub(r"[^\w.+=-]+", "_", name)


def _parts(model: str) -> list[str]:
    """Of a path, its ending left out where it says nothing; of a mixture, the whole text."""
    if ":" in model and not os.path.exists(model):
        return [model]
    path = Path(os.path.normpath(model))
    return [*path.parts[:-1], path.name.removesuffix(path.suffix) if path.suffix in _ENDINGS else path.name]


def comparison_files(folder: Path, sources: Sequence[Path], titles: Sequence[str], overwrite: bool) -> dict[str, Path]:
    """Where the images of a comparison go, by title: NAME_TITLE.png, NAME being that of the first of its sources.

    Raises:
        CompareError: Nothing can be written there, or a file is there and may not be replaced.
    """
    if why := why_unwritable(folder):
        raise CompareError(f"{folder}: images cannot be saved there ({why})")
    paths = {title: folder / f"{sources[0].stem}_{file_name(title)}.png" for title in titles}
    for path in paths.values():
        if any(path.exists() and source.exists() and os.path.samefile(path, source) for source in sources):
            raise CompareError(f"{path}: is the input itself; name another folder")
        if os.path.lexists(path) and not overwrite:
            raise CompareError(f"{path}: exists; add {option('overwrite')} to replace it")
    return paths


def encode_png(image: np.ndarray | Image.Image) -> bytes:
    """A PNG file of uint8 [H, W, 3], or of an image of Pillow's."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, "PNG")
    return file.getvalue()


class ResultFolders:
    """PNG files of results, called NAME_x2.png by their original: in one folder, or one for each of several networks.

    Args:
        folder: Where to; it is made when the first file is written.
        names: What the networks are called, see `short_names`.
        originals: All files that are scored, from one folder.
        scale: The networks'.
        overwrite: Whether existing files are replaced.

    Raises:
        EvaluateError: Nothing can be written there, files are there already, or it is the originals' own folder.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], originals: Sequence[Path], scale: int, overwrite: bool = False
    ):
        safe = [file_name(name) for name in names]
        if len({name.casefold() for name in safe}) < len(safe):
            safe = [f"{i}-{name}" for i, name in enumerate(safe, 1)]
        self.folders = [folder] if len(safe) == 1 else [folder / name for name in safe]
        stems = Counter(path.stem.casefold() for path in originals)
        unique = {path: path.stem if stems[path.stem.casefold()] == 1 else path.name for path in originals}
        self._files = {path: f"{name}_x{scale}.png" for path, name in unique.items()}
        self._overwrite = overwrite
        for place in self.folders:
            if why := why_unwritable(place):
                raise EvaluateError(f"{place}: results cannot be saved there ({why})")
            if place.exists() and any(os.path.samefile(place, path.parent) for path in originals):
                raise EvaluateError(f"{place}: holds the originals themselves; name another folder")
            there = [name for name in self._files.values() if os.path.lexists(place / name)]
            if there and not overwrite:
                raise EvaluateError(
                    f"{place / there[0]}: exists; add {option('overwrite')} to replace it, or name another folder"
                )

    def save(self, network: int, original: Path, result: np.ndarray) -> None:
        """Writes a network's result, uint8 [H, W, 1 or 3], whole or not at all.

        Raises:
            ImageError: It cannot be written.
        """
        height, width, channels = result.shape
        place = self.folders[network]
        place.mkdir(parents=True, exist_ok=True)
        with ImageWriter(place / self._files[original], width, height, channels, overwrite=self._overwrite) as writer:
            writer.write(result)

"""Which images lie in a folder. Each real folder is entered once, whatever links lead to it."""

import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edsr.errors import ImageError

from .formats import READABLE

_KINDS_SHOWN = 5
_NAMES_SHOWN = 3
_LOOKED_INTO = 200  # folders that are looked into for a hint, of all in a folder


@dataclass
class FolderScan:
    """What was found in a folder, each part sorted; hidden files are left out.

    Attributes:
        images: files with one of the extensions `READABLE`, in any case.
        others: files with another extension, or none.
        unreadable: folders that could not be listed, and why.
    """

    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, OSError]] = field(default_factory=list)


def scan_folder(folder: str | os.PathLike[str], recursive: bool = False) -> FolderScan:
    """All that lies in `folder` and, if `recursive`, in the folders in it, at any depth."""
    scan = FolderScan()
    for _, entries in walk_folders(folder, recursive, scan.unreadable):
        for entry in entries:
            if not _is_folder(entry):
                path = Path(entry.path)
                (scan.images if path.suffix.lower() in READABLE else scan.others).append(path)
    scan.images.sort()
    scan.others.sort()
    return scan


def walk_folders(
    top: str | os.PathLike[str], recursive: bool, unreadable: list[tuple[Path, OSError]]
) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """(folder, its entries, sorted) of `top` and of the folders in it; hidden ones and hidden entries are left out.

    Links are followed after all that is reached without them, so that nothing goes by another path than its own.
    Folders that cannot be listed are appended to `unreadable`.
    """
    waiting, links, seen = [os.fspath(top)], deque[str](), set()
    while waiting or links:
        folder = waiting.pop() if waiting else links.popleft()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as listing:
                entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda entry: entry.name)
        except OSError as error:
            unreadable.append((Path(folder), error))
            continue
        yield Path(folder), entries
        if recursive:
            inner = [entry for entry in entries if _is_folder(entry)]
            waiting += [entry.path for entry in reversed(inner) if not entry.is_symlink()]
            links.extend(entry.path for entry in inner if entry.is_symlink())


def folders_with_images(folder: str | os.PathLike[str], wanted: Callable[[list[Path]], bool] = bool) -> list[Path]:
    """The folders in a folder that have images, in them or deeper, as far as a quick look tells; hidden ones left out.

    Args:
        folder: where to look.
        wanted: whether the images that lie together in a folder count, one or more.
    """
    found: set[Path] = set()
    for inner, entries in itertools.islice(walk_folders(folder, True, []), 1, _LOOKED_INTO):
        images = [Path(entry.path) for entry in entries if Path(entry.name).suffix.lower() in READABLE]
        if images and inner.is_relative_to(folder) and wanted(images):
            found.add(Path(folder, inner.relative_to(folder).parts[0]))
    return sorted(found)


def name_folders(folders: Sequence[Path]) -> str:
    """The names of folders for a line, the first of many."""
    names = [folder.name for folder in folders[:_NAMES_SHOWN]]
    more = len(folders) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def find_images(folder: str | os.PathLike[str], recursive: bool = False) -> list[Path]:
    """Find the files in `folder` with a known extension, in any case, sorted; hidden ones are left out.

    What cannot be read (a link that leads nowhere, a FIFO) is among them: whoever reads it can say so.

    Args:
        folder: where to look.
        recursive: whether folders in it are searched, too, at any depth; hidden ones are left out, links followed once.

    Raises:
        ImageError: if there are none, or no such folder, or a folder cannot be listed.
    """
    return scan_images(folder, recursive).images


def scan_images(folder: str | os.PathLike[str], recursive: bool = False) -> FolderScan:
    """As `find_images`, with the files that are no images beside; same errors."""
    scan = scan_folder(folder, recursive)
    for path, error in scan.unreadable:
        raise unlistable(path, error)
    if not scan.images:
        raise no_images(folder)
    return scan


def passed_over(others: Sequence[Path], where: str = "") -> str:
    """A line on files that are no images by their names: how many, and of which kinds, the most frequent first."""
    return passed_over_kinds(Counter(path.suffix.lower() for path in others), where)


def passed_over_kinds(others: Counter[str], where: str = "") -> str:
    """The same of files that were counted by their endings."""
    kinds = [(kind or "without ending", count) for kind, count in others.most_common()]
    listed = [f"{count} {kind}" for kind, count in kinds[:_KINDS_SHOWN]]
    listed += [f"{sum(count for _, count in kinds[_KINDS_SHOWN:])} of other kinds"] if kinds[_KINDS_SHOWN:] else []
    return f"{others.total()} files {where}passed over, no images by their names ({', '.join(listed)})"


def unlistable(folder: Path, error: OSError) -> ImageError:
    """The error of a folder that cannot be listed."""
    return ImageError(f"{folder}: cannot be listed as a folder ({error.strerror})")


def no_images(folder: str | os.PathLike[str]) -> ImageError:
    """The error of a folder without images; folders in it that have some are named."""
    deeper = folders_with_images(folder)
    hint = f"; there are some in {name_folders(deeper)}" if deeper else ""
    return ImageError(f"{folder}: no images in this folder ({', '.join(READABLE)}){hint}")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False

"""What the names on a command line stand for: files, folders, patterns, lists. Of what is nothing, it is told why."""

import codecs
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from edsr.errors import ImageError
from edsr.images import READABLE, folders_with_images, no_images, scan_folder, unlistable, walk_folders
from edsr.storage import Listing, Place, Url, as_path, identity, is_url, listing_of
from edsr.wording import option

from .stdio import STDIN

MAX_LIST_BYTES = 2**28
"""A list of inputs is smaller than this; a file without an end would never be read."""

RESULT = re.compile(r"(.+)_(?:x\d+(?:\.\d+)?|compare|(w\d+|h\d+|\d+x\d+))")
"""What this program calls its results. The last kind of ending (photo_1920x1080) others use as well."""


class Input(NamedTuple):
    """An image, the folder that it was found in if it was not named itself, and what people are shown for it."""

    source: Place
    folder: Place | None = None
    label: str = ""


class FailedInput(NamedTuple):
    """An input, as it was named, of which nothing can be made, and why."""

    name: str
    error: ImageError


@dataclass
class FoundInputs:
    """What `find` has found so far.

    Attributes:
        recursive: whether folders are entered at any depth.
        again: whether results of earlier runs that lie in folders are inputs.
        errors: names that stand for nothing.
        items: images.
        listed: prefixes and patterns at URLs, which are listed when the batch runs; one, and then no items, or none.
        earlier: results of earlier runs that are no inputs.
        others: files in folders that are no images, by their names.
        closed: folders in folders that have images, too, and were not entered.
    """

    recursive: bool = False
    again: bool = False
    items: list[Input] = field(default_factory=list)
    listed: list[Listing] = field(default_factory=list)
    errors: list[FailedInput] = field(default_factory=list)
    earlier: list[Place] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    closed: list[Path] = field(default_factory=list)

    def drop_missing(self) -> None:
        """Takes files that are not there out of `items`, and appends them to `errors`.

        What URLs lead to is not looked at: whoever fetches it can say that there is nothing.
        """
        for item in tuple(self.items):
            if isinstance(item.source, Url):
                continue
            try:
                os.stat(item.source)
            except (FileNotFoundError, NotADirectoryError):
                self.items.remove(item)
                self._fail(str(item.source), f"{item.source}: no such file")
            except (OSError, ValueError):  # which whoever reads it explains
                continue

    def find(self, name: str, listed: bool = False) -> list[Input]:
        """What a name on the command line, or one `listed` in a file, stands for."""
        if "\0" in name:
            return self._fail(name, f"{name}: no name holds a NUL character")
        try:
            if is_url(name):
                return self._find_at_url(Url.parse(name))
            name = as_path(name)
        except ImageError as error:
            self.errors.append(FailedInput(name, error))
            return []
        if name.startswith("@") and not listed and not os.path.lexists(name):
            return self._find_listed(name)
        if os.path.isdir(name):
            return self._find_in_folder(name)
        if not os.path.lexists(name) and glob.has_magic(name):
            unreadable: list[tuple[Path, OSError]] = []
            matches = sorted({*_match(name, unreadable)})
            self.errors += [FailedInput(str(path), unlistable(path, error)) for path, error in unreadable]
            if not matches and not unreadable:
                return self._fail(name, f"{name}: nothing matches this pattern")
            return [item for match in matches for item in self.find(match, True)]
        return [Input(Path(name))]

    def _find_at_url(self, url: Url) -> list[Input]:
        listing = listing_of(url, url.suffix.lower() in READABLE)
        if listing is None:
            return [Input(url)]
        self.listed.append(listing)
        return []

    def leave_one_listing(self) -> None:
        """Appends the prefixes and patterns at URLs to `errors`, unless there is one of them and nothing else.

        Names of results that are not known beforehand cannot be compared with others'.
        """
        if len(self.listed) > 1 or (self.listed and self.items):
            for listing in self.listed:
                why = "is listed while the batch runs, and must be the only input; give it a command of its own"
                self.errors.append(FailedInput(str(listing), ImageError(f"{listing}: {why}", misuse=True)))
            self.listed = []

    def _find_listed(self, name: str) -> list[Input]:
        path = name[1:]
        try:
            lines = read_list(path)
        except (OSError, ValueError) as error:
            return self._fail(name, f"{path}: the list cannot be read ({getattr(error, 'strerror', None) or error})")
        if not lines:
            return self._fail(name, f"{path}: the list is empty")
        return [item for line in lines for item in self.find(line, True)]

    def _find_in_folder(self, name: str) -> list[Input]:
        scan = scan_folder(name, self.recursive)
        self.errors += [FailedInput(str(path), unlistable(path, error)) for path, error in scan.unreadable]
        self.others += scan.others
        earlier = set() if self.again else _results_among(scan.images)
        self.earlier += sorted(earlier)
        found = [Input(path, Path(name)) for path in scan.images if path not in earlier]
        if earlier and not found:
            again = option("again")
            return self._fail(name, f"{name}: holds only results of earlier runs; add {again} to upscale them")
        closed = [] if self.recursive else folders_with_images(name, _holds_inputs)
        if found:
            self.closed += closed
        elif not scan.unreadable:
            enter = f"; add {option('recursive')} to enter them" if closed else ""
            self.errors.append(FailedInput(name, ImageError(f"{no_images(name)}{enter}")))
        return found

    def _fail(self, name: str, message: str) -> list[Input]:
        self.errors.append(FailedInput(name, ImageError(message)))
        return []


def find_inputs(
    names: Sequence[str], recursive: bool = False, again: bool = False, stdin: Path | None = None
) -> FoundInputs:
    """What the names on a command line stand for: each image once, in order.

    Whether a named file exists is not looked at, see `FoundInputs.drop_missing`.

    Args:
        names: Files; folders, with those in them if `recursive`; patterns such as `*.png`, for shells that leave them
            alone; URLs; `@list.txt`, a file with one of these in each line.
        recursive, again: See `FoundInputs`.
        stdin: The file that stands for the input "-".
    """
    inputs = FoundInputs(recursive, again)
    found: dict[str, Input] = {}
    for name in names:
        for item in [Input(stdin, label=STDIN)] if stdin is not None and name == "-" else inputs.find(name):
            path = identity(item.source)
            if path not in found or item.folder is None:  # that it was named counts, not that it lies in a folder, too
                found[path] = item
    inputs.items = list(found.values())
    inputs.leave_one_listing()
    return inputs


def read_list(path: str) -> list[str]:
    """The lines of a list that are not blank. Names on disk need not be UTF-8, so lines need not, either."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("not a regular file")
    with open(path, "rb") as file:
        data = file.read(MAX_LIST_BYTES)
    if len(data) == MAX_LIST_BYTES:
        raise ValueError(f"more than {MAX_LIST_BYTES / 1e6:.0f} MB")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes
        text = data.decode("utf-16")
    else:
        text = data.decode("utf-8-sig", "surrogateescape")
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [existing_or_stripped(line) for line in lines if line.strip()]


def existing_or_stripped(line: str) -> str:
    """A name may begin or end with a space; mostly spaces around it are an accident."""
    return line if "\0" in line or os.path.lexists(line) else line.strip()


def _match(pattern: str, unreadable: list[tuple[Path, OSError]]) -> Iterator[str]:
    """The paths that match a pattern. `**` enters each real folder once; glob follows links even in circles."""
    parts = re.split(r"[\\/]" if os.sep == "\\" else "/", pattern)
    if "**" not in parts:
        yield from glob.glob(pattern)
        return
    at = parts.index("**")
    head, tail = os.sep.join(parts[:at]), [part for part in parts[at + 1 :] if part]
    while tail[:1] == ["**"]:
        del tail[0]
    for top in glob.glob(head) if head else [os.sep if at else "."]:
        if os.path.isdir(top):
            for folder, entries in walk_folders(top, True, unreadable):
                if tail:
                    yield from _match(os.path.join(glob.escape(str(folder)), *tail), unreadable)
                else:
                    yield from (entry.path for entry in entries if not entry.is_dir())


def _holds_inputs(images: list[Path]) -> bool:
    """Whether there are others among the images in a folder than results."""
    return bool({*images} - _results_among(images))


def _results_among(images: list[Path]) -> set[Path]:
    """Those of the images in a folder that are, by their names, results of this program.

    A name such as photo_1920x1080 is one only if there is a photo, too.
    """
    names = {path.name.lower() for path in images} | {path.stem.lower() for path in images}
    return {
        path
        for path in images
        if (found := RESULT.fullmatch(path.stem))
        and (not found[2] or {found[1].lower(), ".".join(found[1].lower().rsplit("_", 1))} & names)
    }

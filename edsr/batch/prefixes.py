"""The jobs of a prefix, or of a pattern, at a URL: found while the batch runs, each named by itself alone."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from edsr.errors import ImageError
from edsr.images import READABLE, kept_extension
from edsr.storage import Listing, Place, Url, list_objects
from edsr.wording import option

from .clashes import Job, ignores_case
from .inputs import RESULT, FailedInput

_UNSAFE = set('\\:*?"<>|') if os.name == "nt" else set()


class ListedJobs:
    """The jobs of what a listing gives, one after the other; none is held.

    The result of in/a.jpg is a_jpg_x2.png: with its kind in its name, so that a.png, which might be found later, or by
    another run, becomes something else. Below the output's folder the tree of the prefix is mirrored.

    Args:
        listing: What is listed. Results of this program in it, by their names, are left out.
        output: The folder of the results; None for that of each image.
        tag: What results' names end in.
        form: As `output_path` takes it; "keep" goes by the name.
        recursive: Whether prefixes in the prefix are entered.
        again: Whether results of earlier runs are images, too.

    Attributes:
        earlier: How many results of earlier runs were left out so far.
        others: Endings of the objects that are no images by their names, and how many so far.
        found: How many jobs there were so far.
        closed: How many prefixes were not entered.

    Raises:
        ImageError: Results would be listed again, as images.
    """

    def __init__(
        self,
        listing: Listing,
        output: Place | None,
        tag: str,
        form: str | None = None,
        recursive: bool = False,
        again: bool = False,
    ):
        self.earlier, self.others, self.found, self.closed = 0, Counter[str](), 0, 0
        self._listing, self._output, self._tag, self._form = listing, output, tag, form
        self._recursive, self._again = recursive, again
        target = listing.folder if output is None else output
        if again and isinstance(target, Url) and target.address.startswith(listing.folder.address):
            why = f"with {option('again')} results would be upscaled once more while they appear"
            raise ImageError(f"{listing}: {why}; name an output outside of it", misuse=True)
        self._names: set[int] | None = None  # hashes of those that were given, where case does not count
        if isinstance(output, Path) and ignores_case(str(output)):
            self._names = set()

    def __iter__(self) -> Iterator[Job | FailedInput]:
        name = str(self._listing)
        try:
            for source in list_objects(self._listing, self._recursive):
                if any(part.startswith(".") and part.strip(".") for part in self._below(source).split("/")):
                    continue  # hidden
                if source.is_folder:
                    self.closed += 1
                elif source.suffix.lower() not in READABLE:
                    self.others[source.suffix.lower()] += 1
                elif not self._again and is_result(source):
                    self.earlier += 1
                else:
                    self.found += 1
                    yield self._job(source)
        except ImageError as error:
            yield FailedInput(name, error)
            return
        if not self.found:
            yield FailedInput(name, ImageError(f"{name}: {self._why_empty()}"))

    def _why_empty(self) -> str:
        if self.earlier:
            return f"holds only results of earlier runs; add {option('again')} to upscale them"
        if self._listing.pattern:
            return "nothing matches this pattern"
        enter = f"; add {option('recursive')} to enter the {self.closed} prefixes in it" if self.closed else ""
        return f"no images under this prefix ({', '.join(READABLE)}){enter}"

    def _below(self, source: Url) -> str:
        return source.path[len(self._listing.folder.path) :]

    def _job(self, source: Url) -> Job | FailedInput:
        ending = kept_extension(PurePosixPath(source.name)) if self._form == "keep" else f".{self._form or 'png'}"
        name = f"{source.stem}_{source.suffix[1:]}_{self._tag}{ending}"
        if self._output is None:
            return Job(source, source.parent / name)
        parts = self._below(source).split("/")[:-1]
        if isinstance(self._output, Url):
            folder = self._output if self._output.is_folder else replace(self._output, path=f"{self._output.path}/")
            return Job(source, replace(folder, path=folder.path + "".join(f"{part}/" for part in parts) + name))
        if not all(part.strip(".") and not _UNSAFE & {*part} and "\0" not in part for part in (*parts, name)):
            return _failed(source, f"no path below {self._output} has such a name; choose an output at a URL")
        job = Job(source, self._output.joinpath(*parts, name))
        if self._names is not None:
            known = hash(unicodedata.normalize("NFC", str(job.output)).casefold())
            if known in self._names:
                return _failed(source, f"another one would become the same file, {job.output}; rename one of the two")
            self._names.add(known)
        return job


def is_result(source: Url) -> bool:
    """Whether an object is by its name a result of this program.

    photo_1920x1080.png is none: results of such names that are listed have a kind in theirs, photo_jpg_1920x1080.png.
    """
    found = RESULT.fullmatch(source.stem)
    return found is not None and (not found[2] or f".{found[1].rpartition('_')[2].lower()}" in READABLE)


def _failed(source: Url, why: str) -> FailedInput:
    return FailedInput(str(source), ImageError(f"{source}: {why}"))

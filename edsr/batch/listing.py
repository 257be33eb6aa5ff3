"""The jobs of a batch too long to be held: each is found when it is wanted, and named by itself alone."""

import codecs
import os
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath

from edsr.errors import ImageError
from edsr.images import READABLE, kept_extension, no_images, unlistable
from edsr.storage import Place, Url, is_url
from edsr.wording import option

from .clashes import Job, ignores_case, with_kind
from .inputs import RESULT, FailedInput, FoundInputs, existing_or_stripped, read_list

_ENDINGS = tuple(ending for lower in READABLE for ending in (lower, lower.upper()))


def can_be_lazy(name: str) -> bool:
    """Whether an input, if it is the only one, can be listed while the batch runs: a folder, or a list of names."""
    return os.path.isdir(name) or (name.startswith("@") and not os.path.lexists(name))


class LazyJobs:
    """The jobs of one folder, or of one list, found one after the other in the order of the disk.

    Below the output's folder the tree of the input's is mirrored; of a list the folders that its lines name. The names
    of the results are yet to be settled (`settle_name`), wherever there is time for that.

    Args:
        name: A folder, or `@list.txt`.
        output: The folder of the results, or a URL's prefix; outside of what is listed.
        tag, form: As `plan_jobs` takes them.
        recursive, again: As `find_inputs` takes them.

    Attributes:
        earlier: How many results of earlier runs were left out so far.
        others: Endings of the files that are no images by their names, and how many so far.
        found: How many jobs there were so far.
        closed: How many folders were not entered.
    """

    def __init__(
        self, name: str, output: Place, tag: str, form: str | None = None, recursive: bool = False, again: bool = False
    ):
        self.earlier, self.others, self.found, self.closed = 0, Counter[str](), 0, 0
        self._name, self._output, self._tag, self._form = name, output, tag, form
        self._recursive, self._again = recursive, again
        self._stems: dict[int, int] | None = None  # hashes of results' names as they are, by those without case
        if isinstance(output, Path) and ignores_case(str(output)):
            self._stems = {}

    def __iter__(self) -> Iterator[Job | FailedInput]:
        if not self._name.startswith("@") or os.path.lexists(self._name):
            yield from self._in_folder(self._name, Path())
            return
        path = self._name[1:]
        try:
            for line in _lines(path):
                yield from self._listed(line)
        except (OSError, ValueError) as error:
            message = f"{path}: the list cannot be read ({getattr(error, 'strerror', None) or error})"
            yield FailedInput(self._name, ImageError(message))
            return
        if not self.found:
            yield FailedInput(self._name, ImageError(f"{path}: the list names no images"))

    def _listed(self, line: str) -> Iterator[Job | FailedInput]:
        if is_url(line):
            yield self._at_url(line)
            return
        if os.path.isdir(line):
            yield from self._in_folder(line, _relative(Path(line)))
            return
        one = FoundInputs()
        for item in one.find(line, True):
            if isinstance(item.source, Path):
                yield self._job(item.source, _relative(item.source).parent)
        yield from one.errors

    def _in_folder(self, top: str, below: Path) -> Iterator[Job | FailedInput]:
        before = self.found
        for path in self._walk(top):
            if isinstance(path, FailedInput):
                self.found += 1  # something was told
                yield path
            elif path.suffix.lower() not in READABLE:
                self.others[path.suffix.lower()] += 1
            elif not self._again and _is_result(path):
                self.earlier += 1
            else:
                yield self._job(path, below / path.relative_to(top).parent)
        if self.found == before:
            again = f"; add {option('again')} to take results of earlier runs" if self.earlier else ""
            yield FailedInput(top, ImageError(f"{no_images(top)}{again}"))

    def _walk(self, top: str) -> Iterator[Path | FailedInput]:
        """Each file below, hidden ones left out. Of a folder no more is held than the system's buffer.

        Links are followed after all that is reached without them, each real folder is entered once.
        """
        waiting, links, seen = [top], deque[str](), set()
        while waiting or links:
            folder = waiting.pop() if waiting else links.popleft()
            real = os.path.realpath(folder)
            if real in seen:
                continue
            seen.add(real)
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if not entry.is_dir():
                            yield Path(entry.path)
                        elif self._recursive:
                            (links if entry.is_symlink() else waiting).append(entry.path)
                        else:
                            self.closed += 1
            except OSError as error:
                yield FailedInput(folder, unlistable(Path(folder), error))

    def _at_url(self, line: str) -> Job | FailedInput:
        try:
            source = Url.parse(line)
        except ImageError as error:
            return FailedInput(line, error)
        if source.suffix.lower() not in READABLE:
            why = "no image by its name; prefixes in a list are not entered here, give one alone"
            return FailedInput(line, ImageError(f"{source}: {why}"))
        # What lies beside it is not looked up: its kind is always in its name, in its case.
        parts = [part for part in source.path.split("/")[:-1] if part.strip(".")]
        job = self._plain(source, PurePosixPath(source.host.rpartition("@")[2], *parts))
        name = f"{source.stem}_{source.suffix[1:]}_{self._tag}{job.output.suffix}"
        return job._replace(output=job.output.with_name(name))

    def _job(self, source: Place, parent: PurePath) -> Job | FailedInput:
        if self._stems is not None:
            stem = str(parent / source.stem)
            folded = hash(unicodedata.normalize("NFC", stem).casefold())
            if self._stems.setdefault(folded, hash(stem)) != hash(stem):
                self.found += 1
                why = f"another one, whose name differs in case alone, would become the same file in {self._output}"
                return FailedInput(str(source), ImageError(f"{source}: {why}; rename one of the two"))
        return self._plain(source, parent)

    def _plain(self, source: Place, parent: PurePath) -> Job:
        self.found += 1
        ending = kept_extension(PurePosixPath(source.name)) if self._form == "keep" else f".{self._form or 'png'}"
        name = f"{source.stem}_{self._tag}{ending}"
        if isinstance(self._output, Path):
            return Job(source, self._output / parent / name)
        return Job(source, self._output / "".join(f"{part}/" for part in (*parent.parts, name)).removesuffix("/"))


def settle_name(job: Job, tag: str) -> Job:
    """The job under the name that its result gets, which follows from the source and what lies beside it.

    That is NAME_x2.png; or NAME_KIND_x2.png, as a_jpg_x2.png, if there is an image a.png beside a.jpg; if the name
    itself ends in a kind (a_jpg.png); and if the ending is of small and capital letters (a.Jpg). So no two files of a
    folder get one name.

    Raises:
        ImageError: Beside it lies a file whose name differs in the case of its ending alone.
    """
    source, ending = job.source, job.source.suffix
    if not isinstance(source, Path):
        return job  # it has its kind
    beside = [other for other in _ENDINGS if other != ending and _another(source, other)]
    for other in beside:
        if other.lower() == ending.lower():
            twin = source.with_suffix(other)
            raise ImageError(f"{source}: {twin} would become the same file, {with_kind(job, tag).output}; rename one")
    mixed = ending not in (ending.lower(), ending.upper())
    kind_in_name = f".{source.stem.rpartition('_')[2].lower()}" in READABLE and "_" in source.stem
    if not (beside or mixed or kind_in_name):
        return job
    job = with_kind(job, tag)
    label = job.output_label and str(Path(job.output_label).with_name(job.output.name))
    return job._replace(output_label=label)


def _another(source: Path, ending: str) -> bool:
    """Whether beside the source there is an image of the same name with another ending; another file, that is."""
    other = source.with_suffix(ending)
    try:
        return os.path.lexists(other) and not os.path.samefile(source, other)
    except OSError:  # a link that leads nowhere
        return True


def _is_result(path: Path) -> bool:
    """Whether an image is by its name a result of this program. photo_1920x1080.png is one if there is a photo."""
    found = RESULT.fullmatch(path.stem)
    if not found or not found[2]:
        return bool(found)
    names = [found[1] + ending for ending in _ENDINGS]
    stem, _, kind = found[1].rpartition("_")
    return any(os.path.lexists(path.with_name(name)) for name in (*names, f"{stem}.{kind}"))


def _relative(path: Path) -> Path:
    """Where the results of what a line names go below the output's folder."""
    path = Path(os.path.normpath(path))
    if ".." in path.parts:
        path = Path(os.path.realpath(path))
    return path.relative_to(path.anchor)


def _lines(path: str) -> Iterator[str]:
    """The lines of a list that are not blank, one at a time where it is UTF-8 or bytes."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("not a regular file")
    with open(path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            yield from read_list(path)
            return
        file.seek(0)
        for number, data in enumerate(file):
            data = data.removeprefix(codecs.BOM_UTF8) if number == 0 else data
            line = data.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
            if line.strip():
                yield existing_or_stripped(line)

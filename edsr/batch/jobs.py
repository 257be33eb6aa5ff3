"""Which images a batch is of, where each goes, and how large it becomes."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from edsr.errors import ImageError
from edsr.images import FORMATS, READABLE, find_images

from .stdio import STDIN


class Job(NamedTuple):
    """An image file and the file it is to become. No two jobs of a batch have the same output.

    `source_label` and `output_label` are what people are shown in place of the paths, where these are temporary files
    that stand for something else, such as standard input.
    """

    source: Path
    output: Path
    source_label: str = ""
    output_label: str = ""

    @property
    def source_name(self) -> str:
        """What people are shown for the source."""
        return self.source_label or str(self.source)

    @property
    def output_name(self) -> str:
        """What people are shown for the output."""
        return self.output_label or str(self.output)


class FailedInput(NamedTuple):
    """An input, as it was named, of which nothing can be made, and why."""

    name: str
    error: ImageError


@dataclass
class BatchPlan:
    """What `plan_jobs` makes of the inputs.

    errors: inputs that give no jobs; the others are not affected. left_out: images that were named as inputs, but are
    what another input becomes.
    """

    jobs: list[Job] = field(default_factory=list)
    errors: list[FailedInput] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class OutputSize:
    """The size of a result: `outscale` times the image's, or `width` and/or `height` in pixels. By default the size is
    what the network makes.

    One side alone keeps the image's proportions; both are taken as they are.
    """

    outscale: float | None = None
    width: int | None = None
    height: int | None = None

    def __bool__(self) -> bool:
        """Whether a size is asked for."""
        return bool(self.outscale or self.width or self.height)

    def resolve(self, width: int, height: int) -> tuple[int, int]:
        """The result's (width, height) for an image of width x height, each 1 or more."""
        if self.outscale:
            sides = width * self.outscale, height * self.outscale
        else:
            across = self.width / width if self.width else None
            down = self.height / height if self.height else across
            across = across if across is not None else down
            if across is None or down is None:
                raise ValueError("no size is asked for")
            sides = width * across, height * down
        return max(1, round(sides[0])), max(1, round(sides[1]))

    def tag(self, scale: int) -> str:
        """What the result's name ends in: x2.5, w3000, h2000, 3000x2000; with no size asked for, x and the scale."""
        if self.width and self.height:
            return f"{self.width}x{self.height}"
        if self.width or self.height:
            return f"w{self.width}" if self.width else f"h{self.height}"
        return f"x{self.outscale or scale:g}"


def scale_for(target: tuple[int, int], width: int, height: int, scales: Sequence[int]) -> int | None:
    """The smallest of `scales` that makes width x height at least as large as `target`; None if none does."""
    return next((s for s in sorted(scales) if s * width >= target[0] and s * height >= target[1]), None)


class _Input(NamedTuple):
    source: Path
    folder: Path | None = None  # the folder it was found in, if it was not named itself
    label: str = ""


def plan_jobs(
    inputs: Sequence[str],
    output: str | None,
    tag: str,
    form: str | None = None,
    recursive: bool = False,
    stdin: Path | None = None,
) -> BatchPlan:
    """The images of `inputs`, each once, in order, and the files they are to become.

    An earlier run's result (a_x2.png beside a.png) is not taken for an input.

    Args:
        inputs: Files; folders, with those in them if `recursive`; patterns such as `*.png`, for shells that leave them
            alone; `@list.txt`, a file with one of these in each line.
        output: None for NAME_x2.png beside each image, x2 being the `tag`; a file for a single one; a folder for many,
            below which the tree of each input folder is mirrored, and which is made if the name ends in a slash.
            Images of one name (`a.png` and `a.jpg`) become a_png_x2.png and a_jpg_x2.png.
        form: The format, as `output_path` takes it.
        stdin: The file that stands for the input "-".

    Raises:
        ImageError: There are no inputs, or no place for all of them. What is wrong with single inputs (an empty
            folder, a list that cannot be read, a pattern without a match) is in the plan's `errors`; whether a named
            file exists is not looked at.
    """
    plan = BatchPlan()
    found: dict[str, _Input] = {}
    for name in inputs:
        if stdin is not None and name == "-":
            items = [_Input(stdin, label=STDIN)]
        else:
            items = _expand(name, recursive, plan.errors)
        for item in items:
            path = os.path.realpath(item.source)
            if path not in found or item.folder is None:  # that it was named counts, not that it lies in a folder, too
                found[path] = item
    if not found and not plan.errors:
        raise ImageError("no images given; name files or folders")
    several = len(found) + len(plan.errors) > 1 or any(item.folder is not None for item in found.values())
    if found and output is not None and output.endswith(("/", os.sep)):
        Path(output).mkdir(parents=True, exist_ok=True)
    if found and output is not None and several and not os.path.isdir(output):
        count = len(found) + len(plan.errors)
        raise ImageError(f"{output}: {count} images need a folder after -o; to have it made, end it in a slash")
    jobs = []
    for item in found.values():
        try:
            jobs.append((item, Job(item.source, _output(item, output, tag, form), item.label)))
        except ImageError as error:
            plan.errors.append(FailedInput(item.label or str(item.source), error))
    plan.jobs = _resolve_clashes(_without_results(jobs, tag, plan.left_out), tag)
    owner: dict[Path, Path] = {}
    for job in plan.jobs:
        other = owner.setdefault(job.output, job.source)
        if other is not job.source:
            raise ImageError(f"{job.output}: {other} and {job.source} would both become this; rename one")
    return plan


def _expand(name: str, recursive: bool, errors: list[FailedInput], listed: bool = False) -> list[_Input]:
    """What a name on the command line, or one `listed` in a file, stands for. Appends to `errors` why it is nothing."""
    if name.startswith("@") and not listed and not os.path.exists(name):
        try:
            lines = Path(name[1:]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8"
            return _fail(errors, name, f"{name[1:]}: the list cannot be read ({why})")
        names = [line.strip() for line in lines if line.strip()]
        if not names:
            return _fail(errors, name, f"{name[1:]}: the list is empty")
        return [item for line in names for item in _expand(line, recursive, errors, True)]
    if os.path.isdir(name):
        try:
            return [_Input(path, Path(name)) for path in find_images(name, recursive)]
        except ImageError as error:
            errors.append(FailedInput(name, error))
            return []
    if not os.path.exists(name) and glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            return _fail(errors, name, f"{name}: nothing matches this pattern")
        return [item for match in matches for item in _expand(match, recursive, errors, True)]
    return [_Input(Path(name))]


def _fail(errors: list[FailedInput], name: str, message: str) -> list[_Input]:
    errors.append(FailedInput(name, ImageError(message)))
    return []


def _output(item: _Input, output: str | None, tag: str, form: str | None) -> Path:
    if output is None or not os.path.isdir(output) or item.folder is None:
        return output_path(item.source, tag, output, form)
    parent = item.source.relative_to(item.folder).parent
    return Path(output) / parent / output_path(item.source, tag, None, form).name


def _without_results(found: list[tuple[_Input, Job]], tag: str, left_out: list[Path]) -> list[Job]:
    """The jobs whose source is not another's output; of sources found in a folder, in whatever format that would be.

    Appends those that were named themselves to `left_out`.
    """
    beside_namesakes = [job._replace(output=_with_kind(job, tag)) for _, job in found]
    results = {os.path.realpath(job.output) for job in (*(job for _, job in found), *beside_namesakes)}
    stems = {os.path.splitext(result)[0] for result in results}
    kept = []
    for item, job in found:
        path = os.path.realpath(item.source)
        if path not in results and (item.folder is None or os.path.splitext(path)[0] not in stems):
            kept.append(job)
        elif item.folder is None:
            left_out.append(item.source)
    return kept


def _resolve_clashes(jobs: list[Job], tag: str) -> list[Job]:
    """The same jobs; those of one output with the kind of their source in its name."""
    count = Counter(job.output for job in jobs)
    return [job if count[job.output] == 1 else job._replace(output=_with_kind(job, tag)) for job in jobs]


def _with_kind(job: Job, tag: str) -> Path:
    """a_jpg_x2.png for a.jpg, beside the job's output."""
    stem, kind = job.source.stem, job.source.suffix.lstrip(".").lower()
    return job.output.with_name(f"{stem}_{kind}_{tag}{job.output.suffix}")


def output_path(
    source: str | os.PathLike[str],
    tag: str,
    output: str | os.PathLike[str] | None = None,
    form: str | None = None,
) -> Path:
    """Where the upscaled `source` goes: NAME_x2.png for the tag "x2", beside it or in the folder `output`.

    Args:
        output: A folder if one is there or if it ends in a slash, otherwise the file to write.
        form: The extension without its dot ("png", "jpg", "webp", "tiff", "avif"), or "keep" for the source's own
            (AVIF for HEIF). None is PNG, or what the name in `output` says.

    Raises:
        ImageError: That is the source itself, or the extension of `output` is another format's.
    """
    source = Path(source)
    kind = source.suffix.lower()
    kept = source.suffix if kind in FORMATS else ".avif" if kind in READABLE else ".png"
    suffix = kept if form == "keep" else f".{form or 'png'}"
    target = source.parent / f"{source.stem}_{tag}{suffix}"
    if output is not None:
        text = os.fspath(output)
        folder = text.endswith(("/", os.sep)) or os.path.isdir(text)
        target = Path(text) / target.name if folder else Path(text)
        if form and FORMATS.get(target.suffix.lower()) != FORMATS[suffix.lower()]:
            raise ImageError(f"{target}: its ending is not that of --format {form}, leave one of them out")
    try:
        same = os.path.samefile(source, target)
    except (OSError, ValueError):  # one of them is not there
        same = os.path.realpath(source) == os.path.realpath(target)
    if same:
        raise ImageError(f"{target}: is the input itself, choose another output")
    return target

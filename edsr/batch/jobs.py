"""Which images a batch is of, where each goes, and how large it becomes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from edsr.errors import ImageError
from edsr.images import FORMATS, kept_extension
from edsr.storage import Place, Url, as_path, identity, is_url, place_of
from edsr.wording import either

from .clashes import Job, resolve_clashes, with_kind
from .inputs import FailedInput, FoundInputs, Input, find_inputs
from .prefixes import ListedJobs


@dataclass
class BatchPlan:
    """What `plan_jobs` makes of the inputs.

    errors: inputs that give no jobs; the others are not affected. left_out: images that were named as inputs, but are
    what another input becomes. earlier: results of earlier runs, found in folders. others: files in folders that are no
    images, by their names. closed: folders in folders that have images, too, and were not entered. into_folder: whether
    results go into a folder, which may be yet to be made. listed: jobs that are found while the batch runs, if these
    are all.
    """

    jobs: list[Job] = field(default_factory=list)
    errors: list[FailedInput] = field(default_factory=list)
    left_out: list[Place] = field(default_factory=list)
    earlier: list[Place] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    closed: list[Path] = field(default_factory=list)
    into_folder: bool = False
    listed: ListedJobs | None = None


@dataclass(frozen=True)
class OutputSize:
    """The size of a result: `outscale` times the image's, or `width` and/or `height` in pixels. By default the size is
    what the network makes.

    One side alone keeps the image's proportions; both are taken as they are, or, to `fit`, as the most that a result
    of the image's proportions may have.
    """

    outscale: float | None = None
    width: int | None = None
    height: int | None = None
    fit: bool = False

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
            if self.fit:
                across = down = min(across, down)
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


def scale_and_size(
    source: Path, width: int, height: int, usual: int, scales: Sequence[int], size: OutputSize
) -> tuple[int, tuple[int, int]]:
    """The network's scale for an image of width x height, and the result's (width, height).

    Args:
        source: The image's file.
        usual: The scale where no size is asked for.
        scales: Those that there are.

    Raises:
        ImageError: None of them makes so large a result.
    """
    if not size:
        return usual, (usual * width, usual * height)
    target = size.resolve(width, height)
    scale = scale_for(target, width, height, scales)
    if scale is None:
        largest = max(scales)
        raise ImageError(
            f"{source}: {target[0]} x {target[1]} is more than {largest} times its {width} x {height}, the most that "
            "this network makes; ask for less, and upscale the result again",
            misuse=bool(size.outscale),
        )
    return scale, target


def plan_jobs(
    inputs: Sequence[str] | FoundInputs,
    output: str | None,
    tag: str,
    form: str | None = None,
    recursive: bool = False,
    stdin: Path | None = None,
    again: bool = False,
) -> BatchPlan:
    """The images of `inputs`, each once, in order, and the files they are to become.

    A result (a_x2.png, a_compare.png; a_w3000.png beside a.png) that is found in a folder is not taken for an input.

    Args:
        inputs: As `find_inputs` takes them, or what it has found.
        output: None for NAME_x2.png beside each image, x2 being the `tag`; a file for a single one; a folder for many,
            below which the tree of each input folder is mirrored, and which need not be there: a name that ends in a
            slash or has no extension is a folder's, and for many images one that has not that of a format.
            Either may be at a URL.
            Images of one name (`a.png` and `a.jpg`) become a_png_x2.png and a_jpg_x2.png. Where two would still become
            one file, through links or on a file system that ignores case, too, both are in the plan's `errors`.
        form: The format, as `output_path` takes it.
        recursive, stdin, again: As `find_inputs` takes them, if it is yet to be called. Results that this batch writes
            are no inputs in any case.

    Raises:
        ImageError: There are no inputs, or no place for all of them. What is wrong with single inputs (an empty
            folder, a list that cannot be read, a pattern without a match) is in the plan's `errors`; whether a named
            file exists is not looked at.
    """
    found = inputs if isinstance(inputs, FoundInputs) else find_inputs(inputs, recursive, again, stdin)
    if not found.items and not found.errors and not found.listed:
        raise ImageError("no images given; name files or folders")
    output = as_path(output) if output is not None else None
    several = len(found.items) + len(found.errors) > 1 or any(item.folder is not None for item in found.items)
    several = several or bool(found.listed)
    if output is not None and is_folder_name(output, several):
        output = output if output.endswith("/") else output + "/" if is_url(output) else os.path.join(output, "")
    elif (found.items or found.listed) and output is not None and several:
        count: int | str = "several" if found.listed else len(found.items) + len(found.errors)
        images = "the images of a folder" if count == 1 else f"{count} images"
        message = f"{output}: {images} need a folder after -o; to have it made, end it in a slash"
        raise ImageError(message, misuse=True)
    plan = BatchPlan(errors=found.errors, earlier=found.earlier, others=found.others, closed=found.closed)
    plan.into_folder = output is not None and output.endswith(("/", os.sep))
    if found.listed:
        target = None if output is None else place_of(output)
        plan.listed = ListedJobs(found.listed[0], target, tag, form, found.recursive, found.again)
    jobs = []
    for item in found.items:
        try:
            jobs.append((item, Job(item.source, _output(item, output, tag, form), item.label)))
        except ImageError as error:
            plan.errors.append(FailedInput(item.label or str(item.source), error))
    plan.jobs = resolve_clashes(_without_results(jobs, tag, plan, found.again), tag, plan.errors)
    return plan


def is_folder_name(output: str, several: bool = False) -> bool:
    """Whether what follows -o names a folder, which may be yet to be made. several: images, or a folder of them."""
    place = place_of(output)
    if output.endswith(("/", os.sep)) or (place.is_folder if isinstance(place, Url) else os.path.isdir(place)):
        return True
    suffix = place.suffix.lower()
    if isinstance(place, Path) and os.path.lexists(place):
        return False
    return not suffix or (several and suffix not in FORMATS)


def _output(item: Input, output: str | None, tag: str, form: str | None) -> Place:
    if output is None or not output.endswith(("/", os.sep)) or item.folder is None:
        return output_path(item.source, tag, output, form)
    assert isinstance(item.source, Path) and isinstance(item.folder, Path)
    folder = place_of(output)
    for part in item.source.relative_to(item.folder).parent.parts:
        folder /= part
    return folder / output_path(item.source, tag, None, form).name


def _without_results(found: list[tuple[Input, Job]], tag: str, plan: BatchPlan, again: bool) -> list[Job]:
    """The jobs whose source is not another's output; of sources found in a folder, in whatever format that would be
    unless results are wanted `again`. Appends the others to the plan's `left_out`, or to `earlier`.
    """
    beside_namesakes = [with_kind(job, tag) for _, job in found]
    results = {identity(job.output) for job in (*(job for _, job in found), *beside_namesakes)}
    stems = {os.path.splitext(result)[0] for result in results}
    kept = []
    for item, job in found:
        path = identity(item.source)
        if path not in results and (item.folder is None or again or os.path.splitext(path)[0] not in stems):
            kept.append(job)
        else:
            (plan.left_out if item.folder is None or again else plan.earlier).append(item.source)
    return kept


def output_path(
    source: str | os.PathLike[str] | Url,
    tag: str,
    output: str | os.PathLike[str] | Url | None = None,
    form: str | None = None,
) -> Place:
    """Where the upscaled `source` goes: NAME_x2.png for the tag "x2", beside it or in the folder `output`.

    Args:
        output: A folder if one is there or if it ends in a slash, otherwise the file to write.
        form: The extension without its dot ("png", "jpg", "webp", "tiff", "avif"), or "keep" for the source's own
            (AVIF for HEIF, PNG for GIF). None is PNG, or what the name in `output` says.

    Raises:
        ImageError: That is the source itself, or cannot be written to, or the extension of `output` is another
            format's.
    """
    source = source if isinstance(source, Url) else place_of(os.fspath(source))
    file = PurePosixPath(source.name) if isinstance(source, Url) else source
    suffix = kept_extension(file) if form == "keep" else f".{form or 'png'}"
    name = f"{source.stem}_{tag}{suffix}"
    if output is None:
        target = source.parent / name
    else:
        text = output.address if isinstance(output, Url) else os.fspath(output)
        target = place_of(text)
        folder = isinstance(target, Path) and os.path.isdir(target)
        if folder or text.endswith(("/", os.sep)):
            target /= name
        if form and FORMATS.get(target.suffix.lower()) != FORMATS[suffix.lower()]:
            named = either(f"form={form!r}", f"--format {form}")
            raise ImageError(f"{target}: its ending is not that of {named}, leave one of them out", misuse=True)
    if isinstance(target, Url) and not target.writable:
        raise ImageError(f"{source}: {target.scheme}:// cannot be written to; name an output", misuse=True)
    if _are_same(source, target):
        raise ImageError(f"{target}: is the input itself, choose another output", misuse=True)
    return target


def _are_same(source: Place, target: Place) -> bool:
    if isinstance(source, Path) and isinstance(target, Path):
        try:
            return os.path.samefile(source, target)
        except (OSError, ValueError):  # one of them is not there
            pass
    return identity(source) == identity(target)

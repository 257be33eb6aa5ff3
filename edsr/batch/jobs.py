"""Which images a batch is of, and where each goes."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edsr.errors import ImageError
from edsr.images import FORMATS, READABLE, find_images


class Job(NamedTuple):
    """An image and the file it is to become, of which no two jobs have the same."""

    source: Path
    output: Path


class _Found(NamedTuple):
    source: Path
    folder: Path | None  # the folder it was found in, if it was not named itself


def plan_jobs(
    inputs: Sequence[str], output: str | None, tag: str, form: str | None = None, recursive: bool = False
) -> list[Job]:
    """The images of `inputs`, each once, in order, and their outputs.

    inputs: files; folders, with those in them if `recursive`; patterns such as `*.png`, for shells that leave them
    alone; `@list.txt`, a file with one of these in each line. output: None for NAME_x2.png beside each image, x2
    being the `tag`; a file for a single one; a folder for many, below which the tree of each input folder is mirrored,
    and which is made if the name ends in a slash. form: the format, as `output_path` takes it. Images of one name
    (`a.png` and `a.jpg`) become a_png_x2.png and a_jpg_x2.png. What an earlier run has left (a_x2.png beside a.png) is
    not taken for an input.
    Raises ImageError where there is nothing to do, or no place for it.
    """
    found = list({os.path.realpath(item.source): item for name in inputs for item in _find(name, recursive)}.values())
    if not found:
        raise ImageError("no images given; name files or folders")
    several = len(found) > 1 or found[0].folder is not None
    if output is not None and output.endswith(("/", os.sep)):
        Path(output).mkdir(parents=True, exist_ok=True)
    if output is not None and several and not os.path.isdir(output):
        raise ImageError(f"{output}: {len(found)} images need a folder after -o; to have it made, end it in a slash")
    found = _without_results(found, output, tag, form)
    planned = _apart([Job(item.source, _target(item, output, tag, form)) for item in found], tag)
    owner: dict[Path, Path] = {}
    for job in planned:
        other = owner.setdefault(job.output, job.source)
        if other is not job.source:
            raise ImageError(f"{job.output}: {other} and {job.source} would both become this; rename one")
    return planned


def _without_results(found: list[_Found], output: str | None, tag: str, form: str | None) -> list[_Found]:
    """Without those that lie where others' results go; of those found in a folder, in whatever format."""
    plain = [Job(item.source, _target(item, output, tag, form)) for item in found]
    named = [job._replace(output=_with_suffix(job, tag)) for job in plain]  # as they are called beside a namesake
    results = {os.path.realpath(job.output) for job in (*plain, *named)}
    stems = {os.path.splitext(result)[0] for result in results}
    kept = []
    for item in found:
        path = os.path.realpath(item.source)
        if path not in results and (item.folder is None or os.path.splitext(path)[0] not in stems):
            kept.append(item)
    return kept


def _apart(planned: list[Job], tag: str) -> list[Job]:
    """The same jobs; those of one output with the kind of their source in its name."""
    taken = Counter(job.output for job in planned)
    return [job if taken[job.output] == 1 else job._replace(output=_with_suffix(job, tag)) for job in planned]


def _find(name: str, recursive: bool, listed: bool = False) -> list[_Found]:
    """What a name on the command line, or one `listed` in a file, stands for."""
    if name.startswith("@") and not listed and not os.path.exists(name):
        try:
            lines = Path(name[1:]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8"
            raise ImageError(f"{name[1:]}: the list cannot be read ({why})") from None
        return [item for line in lines if line.strip() for item in _find(line.strip(), recursive, True)]
    if os.path.isdir(name):
        return [_Found(path, Path(name)) for path in find_images(name, recursive)]
    if not os.path.exists(name) and glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            raise ImageError(f"{name}: nothing matches this pattern")
        return [item for match in matches for item in _find(match, recursive)]
    return [_Found(Path(name), None)]


def _target(item: _Found, output: str | None, tag: str, form: str | None) -> Path:
    if output is None or not os.path.isdir(output) or item.folder is None:
        return output_path(item.source, tag, output, form)
    parent = item.source.relative_to(item.folder).parent
    return Path(output) / parent / output_path(item.source, tag, None, form).name


def _with_suffix(job: Job, tag: str) -> Path:
    stem, kind = job.source.stem, job.source.suffix.lstrip(".").lower()
    return job.output.with_name(f"{stem}_{kind}_{tag}{job.output.suffix}")


def output_path(
    source: str | os.PathLike[str],
    tag: str,
    output: str | os.PathLike[str] | None = None,
    form: str | None = None,
) -> Path:
    """Where the enlarged `source` goes: NAME_x2.png for the tag "x2", beside it or in the folder `output`.

    `output` is a folder if one is there or if it ends in a slash, otherwise the file to write. form: the extension
    without its dot ("png", "jpg", "webp", "tiff", "avif"), or "keep" for the source's own (AVIF for HEIF); None is
    PNG, or what the name in `output` says.
    Raises ImageError if that is the source itself, or if the ending of `output` is another format's.
    """
    source = Path(source)
    kept = (
        source.suffix if source.suffix.lower() in FORMATS else ".avif" if source.suffix.lower() in READABLE else ".png"
    )
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

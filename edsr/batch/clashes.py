"""No two jobs of a batch write one file: not under one name, nor through links, nor where case does not count."""

import os
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from edsr.errors import ImageError
from edsr.storage import Place, Url, identity

from .inputs import FailedInput


class Job(NamedTuple):
    """An image file and the file it is to become, each at a path or a URL. No two jobs of a batch have the same output.

    `source_label` and `output_label` are what people are shown in place of the paths, where these are temporary files
    that stand for something else, such as standard input.
    """

    source: Place
    output: Place
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


def resolve_clashes(jobs: Sequence[Job], tag: str, errors: list[FailedInput]) -> list[Job]:
    """The same jobs; those of one output with the kind of their source in its name.

    That may give a name of another's output, which then gets its own kind as well. Those that still have one output are
    left out, and appended to `errors`, all of them: whichever was written, somebody would take it for the other.
    """
    kinds: set[int] = set()  # numbers of jobs
    while True:
        chosen = [with_kind(job, tag) if i in kinds else job for i, job in enumerate(jobs)]
        groups = _by_place(chosen)
        more = {i for group in groups if len(group) > 1 for i in group} - kinds
        if not more:
            break
        kinds |= more
    clashing = {i: group for group in groups if len(group) > 1 for i in group}
    for i, group in clashing.items():
        other = jobs[next(k for k in group if k != i)]
        name, output = jobs[i].source_name, jobs[i].output
        message = f"{name}: {other.source_name} would become the same file, {output}; rename one of the two"
        errors.append(FailedInput(name, ImageError(message)))
    return [job for i, job in enumerate(chosen) if i not in clashing]


def with_kind(job: Job, tag: str) -> Job:
    """The job with the output a_jpg_x2.png for a.jpg, in the same folder."""
    stem, kind = job.source.stem, job.source.suffix.lstrip(".").lower()
    return job._replace(output=job.output.with_name(f"{stem}_{kind}_{tag}{job.output.suffix}"))


def _by_place(jobs: Sequence[Job]) -> list[list[int]]:
    """The numbers of the jobs, those that write one file together."""
    alike: dict[str, list[int]] = defaultdict(list)
    paths = [identity(job.output) for job in jobs]
    for i, path in enumerate(paths):
        alike[path if isinstance(jobs[i].output, Url) else unicodedata.normalize("NFC", path).casefold()].append(i)
    groups: dict[str, list[int]] = defaultdict(list)
    for folded, group in alike.items():
        differ = len({paths[i] for i in group}) > 1
        for i in group:
            groups[folded if differ and ignores_case(os.path.dirname(paths[i])) else paths[i]].append(i)
    return list(groups.values())


@cache
def ignores_case(folder: str) -> bool:
    """Whether "a" and "A" are one file in the folder, or, if it is yet to be made, in the one that it will lie in."""
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    try:
        with tempfile.NamedTemporaryFile(prefix=".edsr-", suffix="a.part", dir=folder) as file:
            path = Path(file.name)
            return path.with_name(path.name.swapcase()).exists()
    except OSError:
        return False

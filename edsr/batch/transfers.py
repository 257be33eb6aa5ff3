"""Jobs at URLs in local files: fetched before an image is read, stored when its result is whole."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from edsr.errors import ExistsError, ImageError
from edsr.images import READABLE
from edsr.storage import Url, exists_message, fetch, full_disk, is_taken, store
from edsr.system import temporary_folder

from .clashes import Job


class Files(NamedTuple):
    """The files that a job is done with: its own, or temporary ones in place of URLs."""

    source: Path
    output: Path


@contextlib.contextmanager
def local_files(job: Job, overwrite: bool, stopped: Callable[[], bool] = lambda: False) -> Iterator[Files]:
    """The job's source as a file, and a name for its output.

    If there is a file of that name when the block ends without an error, it is stored where the job says.

    Needs nothing but the job, so that it works in any process.

    Args:
        overwrite: Whether an object that is there may be replaced.
        stopped: Asked now and then, whether to give up.

    Raises:
        ExistsError: There is an output already.
        ImageError: One of the two cannot be transferred.
    """
    source, output = job.source, job.output
    if isinstance(source, Path) and isinstance(output, Path):
        yield Files(source, output)
        return
    # Looked at before anything is done; what appears later is noticed when the result is stored.
    if isinstance(output, Url) and not overwrite and is_taken(output):
        raise ExistsError(exists_message(output))
    with temporary_folder() as folder:
        if isinstance(source, Url):
            # Images are known by their content, but for a few kinds; and a name may hold anything.
            suffix = source.suffix.lower()
            local = folder / f"source{suffix if suffix in READABLE else ''}"
            fetch(source, local, stopped)
        else:
            local = source
        result = folder / f"result{output.suffix}" if isinstance(output, Url) else output
        try:
            yield Files(local, result)
        except ImageError as error:
            if isinstance(output, Url) and os.strerror(errno.ENOSPC) in str(error):
                raise full_disk(output) from None
            raise
        if isinstance(output, Url) and result.exists():
            store(result, output, overwrite, stopped)

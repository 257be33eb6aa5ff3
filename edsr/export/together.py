"""Files that appear together or not at all."""

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from edsr.errors import ExportError
from edsr.permissions import target_of
from edsr.system import atomic_file, remove_abandoned


def write_together(contents: Mapping[Path, bytes], sources: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Writes files of one folder; those that were there are replaced, or, if one cannot be written, all as before.

    Args:
        contents: What is written, by name. The last name appears last.
        sources: Files that they are made from; who may not read these may not read the new ones.

    Raises:
        ExportError: One cannot be written.
    """
    files = {target_of(path): data for path, data in contents.items()}
    sources, name = list(sources), next(iter(contents))
    remove_abandoned(name.parent)
    try:
        with TemporaryDirectory(prefix=".edsr-", suffix=".old", dir=name.parent) as folder:
            old = {path: Path(folder, str(i)) for i, path in enumerate(files) if path.exists()}
            for path, copy in old.items():
                _link(path, copy)
            try:
                with ExitStack() as stack:  # which gives the names in reverse order
                    for name, data in reversed(files.items()):
                        file = stack.enter_context(atomic_file(name, sources=sources))
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())  # now, so that a full disk is noticed before the first has its name
            except BaseException:
                for path in files:
                    if path in old:
                        os.replace(old[path], path)
                    else:
                        path.unlink(missing_ok=True)
                raise
    except OSError as problem:
        raise ExportError(f"{name}: cannot be written ({problem.strerror or problem})") from problem


def _link(path: Path, copy: Path) -> None:
    """Keeps a file by another name."""
    try:
        os.link(path, copy)
    except OSError:  # a file system without links
        shutil.copy2(path, copy)

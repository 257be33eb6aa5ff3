"""What long work reports of its progress, to whoever shows it; the command line draws bars (`edsr.cli.progress`)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class ImageProgress(Protocol):
    """The progress of one image."""

    def advance(self, rows: int) -> None:
        """So many more of its rows are done."""


class BatchProgress(Protocol):
    """The progress of a batch of files."""

    def file(self, name: str, width: int, height: int) -> AbstractContextManager[ImageProgress]:
        """The progress of one image of width x height pixels, for as long as it is worked on."""
        ...

    def done(self) -> None:
        """One file of the batch has ended, well or not."""


class Silent:
    """An `ImageProgress` and a `BatchProgress` that show nothing."""

    def advance(self, rows: int) -> None: ...

    @contextmanager
    def file(self, name: str, width: int, height: int) -> Iterator["Silent"]:
        yield self

    def done(self) -> None: ...

"""What long work tells of its progress, to whoever shows it; the command line shows bars."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class ImageProgress(Protocol):
    """An image being enlarged."""

    def advance(self, rows: int) -> None:
        """So many rows more are done."""


class BatchProgress(Protocol):
    """A batch of files."""

    def file(self, name: str, width: int, height: int) -> AbstractContextManager[ImageProgress]:
        """The progress of one image of width x height, for as long as it is worked on."""
        ...

    def done(self) -> None:
        """A file of the batch has ended, well or not."""


class Silent:
    """A Bar and Bars that show nothing."""

    def advance(self, rows: int) -> None: ...

    @contextmanager
    def file(self, name: str, width: int, height: int) -> Iterator["Silent"]:
        yield self

    def done(self) -> None: ...

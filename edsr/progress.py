"""What long work reports of its progress, to whoever shows it; the command line draws bars (`edsr.cli.progress`)."""

from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


def describe_seconds(seconds: float) -> str:
    """A duration for a person, in two units at most: "45 s", "12 min", "3 h 20 min", "2 days 5 h"."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    days, hours = divmod(round(minutes / 60), 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


class ImageProgress(Protocol):
    """The progress of one image."""

    def advance(self, rows: int) -> None:
        """So many more of its rows are done."""


class BatchProgress(Protocol):
    """The progress of a batch of files."""

    def file(
        self, name: str, width: int, height: int, source: Hashable = None
    ) -> AbstractContextManager[ImageProgress]:
        """The progress of one image of width x height pixels, for as long as it is worked on.

        Args:
            name: What people are shown.
            source: Which file of the batch it is, if there are several.
        """
        ...


class Silent:
    """An `ImageProgress` and a `BatchProgress` that show nothing."""

    def advance(self, rows: int) -> None: ...

    @contextmanager
    def file(self, name: str, width: int, height: int, source: Hashable = None) -> Iterator["Silent"]:
        yield self

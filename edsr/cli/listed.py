"""A batch whose images are found while it runs, on the command line: its jobs, and what is told of the others."""

import itertools
import queue
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .batch_report import Tally, report_inputs
from .console import print_line

if TYPE_CHECKING:
    from edsr.batch import FailedInput, Job, ListedJobs
    from edsr.devices import ProcessGroup


class Found:
    """The jobs of a listing, of which each of several processes takes every n-th.

    They may be asked for by any thread; `tell` is for the one that reports.
    """

    def __init__(self, listed: "ListedJobs", group: "ProcessGroup", options: Namespace, tally: Tally):
        self._listed, self._group, self._options, self._tally = listed, group, options, tally
        self._failed: queue.SimpleQueue[FailedInput] = queue.SimpleQueue()

    def __iter__(self) -> "Iterator[Job]":
        return itertools.islice(self._jobs(), self._group.rank, None, self._group.world_size)

    def _jobs(self) -> "Iterator[Job]":
        from edsr.batch import FailedInput

        for item in self._listed:
            if not isinstance(item, FailedInput):
                yield item
            elif self._group.is_main:
                self._failed.put(item)

    def tell(self) -> None:
        """Reports the names that nothing can be made of, of those found so far."""
        while not self._failed.empty():
            report_inputs([self._failed.get()], self._options, self._tally)

    def tell_rest(self) -> None:
        """Reports them, and what was left out, when the batch has ended."""
        from edsr.images import passed_over_kinds

        self.tell()
        listed = self._listed
        if not self._group.is_main:
            return
        self._tally.earlier, self._tally.others = listed.earlier, passed_over_kinds(listed.others) * bool(listed.others)
        if listed.closed and listed.found and not self._options.quiet:
            were = "prefix was" if listed.closed == 1 else "prefixes were"
            print_line(f"note: {listed.closed} {were} not entered; add --recursive to")

"""Which file goes to which worker, and what becomes of the files of one that is lost."""

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from edsr.batch import Job

DEATHS = 3
"""A file that was at work when so many workers died is left."""


@dataclass
class Task:
    """A file, how many workers have died over it, and whether one was lost that may have finished it."""

    job: Job
    deaths: int = 0
    again: bool = False


class Assignments:
    """Hands out the files of a batch, each when a worker has room for it: no more of them are known than are at work.

    A file that was at work when a worker died is tried again on a worker that has nothing else, so that it cannot be
    blamed for another, nor another for it.

    Args:
        jobs: The files. The next one is asked for when there is a worker for it.
    """

    def __init__(self, jobs: Iterator[Job]):
        self._jobs, self._exhausted = jobs, False
        self._again: deque[Task] = deque()
        self._at_work: dict[Hashable, list[Task]] = {}
        self._alone: set[Hashable] = set()  # workers that have a file which is tried again

    @property
    def finished(self) -> bool:
        """Whether nothing is left to hand out, and nothing at work."""
        return self._exhausted and not self._again and not any(self._at_work.values())

    def take(self, worker: Hashable, room: int) -> Task | None:
        """A file for a worker that works on at most `room` at a time; None if there is none for it now."""
        mine = self._at_work.setdefault(worker, [])
        if worker in self._alone or len(mine) >= room:
            return None
        if self._again:
            if mine:
                return None  # it becomes free of others soon
            task = self._again.popleft()
            self._alone.add(worker)
        elif (job := self._next()) is None:
            return None
        else:
            task = Task(job)
        mine.append(task)
        return task

    def _next(self) -> Job | None:
        job = None if self._exhausted else next(self._jobs, None)
        self._exhausted = job is None
        return job

    def done(self, worker: Hashable, task: Task) -> None:
        """A file has ended, well or not."""
        self._at_work[worker].remove(task)
        self._alone.discard(worker)

    def lost(self, worker: Hashable, blame: bool) -> list[Task]:
        """A worker has died. Its files go to others.

        Args:
            worker: Which.
            blame: Whether one of its files may have killed it; not if its whole machine was lost.

        Returns:
            Files that have killed DEATHS workers, and are given up.
        """
        tasks = self._at_work.pop(worker, [])
        self._alone.discard(worker)
        for task in tasks:
            task.deaths += blame
            task.again = True
        self._again += [task for task in tasks if task.deaths < DEATHS]
        return [task for task in tasks if task.deaths >= DEATHS]

    def at_work(self, worker: Hashable) -> list[Task]:
        """The files that a worker has."""
        return list(self._at_work.get(worker, ()))

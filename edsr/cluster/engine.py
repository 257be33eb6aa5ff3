"""A batch over the workers of a cluster: Ray's actors, each with one network, and the files that they are given."""

import contextlib
import logging
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from edsr import __version__
from edsr.batch import FileResult, Job, UpscalerPool, run_job
from edsr.errors import ClusterError, ImageError
from edsr.inference import MultiDeviceUpscaler, Upscaler
from edsr.progress import BatchProgress
from edsr.storage import Place
from edsr.system import remove_abandoned
from edsr.wording import named, option

from .assignments import DEATHS, Assignments, Task
from .setup import Setup
from .slabs import RemoteUpscaler
from .worker import STOPPED_WITHIN, Found, Worker

logger = logging.getLogger(__name__)

GROUP = 4
"""The most cores that a worker has by default: of more a small image makes little use."""
FILES_ON_GPU = 4
"""Files that a worker with a GPU has at a time; see `edsr.batch.runner.FILES_AT_ONCE`."""
LATE = 30.0
"""Seconds that the first workers wait for the others; whoever is later joins in. Also between lines about waiting."""
STARTS = 3
"""Times that a worker is started which dies before it has a file."""


class Crew(NamedTuple):
    """The workers that a cluster has room for: each with so many cores and GPUs, and `room` for so many files."""

    workers: int
    device: str
    cores: int
    gpus: int
    room: int

    @classmethod
    def of(cls, ray: Any, device: str, threads: int | None) -> "Crew":
        """The workers that the machines of the cluster have room for.

        Args:
            ray: As `connected` gives it.
            device: "auto" is one worker for each GPU if there are GPUs, otherwise for each group of cores; "cuda" or
                "cpu" insists.
            threads: Cores of a group; None: at most GROUP, and such that no machine has cores left over.

        Raises:
            ClusterError: There is no room for one.
        """
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(int(one.get("GPU", 0)) for one in resources)
        if device == "cuda" and not gpus:
            raise ClusterError(f"{option('device', 'cuda')}: the cluster has no GPU; use {option('device', 'cpu')}")
        if gpus and device != "cpu":
            return cls(gpus, "cuda", threads or 1, 1, FILES_ON_GPU)
        cores = [count for one in resources if (count := int(one.get("CPU", 0)))]
        shared = math.gcd(*cores)
        threads = threads or max((size for size in range(1, GROUP + 1) if shared % size == 0), default=1)
        if not (count := sum(one // threads for one in cores)):
            most = max(cores, default=0)
            raise ClusterError(
                f"no machine of the cluster has {threads} cores ({most} at most); lower {named('threads')}"
            )
        return cls(count, "cpu", threads, 0, 1)


@dataclass(eq=False)
class _Member:
    actor: Any
    found: Found


class ClusterBatch:
    """Runs a batch on a crew of workers, which end with the block.

    Args:
        ray: As `connected` gives it.
        setup: What the workers are told.
        crew: How many there are, and of which kind.
    """

    def __init__(self, ray: Any, setup: Setup, crew: Crew):
        self._ray, self._setup, self._crew = ray, setup, crew
        self._starting: dict[Any, _Member] = {}  # by the reference of what is awaited
        self._working: dict[Any, tuple[_Member, Task]] = {}
        self._ready: list[_Member] = []
        self._failed_starts = 0
        self._swept: set[Path] = set()  # folders that were freed of what killed batches left
        self._littered: set[Path] = set()  # those in which a lost worker may have left something

    def __enter__(self) -> "ClusterBatch":
        for _ in range(self._crew.workers):
            self._start()
        return self

    def __exit__(self, *_) -> None:
        members = [*self._ready, *self._starting.values()]
        with contextlib.suppress(Exception):  # whoever has died, has ended
            ending = [member.actor.stop.remote() for member in members]
            if self._working and ending:
                self._ray.wait(ending, num_returns=len(ending), timeout=STOPPED_WITHIN + 1)
        for member in members:
            with contextlib.suppress(Exception):
                self._ray.kill(member.actor)
        for folder in self._littered:
            remove_abandoned(folder)

    def _start(self) -> None:
        crew = self._crew
        more = {"num_cpus": crew.cores, "num_gpus": crew.gpus, "max_concurrency": crew.room + 1}  # and one that ends it
        actor = self._ray.remote(Worker).options(**more).remote(self._setup, __version__)
        self._starting[actor.prepare.remote()] = _Member(actor, Found("?", 0))

    def results(self, jobs: Iterator[Job], settle: bool) -> Generator[FileResult, None, None]:
        """A FileResult for each job, in the order in which they end. A job that fails does not end the others.

        Args:
            jobs: The next one is asked for when a worker has room for it.
            settle: Whether the names of the outputs are yet to be settled, see `edsr.batch.settle_name`.

        Raises:
            ClusterError: A worker would not give the same results, or there is none.
        """
        files = Assignments(jobs)
        self._gather()
        noted = time.monotonic()
        while True:
            self._hand_out(files, settle)
            if files.finished:
                return
            if self._ready:
                noted = time.monotonic()
            elif time.monotonic() - noted > LATE:
                noted = time.monotonic()
                logger.warning("no worker is left, waiting for one; ray status shows what the cluster has")
            for reference in self._wait():
                if reference in self._starting:
                    self._join(reference, begun=True)
                else:
                    yield from self._finish(reference, files)

    def shared(self, job: Job, progress: BatchProgress) -> FileResult:
        """What becomes of a single image, whose columns the workers share; it is read and written by this process.

        When a worker is lost the image is begun again on those that there are then, DEATHS times in all.

        Raises:
            ClusterError: As `results`.
        """
        pool = UpscalerPool(devices=[], **self._setup.network)  # which computes nothing
        self._sweep(job.output.parent)
        result = FileResult(job)
        for i in range(DEATHS):
            self._gather(begun=i > 0)
            if not self._ready:
                self._wait()  # which says what is wrong
            parts: list[tuple[RemoteUpscaler, _Member]] = []

            def get_upscaler(scale: int, model: str, parts=parts) -> MultiDeviceUpscaler:
                parts += [(RemoteUpscaler(self._ray, one.actor, scale, model), one) for one in self._ready]
                return MultiDeviceUpscaler(cast("list[Upscaler]", [part for part, _ in parts]))

            result = run_job(job, get_upscaler, pool, self._setup.options, progress)
            lost = [member for part, member in parts if part.lost]
            if result.error is None or not lost:
                return result
            for member in lost:
                logger.warning("worker on %s is lost; the image is begun again", member.found.machine)
                self._drop(member)
        why = f"workers were lost over it {DEATHS} times; look for a lack of memory ({result.error})"
        return FileResult(job, error=ImageError(f"{job.source}: {why}"))

    def _wait(self) -> list[Any]:
        awaited = [*self._working, *self._starting]
        if not awaited:
            raise ClusterError("no worker is left, and none can be started; ray status shows what the cluster has")
        return self._ray.wait(awaited, num_returns=1, timeout=1)[0]

    def _gather(self, begun: bool = False) -> None:
        """Waits until all workers are found to be right, or the first ones have waited for the others."""
        since = time.monotonic()
        while self._starting and not (self._ready and time.monotonic() - since > LATE):
            if not self._ready and time.monotonic() - since > LATE:
                since = time.monotonic()
                logger.warning("no worker has started yet, waiting; ray status shows what the cluster is busy with")
            for reference in self._wait():
                self._join(reference, begun)
                since = time.monotonic()

    def _join(self, reference: Any, begun: bool) -> None:
        """Takes in a worker that has looked at itself."""
        member = self._starting.pop(reference)
        try:
            member.found = self._ray.get(reference)
            problem = member.found.problem
        except self._ray.exceptions.RayError as error:
            problem = _missing_package(error)
            self._failed_starts += 1
            if not problem and self._failed_starts < STARTS * self._crew.workers:
                self._start()
                return
            problem = problem or f"died when it was started ({_first_line(error)})"
        if not problem:
            self._ready.append(member)
            return
        with contextlib.suppress(Exception):
            self._ray.kill(member.actor)
        line = f"worker on {member.found.machine}: {problem}" if member.found.process else f"a worker {problem}"
        if not begun:
            raise ClusterError(line)
        logger.warning("%s; the others go on", line)

    def _hand_out(self, files: Assignments, settle: bool) -> None:
        for _ in range(self._crew.room):  # one each, then another each
            for member in self._ready:
                if (task := files.take(member, self._crew.room)) is not None:
                    self._sweep(task.job.output.parent)
                    self._working[member.actor.upscale.remote(task.job, settle, task.again)] = member, task

    def _sweep(self, folder: Place) -> None:
        """Before the first file of a folder: later on others are writing there."""
        if isinstance(folder, Path) and folder not in self._swept:
            self._swept.add(folder)
            remove_abandoned(folder)

    def _finish(self, reference: Any, files: Assignments) -> Iterator[FileResult]:
        if reference not in self._working:
            return  # of a worker that was lost
        member, task = self._working.pop(reference)
        errors = self._ray.exceptions
        try:
            result: FileResult = self._ray.get(reference)
        except (
            errors.RayActorError,
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
        ):
            yield from self._replace(member, files)
        except errors.RayError as error:
            files.done(member, task)
            yield FileResult(task.job, error=RuntimeError(_first_line(error)))
        else:
            files.done(member, task)
            yield result

    def _replace(self, member: _Member, files: Assignments) -> Iterator[FileResult]:
        """Another worker for one that was lost; files that are given up."""
        logger.warning("worker on %s is lost; its files go to others", member.found.machine)
        self._working = {ref: pair for ref, pair in self._working.items() if pair[0] is not member}
        folders = (task.job.output.parent for task in files.at_work(member))
        self._littered |= {folder for folder in folders if isinstance(folder, Path)}
        self._drop(member)
        for task in files.lost(member, blame=self._is_up(member.found.machine)):
            why = f"{DEATHS} workers died over it; look for damage or a lack of memory"
            yield FileResult(task.job, error=ImageError(f"{task.job.source}: {why}"))

    def _drop(self, member: _Member) -> None:
        """Starts another worker for one that was lost."""
        self._ready.remove(member)
        with contextlib.suppress(Exception):  # of a connection that was lost, which may come back
            self._ray.kill(member.actor)
        self._start()

    def _is_up(self, machine: str) -> bool:
        return any(node["Alive"] and node["NodeManagerHostname"] == machine for node in self._ray.nodes())


def _missing_package(error: Exception) -> str:
    """What is wrong if this package is not there; "" if it is something else."""
    text = str(error)
    if "No module named 'edsr" in text or "No module named \\'edsr" in text or "cannot import name" in text:
        return f"lacks this package; pip install edsr-triton=={__version__} on every machine"
    if "No module named" in text:
        name = text.partition("No module named ")[2].split()[0].strip("'\\\"")
        return f"lacks {name}; pip install edsr-triton=={__version__} on every machine"
    return ""


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""A worker: one process with one network on one GPU or group of cores, which upscales a file at a time, or a few."""

import contextlib
import dataclasses
import filecmp
import os
import pickle
import socket
import threading
import time
from typing import NamedTuple

import numpy as np
import torch

from edsr import __version__
from edsr.batch import FileResult, Job, run_job, settle_name
from edsr.errors import ClusterError, EDSRError, ExistsError
from edsr.inference import ExecutionPlan
from edsr.progress import Silent
from edsr.storage import Place, Url, check_store, fetch, size_of
from edsr.system import remove_unfinished, temporary_folder, why_unwritable
from edsr.wording import for_command_line, option

from .setup import Setup, fingerprint
from .slabs import Slab

SEEN_WITHIN = 10.0
"""Seconds in which a new file is seen by all machines of a shared file system, which remember what was not there."""
STOPPED_WITHIN = 2.0
"""Seconds that files at work are given to end when the batch is interrupted."""


class Found(NamedTuple):
    """What a worker has found out about itself. problem: why it must not work, "" if it may."""

    machine: str
    process: int
    problem: str = ""


class Worker:
    """Upscales files by `edsr.batch.run_job`, as one machine does, so that results are the same to the byte.

    Its methods are called from several threads.
    """

    def __init__(self, setup: Setup, version: str):
        self._setup, self._version, self._stopped = setup, version, threading.Event()
        self._stack, self._lock, self._at_work = contextlib.ExitStack(), threading.Lock(), 0
        self._slab: Slab | None = None
        if setup.on_command_line:
            self._stack.enter_context(for_command_line())

    def prepare(self) -> Found:
        """Looks whether this worker would give the same results as all others, then makes its network ready."""
        problem = ""
        try:
            self._check()
        except EDSRError as error:
            problem = str(error)
        return Found(socket.gethostname(), os.getpid(), problem)

    def _check(self) -> None:
        setup = self._setup
        if self._version != __version__:
            here = f"edsr-triton {__version__} there, {self._version} here"
            raise ClusterError(f"{here}; install the same version on every machine")
        for name, value in setup.environment.items():
            os.environ.setdefault(name, value)
        with contextlib.suppress(OSError):  # by whole names it goes without
            os.chdir(setup.folder)
        if setup.sample is not None:
            path, size = setup.sample
            check_seen(path, f"{path.parent}: the inputs are not seen there", size)
        if isinstance(setup.output, Url):
            check_store(setup.output)
        elif setup.probe is not None:
            check_seen(setup.probe, f"{setup.output}: the output folder here is not the one there")
            if why := why_unwritable(setup.output):
                raise ClusterError(f"{setup.output}: cannot be written there ({why}); choose another -o")
        torch.set_num_threads(setup.threads)
        network = setup.network
        if fingerprint(network["model"], network["scale"], network["residual_scale"]) != setup.fingerprint:
            model = option("model", network["model"])
            raise ClusterError(f"{model}: other weights there than here; copy the same file to every machine")
        self._pool = setup.pool()

    def upscale(self, job: Job, settle: bool, again: bool = False) -> FileResult:
        """What becomes of a job.

        Args:
            job: An image.
            settle: Whether its output's name is yet to be settled.
            again: Whether a worker that was lost had it, so that its result may be there: a file of the same bytes is
                taken for that.
        """
        with self._lock:
            self._at_work += 1
        try:
            if settle:
                try:
                    job = settle_name(job, self._setup.tag)
                except EDSRError as error:
                    return FileResult(job, error=error)

            result = self._run(job)
            if again and isinstance(result.error, ExistsError):
                result = self._recognize(job) or result
            return portable(result)
        finally:
            with self._lock:
                self._at_work -= 1

    def _run(self, job: Job) -> FileResult:
        def get_upscaler(scale: int, model: str):
            return self._pool.upscaler(0, scale, model)

        return run_job(job, get_upscaler, self._pool, self._setup.options, Silent(), self._stopped.is_set)

    def _recognize(self, job: Job) -> FileResult | None:
        """The result of a job if it is what lies under its output's name, to the byte; None if something else does."""
        try:
            with temporary_folder() as folder:
                result = self._run(job._replace(output=folder / f"result{job.output.suffix}"))
                if result.error is not None or result.files is None:
                    return None
                there = job.output
                if isinstance(there, Url):
                    fetch(there, folder / "there", self._stopped.is_set)
                    there = folder / "there"
                same = filecmp.cmp(there, result.files.output, shallow=False)
        except (EDSRError, OSError):
            return None
        return dataclasses.replace(result, job=job) if same else None

    def plan(self, scale: int, model: str) -> ExecutionPlan:
        """How a network is executed here."""
        return self._pool.upscaler(0, scale, model).plan

    def begin(self, scale: int, model: str, width: int, self_ensemble: bool, filled: bool) -> None:
        """Begins some columns of an image; those before are given up. filled: see `Upscaler.bands_of_filled`."""
        upscaler = self._pool.upscaler(0, scale, model)
        if self._slab is not None:
            self._slab.close()
        bands = upscaler.bands_of_filled if filled else upscaler.bands
        self._slab = Slab(lambda rows: bands(rows, width, self_ensemble))

    def advance(self, rows: np.ndarray | None) -> list[np.ndarray]:
        """See `Slab.advance`."""
        assert self._slab is not None, "nothing has begun"
        return self._slab.advance(rows)

    def stop(self) -> None:
        """Ends the process, after what is at work was broken off; nothing half-written is left."""
        self._stopped.set()
        deadline = time.monotonic() + STOPPED_WITHIN
        while self._at_work and time.monotonic() < deadline:
            time.sleep(0.02)
        remove_unfinished()
        os._exit(0)


def check_seen(path: Place, problem: str, size: int | None = None, within: float = SEEN_WITHIN) -> None:
    """Raises ClusterError unless a file of another machine is seen here soon, with that size."""
    if isinstance(path, Url):
        if size_of(path) != size:
            raise ClusterError(f"{problem}; give every machine the same access")
        return
    deadline = time.monotonic() + within
    while True:
        with contextlib.suppress(OSError):
            if size is None or os.stat(path).st_size == size:
                os.stat(path)
                return
        if time.monotonic() > deadline:
            raise ClusterError(f"{problem}; mount the same folder under this name on every machine")
        time.sleep(0.1)


def portable(result: FileResult) -> FileResult:
    """The result as it can be sent: an error that cannot be is replaced by what it says."""
    try:
        pickle.loads(pickle.dumps(result.error))
    except Exception:
        return dataclasses.replace(result, error=RuntimeError(repr(result.error)))
    return result

"""Upscales image files: one, or a batch over one device or several."""

import contextlib
import dataclasses
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edsr.errors import ImageError
from edsr.images import (
    UNIT,
    Holes,
    ImageReader,
    ImageWriter,
    ReadLimits,
    TargetSize,
    ValueRange,
    check_memory,
    to_float,
)
from edsr.inference import MultiDeviceUpscaler, Prefetcher, Upscaler
from edsr.progress import BatchProgress
from edsr.storage import Place, Url, size_of
from edsr.system import remove_abandoned
from edsr.wording import named

from .clashes import Job
from .existing import is_finished
from .jobs import OutputSize, scale_and_size
from .pool import UpscalerPool
from .transfers import Files, local_files

logger = logging.getLogger(__name__)

FILES_AT_ONCE = {"cuda": 4, "mps": 1, "cpu": 1}
"""Files of a batch that are worked on at a time, for a device. A GPU computes one band after the other all the same,
but one file's PNG takes longer to encode than to compute. The number has not been measured on a GPU."""
TRANSFERRED = 2
"""Files that are fetched or stored meanwhile, for a device, where images or results are at URLs."""


GetUpscaler = Callable[[int, str], Upscaler | MultiDeviceUpscaler]
"""Gives the Upscaler of a scale and a model."""


@dataclass(frozen=True)
class UpscaleOptions:
    """What is wanted of every image.

    Args:
        size: Of the results.
        linear: Reduce to that size in linear light.
        quality: See `ImageWriter`.
        self_ensemble: See `Upscaler.bands`.
        overwrite: Replace existing outputs.
        skip_existing: Leave finished outputs as they are (see `edsr.batch.existing`), but remove the temporary files of
            a batch that was killed.
        salvage: Give what is left of damaged images, see `ImageReader`.
        keep: Keep each image's kind of compression, where its output is of its format.
        make_folders: Make the folder of an output where there is none.
        value_range: The values of black and white in files of floating-point samples.
        unlimited: Believe an image's size, however few bytes its file has.
    """

    size: OutputSize = field(default_factory=OutputSize)
    linear: bool = False
    quality: int | None = None
    self_ensemble: bool = False
    overwrite: bool = False
    skip_existing: bool = False
    make_folders: bool = False
    salvage: bool = False
    keep: bool = False
    value_range: ValueRange = UNIT
    unlimited: bool = False


@dataclass
class FileResult:
    """What became of a job.

    files: those that it was done with. error: why there is no output. skipped: the output existed before. warnings: a
    line for each thing that the output does not hold though the image did. input_size, output_size: (width, height).
    model: what people are told of the network. device, precision, backend: those that computed. memory_bytes: what it
    would take, of a `Forecast`.
    """

    job: Job
    files: Files | None = None
    error: Exception | None = None
    skipped: bool = False
    warnings: tuple[str, ...] = ()
    input_size: tuple[int, int] | None = None
    output_size: tuple[int, int] | None = None
    seconds: float | None = None
    model: str | None = None
    device: str | None = None
    precision: str | None = None
    backend: str | None = None
    memory_bytes: int | None = None

    @property
    def speed(self) -> float | None:
        """Megapixels of input per second."""
        if self.seconds is None or self.input_size is None:
            return None
        return self.input_size[0] * self.input_size[1] / 1e6 / self.seconds


def upscale_files(
    jobs: Iterable[Job], pool: UpscalerPool, options: UpscaleOptions, progress: BatchProgress
) -> Iterator[FileResult]:
    """A FileResult for each job, in the order in which they end. A job that fails does not end the others.

    Jobs that are no sequence are asked for one by one, when there is a thread for them; by several, but one at a time.

    Several devices share the jobs, or, where there are fewer jobs than devices, the columns of each image.
    When the generator is closed, or a KeyboardInterrupt comes, unfinished outputs are gone when it has ended.
    """
    jobs = _cleared(jobs)
    at_once = FILES_AT_ONCE[pool.upscaler(0, pool.scale).device.type]
    turns = [threading.Semaphore(at_once) for _ in range(len(pool))]
    if not isinstance(jobs, Sequence) or any(isinstance(place, Url) for job in jobs for place in job[:2]):
        at_once += TRANSFERRED
    workers = len(pool) * at_once
    if isinstance(jobs, Sequence):
        workers = min(len(jobs), workers)
    if isinstance(jobs, Sequence) and (workers <= 1 or len(jobs) < len(pool)):
        for job in jobs:
            yield run_job(job, pool.on_all_devices, pool, options, progress)
        return
    waiting, results, closed = iter(jobs), queue.SimpleQueue[FileResult | None](), threading.Event()
    lock, failed = threading.Lock(), list[Exception]()

    def work(device: int) -> None:
        def get_upscaler(scale: int, model: str) -> Upscaler:
            return pool.upscaler(device, scale, model)

        try:
            while not closed.is_set():
                with lock:
                    try:
                        job = next(waiting, None)
                    except Exception as error:
                        failed.append(error)
                        break
                if job is None:
                    break
                results.put(run_job(job, get_upscaler, pool, options, progress, closed.is_set, turns[device]))
        finally:
            results.put(None)

    threads = [threading.Thread(target=work, args=(i % len(pool),)) for i in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while workers:
            with contextlib.suppress(queue.Empty):  # with a timeout, because Windows sees Ctrl-C between calls only
                if (result := results.get(timeout=1)) is None:
                    workers -= 1
                else:
                    yield result
        if failed:  # nothing that `jobs` foresees
            raise failed[0]
    finally:
        closed.set()
        for thread in threads:
            thread.join()


def _cleared(jobs: Iterable[Job]) -> Iterable[Job]:
    """The jobs; what killed batches have left in the folders of the results is removed, before anything is written."""
    if not isinstance(jobs, Sequence):
        return _cleared_meanwhile(jobs)
    for folder in {job.output.parent for job in jobs if isinstance(job.output, Path)}:
        remove_abandoned(folder)
    return jobs


def _cleared_meanwhile(jobs: Iterable[Job]) -> Iterator[Job]:
    seen: set[Path] = set()
    for job in jobs:
        if isinstance(job.output, Path) and job.output.parent not in seen:
            seen.add(job.output.parent)
            remove_abandoned(job.output.parent)
        yield job


def run_job(
    job: Job,
    get_upscaler: GetUpscaler,
    pool: UpscalerPool,
    options: UpscaleOptions,
    progress: BatchProgress,
    stopped: Callable[[], bool] = lambda: False,
    turn: contextlib.AbstractContextManager = contextlib.nullcontext(),  # noqa: B008 - has no state
) -> FileResult:
    """What becomes of one job. Needs no other, and no more than is given here.

    Args:
        get_upscaler: Gives the networks of `pool`, on a device of it or on all.
        options, progress: As `upscale_files` takes them.
        stopped: Asked now and then, whether to give up.
        turn: In which the image is computed; it is fetched before, and its result stored afterwards.
    """
    result = FileResult(job)
    try:
        wanted, again = settle_existing(result, pool, options)
        if wanted is not None:
            with local_files(job, wanted.overwrite, stopped) as result.files, turn:
                _upscale(result, result.files, get_upscaler, pool, wanted, progress, stopped)
            result.warnings += again
    except Exception as error:
        result.error = error
    return result


def settle_existing(
    result: FileResult, pool: UpscalerPool, options: UpscaleOptions
) -> tuple[UpscaleOptions | None, tuple[str, ...]]:
    """What is wanted of a job whose output may be there: None if it is skipped; and what is to be said of it then.

    Raises:
        ImageError: What is there is to be kept.
    """
    job = result.job
    if not options.skip_existing:
        return options, ()
    if isinstance(job.output, Url):  # where nothing unfinished has a name
        size = size_of(job.output)
        there, done = size is not None, bool(size)
    else:
        there = os.path.lexists(job.output)
        done = there and _is_done(job.source, job.output, pool, options)
    if not there:
        return options, ()
    if done:
        result.skipped = True
        return None, ()
    again = () if options.overwrite else (f"done again, as {job.output_name} was no finished image",)
    return dataclasses.replace(options, overwrite=True), again


def _is_done(source: Place, output: Path, pool: UpscalerPool, options: UpscaleOptions) -> bool:
    """Whether the output is there, as large as it should be, or, for an image at a URL, which would have to be fetched,
    of any size. Raises ImageError if it is something to be kept."""
    size = None
    if isinstance(source, Path):
        # The result of an image that cannot be read any more is a result, too.
        with contextlib.suppress(ImageError), ImageReader(source, full=True) as reader:
            _, size = scale_and_size(source, reader.width, reader.height, pool.scale, pool.scales, options.size)
    try:
        return is_finished(output, size)
    except ImageError:
        if options.overwrite and not os.path.isdir(output):
            return False
        raise


class _Stopped(Exception):
    """Somebody has interrupted the batch."""


class OpenedJob(NamedTuple):
    """A job before anything is computed: what can be known to fail has not failed."""

    reader: ImageReader
    writer: ImageWriter  # whose context is not entered yet
    upscaler: Upscaler | MultiDeviceUpscaler
    scale: int
    reduced: bool  # to another size than the network's


@contextlib.contextmanager
def open_job(
    result: FileResult,
    files: Files,
    get_upscaler: GetUpscaler,
    pool: UpscalerPool,
    options: UpscaleOptions,
    new_folder: bool = False,
) -> Iterator[OpenedJob]:
    """Opens a job's image, chooses its network, and checks its output; fills in what of the `result` is known by then.

    Args:
        result: Of the job. If the block fails, it has all the same what was found until then.
        files: Those that it is done with.
        get_upscaler: Gives the network.
        pool: Chooses it.
        options: What is wanted.
        new_folder: Whether the output's folder may be yet to be made.

    Raises:
        ImageError: The image or the output will not do, or memory does not suffice.
    """
    source, output = files
    # What must pass through a temporary file does so on the output's disk.
    folder = output.parent if output.parent.is_dir() else None
    limits = ReadLimits(pixels_per_byte=math.inf) if options.unlimited else ReadLimits()
    with (
        ImageReader(
            source, full=True, folder=folder, limits=limits, salvage=options.salvage, value_range=options.value_range
        ) as reader,
        _noted(result, reader),
    ):
        width, height = reader.width, reader.height
        scale, target = scale_and_size(source, width, height, pool.scale, pool.scales, options.size)
        model, result.model = pool.choose(source, scale)
        upscaler = get_upscaler(scale, model)
        result.device, result.precision, result.backend = str(upscaler.device), upscaler.precision, upscaler.backend
        result.input_size, result.output_size = (width, height), target
        state = upscaler.state_bytes(width, height, reader.channels, options.self_ensemble)
        check_memory(source, state, "cut the image into narrower ones")
        reduced = target != (scale * width, scale * height)
        writer = ImageWriter(
            output,
            scale * width,
            scale * height,
            reader.channels,
            like=reader,
            overwrite=options.overwrite,
            quality=options.quality,
            keep=options.keep,
            dtype=np.float32 if reduced else reader.dtype,
            reduced=TargetSize(*target, reader.dtype, options.linear) if reduced else None,
            value_range=None if reduced else UNIT,
            new_folder=new_folder,
        )
        result.warnings = reader.warnings + writer.warnings + pool.notes(model)
        yield OpenedJob(reader, writer, upscaler, scale, reduced)
        # With what was found on the way.
        result.warnings = reader.warnings + writer.warnings + pool.notes(model)


def _upscale(
    result: FileResult,
    files: Files,
    get_upscaler: GetUpscaler,
    pool: UpscalerPool,
    options: UpscaleOptions,
    progress: BatchProgress,
    stopped: Callable[[], bool],
) -> None:
    """One image from file to file; fills in the `result`."""
    start = time.perf_counter()
    job = result.job
    if stopped():  # while others had their turn
        raise _Stopped
    if options.make_folders:
        files.output.parent.mkdir(parents=True, exist_ok=True)
    with open_job(result, files, get_upscaler, pool, options) as (reader, opened, upscaler, scale, reduced):
        width, height, holes = reader.width, reader.height, Holes(reader.nodata)
        black = reader.dtype == np.float32 and opened.stored_dtype != np.float32
        with (
            opened as writer,
            progress.file(job.source_label or job.source.name, width, height, job.source) as bar,
            Prefetcher(
                holes.fill(reader.to_unit(_mark(holes, reader, upscaler.band_rows(width, height), not reduced)))
            ) as rows,
            contextlib.closing(
                upscaler.bands(map(to_float, rows) if reduced else rows, width, options.self_ensemble)
            ) as bands,
        ):
            own_range = UNIT if reduced or black else reader.value_range  # before what has no data is put back
            for band in holes.put_back(map(own_range.from_unit, bands), scale, 0 if black else None):
                if stopped():
                    raise _Stopped
                writer.write(band)
                bar.advance(len(band) // scale)
    if black and holes.count:
        result.warnings += (f"{holes.count:,} pixels without data (nodata, NaN or infinite) are written as black",)
    result.seconds = time.perf_counter() - start


@contextlib.contextmanager
def _noted(result: FileResult, reader: ImageReader) -> Iterator[None]:
    """If the block fails, the result has all the same what was found in the image; not what was to become of it."""
    try:
        yield
    except BaseException:
        result.warnings = reader.warnings
        raise


def _mark(holes: Holes, reader: ImageReader, count: int, keep_size: bool) -> Iterator[np.ndarray]:
    """The image's rows, samples without data marked. Raises ImageError if there are any that would be averaged."""
    for rows in holes.mark(reader.rows(count, with_holes=True)):
        if holes.count and not keep_size:
            why = "holds samples without data (nodata, NaN or infinite), which cannot be averaged with others"
            raise ImageError(f"{reader.path}: {why}; ask for a whole {named('scale')}, or fill them first")
        yield rows

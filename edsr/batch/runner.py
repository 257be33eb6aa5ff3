"""Upscales image files: one, or a batch over one device or several."""

import contextlib
import dataclasses
import logging
import math
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edsr.errors import ImageError, WeightsError
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
from edsr.models import EDSR
from edsr.progress import BatchProgress
from edsr.system import remove_abandoned
from edsr.weights import AUTO, FAITHFUL, Choice, available_scales, choose_by_file, load_with_notes

from .clashes import Job
from .existing import is_finished
from .jobs import OutputSize, scale_and_size

logger = logging.getLogger(__name__)

FILES_AT_ONCE = {"cuda": 4, "mps": 1, "cpu": 1}
"""Files of a batch that are worked on at a time, for a device. A GPU computes one band after the other all the same,
but one file's PNG takes longer to encode than to compute. The number has not been measured on a GPU."""


MIXTURES = 4
"""Mixtures that are kept ready; each holds weights, on a GPU also CUDA graphs. See `UpscalerPool`."""


class UpscalerPool:
    """Upscalers of one network, or of those that `edsr.weights.selection` chooses, at several scales and on several
    devices; each is made when it is first needed. Safe to use from several threads.

    Of the networks that "auto" chooses, the last MIXTURES used stay ready.

    Args:
        model: As `load_model` takes it, or "auto".
        scale: The only one to be used, or None for any that the network has; the smallest of at least `expected_scale`
            is loaded at once.
        devices: Each as `Upscaler` takes it; further options are those of `Upscaler`.
        description: What people are told of the network, by default its name.
        residual_scale: As `load_model` takes it.

    Raises:
        BackendError, WeightsError: One of these cannot be had.
    """

    def __init__(
        self,
        model: str,
        scale: int | None,
        devices: Sequence[str],
        precision: str = "auto",
        backend: str = "auto",
        tile: int | str = "auto",
        expected_scale: float = 0,
        description: str | None = None,
        residual_scale: float | None = None,
    ):
        self._auto = model == AUTO
        self._default = Choice(FAITHFUL if self._auto else model, description or model)
        self._options, self._devices = (precision, backend, tile), devices
        self._lock = threading.Lock()
        # A device computes one band at a time, whichever network's: together they need no more memory than one.
        self._compute_locks = [threading.Lock() for _ in devices]
        self._loaded: OrderedDict[tuple[str, int], tuple[EDSR, dict[int, Upscaler]]] = OrderedDict()
        try:
            known = available_scales(model) if scale is None else ()
        except ValueError as error:
            raise WeightsError(f"{model}: {error}") from None
        self._residual_scale = residual_scale
        self._notes: dict[str, tuple[str, ...]] = {}
        first = self._load(self._default.model, scale or next((s for s in known if s >= expected_scale), None))
        self.scale: int = first.config.scale  # where an image asks for none
        self.scales: tuple[int, ...] = known or (self.scale,)
        self._loaded[self._default.model, self.scale] = first, {}
        for i in range(len(devices)):
            self.upscaler(i, self.scale)

    def __len__(self) -> int:
        """How many devices there are."""
        return len(self._devices)

    @property
    def loaded(self) -> list[tuple[str, int]]:
        """(model, scale) of the networks that are ready; the one used last at the end."""
        with self._lock:
            return list(self._loaded)

    def _load(self, model: str, scale: int | None) -> EDSR:
        network, notes = load_with_notes(model, scale, self._residual_scale)
        self._notes[model] = tuple(f"{model}: {note}" for note in notes)
        return network

    def notes(self, model: str) -> tuple[str, ...]:
        """What was assumed of a network that is loaded, in lines."""
        return self._notes.get(model, ())

    def choose(self, source: Path, scale: int) -> Choice:
        """The network for an image, at one of `scales`."""
        return choose_by_file(source, scale) if self._auto else self._default

    def upscaler(self, device: int, scale: int, model: str | None = None) -> Upscaler:
        """The network of that scale on device number `device`. model: one that `choose` gave; None: the usual one."""
        with self._lock:
            key = model or self._default.model, scale
            if key not in self._loaded:
                chosen = [old for old in self._loaded if old[0] != self._default.model]
                if key[0] != self._default.model and len(chosen) == MIXTURES:
                    del self._loaded[chosen[0]]  # whoever still uses it keeps it until done
                self._loaded[key] = self._load(*key), {}
            self._loaded.move_to_end(key)
            network, ready = self._loaded[key]
            if device not in ready:
                lock = self._compute_locks[device]
                upscaler = Upscaler(network, self._devices[device], *self._options, name=key[0], compute_lock=lock)
                upscaler.warm_up()
                ready[device] = upscaler
            return ready[device]

    def on_all_devices(self, scale: int, model: str | None = None) -> Upscaler | MultiDeviceUpscaler:
        """The network of that scale on all devices together, which share an image's columns. model: see `upscaler`."""
        upscalers = [self.upscaler(i, scale, model) for i in range(len(self))]
        return upscalers[0] if len(upscalers) == 1 else MultiDeviceUpscaler(upscalers)


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

    error: why there is no output. skipped: the output existed before. warnings: a line for each thing that the output
    does not hold though the image did. input_size, output_size: (width, height). model: what people are told of the
    network. device, precision, backend: those that computed.
    """

    job: Job
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

    @property
    def speed(self) -> float | None:
        """Megapixels of input per second."""
        if self.seconds is None or self.input_size is None:
            return None
        return self.input_size[0] * self.input_size[1] / 1e6 / self.seconds


def upscale_files(
    jobs: Sequence[Job], pool: UpscalerPool, options: UpscaleOptions, progress: BatchProgress
) -> Iterator[FileResult]:
    """A FileResult for each job, in the order in which they end. A job that fails does not end the others.

    Several devices share the jobs, or, where there are fewer jobs than devices, the columns of each image.
    When the generator is closed, or a KeyboardInterrupt comes, unfinished outputs are gone when it has ended.
    """
    for folder in {job.output.parent for job in jobs}:
        remove_abandoned(folder)
    device = pool.upscaler(0, pool.scale).device.type
    workers = min(len(jobs), len(pool) * FILES_AT_ONCE[device])
    if workers <= 1 or len(jobs) < len(pool):
        for job in jobs:
            yield _run_job(job, pool.on_all_devices, pool, options, progress, lambda: False)
        return
    waiting, results, closed = iter(jobs), queue.SimpleQueue[FileResult | None](), threading.Event()
    lock = threading.Lock()

    def work(device: int) -> None:
        def get_upscaler(scale: int, model: str) -> Upscaler:
            return pool.upscaler(device, scale, model)

        try:
            while not closed.is_set():
                with lock:
                    job = next(waiting, None)
                if job is None:
                    break
                results.put(_run_job(job, get_upscaler, pool, options, progress, closed.is_set))
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
    finally:
        closed.set()
        for thread in threads:
            thread.join()


def _run_job(
    job: Job,
    get_upscaler: GetUpscaler,
    pool: UpscalerPool,
    options: UpscaleOptions,
    progress: BatchProgress,
    stopped: Callable[[], bool],
) -> FileResult:
    result = FileResult(job)
    again: tuple[str, ...] = ()
    try:
        if options.skip_existing and os.path.lexists(job.output):
            if _is_done(job, pool, options):
                result.skipped = True
                return result
            overwrite, options = options.overwrite, dataclasses.replace(options, overwrite=True)
            if not overwrite:
                again = (f"done again, as {job.output_name} was no finished image",)
        _upscale(result, get_upscaler, pool, options, progress, stopped)
        result.warnings += again
    except Exception as error:
        result.error = error
    return result


def _is_done(job: Job, pool: UpscalerPool, options: UpscaleOptions) -> bool:
    """Whether the output is there, as large as it should be. Raises ImageError if it is something to be kept."""
    size = None
    # The result of an image that cannot be read any more is a result, too.
    with contextlib.suppress(ImageError), ImageReader(job.source, full=True) as reader:
        _, size = scale_and_size(job.source, reader.width, reader.height, pool.scale, pool.scales, options.size)
    try:
        return is_finished(job.output, size)
    except ImageError:
        if options.overwrite and not os.path.isdir(job.output):
            return False
        raise


class _Stopped(Exception):
    """Somebody has interrupted the batch."""


def _upscale(
    result: FileResult,
    get_upscaler: GetUpscaler,
    pool: UpscalerPool,
    options: UpscaleOptions,
    progress: BatchProgress,
    stopped: Callable[[], bool],
) -> None:
    """One image from file to file; fills in the `result`."""
    start = time.perf_counter()
    source, output = result.job.source, result.job.output
    if options.make_folders:
        output.parent.mkdir(parents=True, exist_ok=True)
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
        reduced, holes = target != (scale * width, scale * height), Holes(reader.nodata)
        with (
            ImageWriter(
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
            ) as writer,
            progress.file(result.job.source_label or source.name, width, height, source) as bar,
            Prefetcher(
                holes.fill(reader.to_unit(_mark(holes, reader, upscaler.band_rows(width, height), not reduced)))
            ) as rows,
            contextlib.closing(
                upscaler.bands(map(to_float, rows) if reduced else rows, width, options.self_ensemble)
            ) as bands,
        ):
            result.warnings = reader.warnings + writer.warnings + pool.notes(model)
            black = reader.dtype == np.float32 and writer.stored_dtype != np.float32
            own_range = UNIT if reduced or black else reader.value_range  # before what has no data is put back
            for band in holes.put_back(map(own_range.from_unit, bands), scale, 0 if black else None):
                if stopped():
                    raise _Stopped
                writer.write(band)
                bar.advance(len(band) // scale)
        result.warnings = reader.warnings + writer.warnings + pool.notes(model)  # with what was found on the way
        if black and holes.count:
            result.warnings += (f"{holes.count:,} pixels without data (nodata, NaN or infinite) are written as black",)
    result.seconds = time.perf_counter() - start


@contextlib.contextmanager
def _noted(result: FileResult, reader: ImageReader) -> Iterator[None]:
    """If the block fails, the result has all the same what was found until then."""
    try:
        yield
    except BaseException:
        result.warnings = tuple(dict.fromkeys((*reader.warnings, *result.warnings)))
        raise


def _mark(holes: Holes, reader: ImageReader, count: int, keep_size: bool) -> Iterator[np.ndarray]:
    """The image's rows, samples without data marked. Raises ImageError if there are any that would be averaged."""
    for rows in holes.mark(reader.rows(count, with_holes=True)):
        if holes.count and not keep_size:
            why = "holds samples without data (nodata, NaN or infinite), which cannot be averaged with others"
            raise ImageError(f"{reader.path}: {why}; ask for a whole --scale, or fill them first")
        yield rows

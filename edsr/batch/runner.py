"""Image files made larger: one, or a batch over one device or several."""

import contextlib
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edsr.errors import ImageError, WeightsError
from edsr.images import ImageReader, ImageWriter, TargetSize, to_float
from edsr.inference import MultiDeviceUpscaler, Prefetcher, Upscaler
from edsr.models import EDSR
from edsr.progress import BatchProgress
from edsr.system import remove_abandoned
from edsr.weights import AUTO, FAITHFUL, Choice, available_scales, choose_by_file, load_model

from .jobs import Job
from .sizes import OutputSize, scale_for

FILES_AT_ONCE = {"cuda": 4, "mps": 1, "cpu": 1}
"""Files of a batch that are worked on at a time, for a device. A GPU computes one band after the other all the same,
but one file's PNG takes longer to encode than to compute. The number has not been measured on a GPU."""


MIXTURES = 4
"""Mixtures that are kept ready; each holds weights, on a GPU also CUDA graphs. See `UpscalerPool`."""


class UpscalerPool:
    """One network at the scales it has, on some devices, or what `edsr.weights.selection` chooses: Upscalers, made
    when needed.

    model: as `load_model` takes it, or "auto". said: what a person is told of it, by default its name. scale: the only
    one to be used, or None for any it has; the smallest of at least `likely` is loaded at once. devices: each as
    `Upscaler` takes it; further options: of `Upscaler`. say: told, in a line, what a person might want to know.
    Of the networks that "auto" chooses, the last MIXTURES used stay ready. Safe to use from several threads.
    Raises BackendError or WeightsError where one of these cannot be had.
    """

    def __init__(
        self,
        model: str,
        scale: int | None,
        devices: Sequence[str],
        precision: str = "auto",
        backend: str = "auto",
        tile: int | str = "auto",
        say: Callable[[str], None] = lambda line: None,
        likely: float = 0,
        said: str | None = None,
    ):
        self._auto = model == AUTO
        self._fixed = Choice(FAITHFUL if self._auto else model, said or model)
        self._options, self._say, self._devices = (precision, backend, tile), say, devices
        self._lock = threading.Lock()
        # A device computes one band at a time, whichever network's: together they need no more memory than one.
        self._turns = [threading.Lock() for _ in devices]
        self._loaded: OrderedDict[tuple[str, int], tuple[EDSR, dict[int, Upscaler]]] = OrderedDict()
        self._told: set[str] = set()
        try:
            known = available_scales(model) if scale is None else ()
        except ValueError as error:
            raise WeightsError(f"{model}: {error}") from None
        first = load_model(self._fixed.model, scale or next((s for s in known if s >= likely), None))
        self.scale: int = first.config.scale  # where an image asks for none
        self.scales: tuple[int, ...] = known or (self.scale,)
        self._loaded[self._fixed.model, self.scale] = first, {}
        for i in range(len(devices)):
            self.on(i, self.scale)

    def __len__(self) -> int:
        """How many devices there are."""
        return len(self._devices)

    def choose(self, source: Path, scale: int) -> Choice:
        """The network for an image, at one of `scales`."""
        return choose_by_file(source, scale, self._say_once) if self._auto else self._fixed

    def _say_once(self, line: str) -> None:
        with self._lock:
            new = line not in self._told
            self._told.add(line)
        if new:
            self._say(line)

    def on(self, i: int, scale: int, model: str | None = None) -> Upscaler:
        """The network of that scale on device number `i`. model: one that `choose` gave; None: the usual one."""
        with self._lock:
            key = model or self._fixed.model, scale
            if key not in self._loaded:
                chosen = [old for old in self._loaded if old[0] != self._fixed.model]
                if key[0] != self._fixed.model and len(chosen) == MIXTURES:
                    del self._loaded[chosen[0]]  # whoever still uses it keeps it until done
                self._loaded[key] = load_model(*key), {}
            self._loaded.move_to_end(key)
            network, ready = self._loaded[key]
            if i not in ready:
                upscaler = Upscaler(network, self._devices[i], *self._options)
                upscaler.say, upscaler.compute_lock = self._say, self._turns[i]
                upscaler.warm_up(self._say)
                ready[i] = upscaler
            return ready[i]

    def team(self, scale: int, model: str | None = None) -> "Upscaler | MultiDeviceUpscaler":
        """The network of that scale on all devices; model: see `on`."""
        members = [self.on(i, scale, model) for i in range(len(self))]
        return members[0] if len(members) == 1 else MultiDeviceUpscaler(members)


@dataclass(frozen=True)
class UpscaleOptions:
    """What is wanted of every image. size: see `edsr.batch.sizes`. linear: reduce in linear light. quality: see
    `ImageWriter`.

    make_folders: whether the folder of an output is made where there is none. skip_existing: leave what is there,
    but for the temporary files of a batch that was killed.
    """

    size: OutputSize = field(default_factory=OutputSize)
    linear: bool = False
    quality: int | None = None
    self_ensemble: bool = False
    overwrite: bool = False
    skip_existing: bool = False
    make_folders: bool = False


@dataclass
class FileResult:
    """What became of a job. Sizes are (width, height); device, precision and backend those that computed.

    model: what a person is told of the network.
    error: why there is no output; skipped: because it was there already. warnings: a line for each thing that the file
    does not hold though the image did.
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
    jobs: Sequence[Job], networks: UpscalerPool, request: UpscaleOptions, bars: BatchProgress
) -> Iterator[FileResult]:
    """A FileResult for each job, in the order in which they end. A job that fails does not end the others.

    Several devices share the jobs, or, where there are fewer jobs than devices, the columns of each image.
    When the generator is closed, or a KeyboardInterrupt comes, unfinished outputs are gone when it has ended.
    """
    if request.skip_existing:
        for folder in {job.output.parent for job in jobs}:
            remove_abandoned(folder)
    device = networks.on(0, networks.scale).device.type
    workers = min(len(jobs), len(networks) * FILES_AT_ONCE[device])
    if workers <= 1 or len(jobs) < len(networks):
        for job in jobs:
            yield _result(job, networks.team, networks, request, bars, lambda: False)
        return
    waiting, outcomes, left = iter(jobs), queue.SimpleQueue(), threading.Event()
    lock = threading.Lock()

    def work(i: int) -> None:
        try:
            while not left.is_set():
                with lock:
                    job = next(waiting, None)
                if job is None:
                    break
                outcomes.put(_result(job, lambda *which: networks.on(i, *which), networks, request, bars, left.is_set))
        finally:
            outcomes.put(None)

    threads = [threading.Thread(target=work, args=(i % len(networks),)) for i in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while workers:
            with contextlib.suppress(queue.Empty):  # in turns, because Windows tells of Ctrl-C between them only
                if (outcome := outcomes.get(timeout=1)) is None:
                    workers -= 1
                else:
                    yield outcome
    finally:
        left.set()
        for thread in threads:
            thread.join()


def _result(
    job: Job,
    pick: Callable[[int, str], Upscaler | MultiDeviceUpscaler],
    networks: UpscalerPool,
    request: UpscaleOptions,
    bars: BatchProgress,
    stopped: Callable[[], bool],
) -> FileResult:
    outcome = FileResult(job)
    if request.skip_existing and job.output.exists():
        outcome.skipped = True
        return outcome
    try:
        _upscale(outcome, pick, networks, request, bars, stopped)
    except Exception as error:
        outcome.error = error
    return outcome


class _Stopped(Exception):
    """Somebody has interrupted the batch."""


def _upscale(
    outcome: FileResult,
    pick: Callable[[int, str], Upscaler | MultiDeviceUpscaler],
    networks: UpscalerPool,
    request: UpscaleOptions,
    bars: BatchProgress,
    stopped: Callable[[], bool],
) -> None:
    """One image from file to file."""
    start = time.perf_counter()
    source, output = outcome.job
    if request.make_folders:
        output.parent.mkdir(parents=True, exist_ok=True)
    # What must pass through a temporary file does so on the output's disk.
    folder = output.parent if output.parent.is_dir() else None
    with ImageReader(source, full=True, folder=folder) as reader:
        width, height = reader.width, reader.height
        scale, wanted = _sizes(source, width, height, networks, request.size)
        model, outcome.model = networks.choose(source, scale)
        upscaler = pick(scale, model)
        outcome.device, outcome.precision, outcome.backend = str(upscaler.device), upscaler.precision, upscaler.backend
        outcome.input_size, outcome.output_size = (width, height), wanted
        reduced = wanted != (scale * width, scale * height)
        with (
            ImageWriter(
                output,
                scale * width,
                scale * height,
                reader.channels,
                like=reader,
                overwrite=request.overwrite,
                quality=request.quality,
                dtype=np.float32 if reduced else reader.dtype,
                reduced=TargetSize(*wanted, reader.dtype, request.linear) if reduced else None,
            ) as writer,
            bars.file(source.name, width, height) as bar,
            Prefetcher(reader.rows(upscaler.band_rows(width, height))) as arriving,
            contextlib.closing(
                upscaler.bands(map(to_float, arriving) if reduced else arriving, width, request.self_ensemble)
            ) as departing,
        ):
            outcome.warnings = reader.warnings + writer.warnings
            for large in departing:
                if stopped():
                    raise _Stopped
                writer.write(large)
                bar.advance(len(large) // scale)
    outcome.seconds = time.perf_counter() - start


def _sizes(
    source: Path, width: int, height: int, networks: UpscalerPool, size: OutputSize
) -> tuple[int, tuple[int, int]]:
    """The network's scale, and the result's width and height."""
    if not size:
        return networks.scale, (networks.scale * width, networks.scale * height)
    wanted = size.resolve(width, height)
    scale = scale_for(wanted, width, height, networks.scales)
    if scale is None:
        most = max(networks.scales)
        raise ImageError(
            f"{source}: {wanted[0]} x {wanted[1]} is more than {most} times its {width} x {height}, the most that this "
            "network makes; ask for less, and enlarge the result again"
        )
    return scale, wanted

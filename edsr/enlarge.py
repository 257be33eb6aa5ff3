"""Picture files made larger: one, or a batch over one device or several."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edsr.ahead import Ahead
from edsr.batch import Job
from edsr.engine import EngineError, Upscaler
from edsr.imageio import ImageError, Reader, Reduced, Writer, remove_abandoned
from edsr.progress import Bars
from edsr.sizes import Size, scale_for
from edsr.team import Team
from edsr.weights import load_model, packaged

FILES_AT_ONCE = {"cuda": 4, "mps": 1, "cpu": 1}
"""Files of a batch that are worked on at a time, for a device. A GPU computes one band after the other all the same,
but one file's PNG takes longer to encode than to compute. The number has not been measured on a GPU."""


class Networks:
    """One network at the scales it has, on some devices: Upscalers, made when first needed.

    model: as `load_model` takes it. scale: the only one to be used, or None for any it has; the smallest of at least
    `likely` is loaded at once. devices: each as `Upscaler` takes it; further options: of `Upscaler`. say: told, in a
    line, what a person might want to know. Safe to use from several threads.
    Raises EngineError or WeightsError where one of these cannot be had.
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
    ):
        self._model, self._options, self._say = model, (precision, backend, tile), say
        self._devices = devices
        self._lock = threading.Lock()
        self._loaded: dict[tuple[int, int], Upscaler] = {}
        known = packaged().get(model, ()) if scale is None else ()
        first = load_model(model, scale or next((s for s in known if s >= likely), None))
        self.scale: int = first.config.scale  # where a picture asks for none
        self.scales: tuple[int, ...] = known or (self.scale,)
        self._networks = {self.scale: first}
        for i in range(len(devices)):
            self.on(i, self.scale)

    def __len__(self) -> int:
        """How many devices there are."""
        return len(self._devices)

    def on(self, i: int, scale: int) -> Upscaler:
        """The network of that scale on device number `i`."""
        with self._lock:
            if (i, scale) not in self._loaded:
                if scale not in self._networks:
                    self._networks[scale] = load_model(self._model, scale)
                upscaler = Upscaler(self._networks[scale], self._devices[i], *self._options)
                upscaler.say = self._say
                upscaler.warm_up(self._say)
                self._loaded[i, scale] = upscaler
            return self._loaded[i, scale]

    def team(self, scale: int) -> "Upscaler | Team":
        """The network of that scale on all devices."""
        members = [self.on(i, scale) for i in range(len(self))]
        return members[0] if len(members) == 1 else Team(members)


@dataclass(frozen=True)
class Request:
    """What is wanted of every picture. size: see `edsr.sizes`. linear: reduce in linear light. quality: see `Writer`.

    make_folders: whether the folder of an output is made where there is none. skip_existing: leave what is there,
    but for the temporary files of a batch that was killed.
    """

    size: Size = field(default_factory=Size)
    linear: bool = False
    quality: int | None = None
    self_ensemble: bool = False
    overwrite: bool = False
    skip_existing: bool = False
    make_folders: bool = False


@dataclass
class Outcome:
    """What became of a job. Sizes are (width, height); device, precision and backend those that computed.

    error: why there is no output; skipped: because it was there already. losses: a line for each thing that the file
    does not hold though the picture did.
    """

    job: Job
    error: Exception | None = None
    skipped: bool = False
    losses: tuple[str, ...] = ()
    input_size: tuple[int, int] | None = None
    output_size: tuple[int, int] | None = None
    seconds: float | None = None
    device: str | None = None
    precision: str | None = None
    backend: str | None = None

    @property
    def speed(self) -> float | None:
        """Megapixels of input per second."""
        if self.seconds is None or self.input_size is None:
            return None
        return self.input_size[0] * self.input_size[1] / 1e6 / self.seconds


def enlarge_all(jobs: Sequence[Job], networks: Networks, request: Request, bars: Bars) -> Iterator[Outcome]:
    """An Outcome for each job, in the order in which they end. A job that fails does not end the others.

    Several devices share the jobs, or, where there are fewer jobs than devices, the columns of each picture.
    When the generator is closed, or a KeyboardInterrupt comes, unfinished outputs are gone when it has ended.
    """
    if request.skip_existing:
        for folder in {job.output.parent for job in jobs}:
            remove_abandoned(folder)
    device = networks.on(0, networks.scale).device.type
    workers = min(len(jobs), len(networks) * FILES_AT_ONCE[device])
    if workers <= 1 or len(jobs) < len(networks):
        for job in jobs:
            yield _outcome(job, networks.team, networks, request, bars, lambda: False)
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
                outcomes.put(_outcome(job, lambda s: networks.on(i, s), networks, request, bars, left.is_set))
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


def _outcome(
    job: Job,
    pick: Callable[[int], Upscaler | Team],
    networks: Networks,
    request: Request,
    bars: Bars,
    stopped: Callable[[], bool],
) -> Outcome:
    outcome = Outcome(job)
    if request.skip_existing and job.output.exists():
        outcome.skipped = True
        return outcome
    try:
        _enlarge(outcome, pick, networks, request, bars, stopped)
    except Exception as error:
        outcome.error = error
    return outcome


class _Stopped(Exception):
    """Somebody has interrupted the batch."""


def _enlarge(
    outcome: Outcome,
    pick: Callable[[int], Upscaler | Team],
    networks: Networks,
    request: Request,
    bars: Bars,
    stopped: Callable[[], bool],
) -> None:
    """One picture from file to file."""
    start = time.perf_counter()
    source, output = outcome.job
    if request.make_folders:
        output.parent.mkdir(parents=True, exist_ok=True)
    # What must pass through a temporary file does so on the output's disk.
    folder = output.parent if output.parent.is_dir() else None
    with Reader(source, full=True, folder=folder) as reader:
        width, height = reader.width, reader.height
        scale, wanted = _sizes(source, width, height, networks, request.size)
        upscaler = pick(scale)
        outcome.device, outcome.precision, outcome.backend = str(upscaler.device), upscaler.precision, upscaler.backend
        outcome.input_size, outcome.output_size = (width, height), wanted
        reduced = wanted != (scale * width, scale * height)
        with (
            Writer(
                output,
                scale * width,
                scale * height,
                reader.channels,
                like=reader,
                overwrite=request.overwrite,
                quality=request.quality,
                dtype=np.float32 if reduced else reader.dtype,
                reduced=Reduced(*wanted, reader.dtype, request.linear) if reduced else None,
            ) as writer,
            bars.file(source.name, width, height) as bar,
            Ahead(reader.rows(upscaler.band_rows(width, height))) as arriving,
            contextlib.closing(
                upscaler.bands(map(_to_float, arriving) if reduced else arriving, width, request.self_ensemble)
            ) as departing,
        ):
            outcome.losses = reader.losses + writer.losses
            for large in departing:
                if stopped():
                    raise _Stopped
                writer.write(large)
                bar.advance(len(large) // scale)
    outcome.seconds = time.perf_counter() - start


def _sizes(source: Path, width: int, height: int, networks: Networks, size: Size) -> tuple[int, tuple[int, int]]:
    """The network's scale, and the result's width and height."""
    if not size:
        return networks.scale, (networks.scale * width, networks.scale * height)
    wanted = size.of(width, height)
    scale = scale_for(wanted, width, height, networks.scales)
    if scale is None:
        most = max(networks.scales)
        raise ImageError(
            f"{source}: {wanted[0]} x {wanted[1]} is more than {most} times its {width} x {height}, the most that this "
            "network makes; ask for less, and enlarge the result again"
        )
    return scale, wanted


def _to_float(rows: np.ndarray) -> np.ndarray:
    """Samples as float32 in 0..1."""
    return rows if rows.dtype == np.float32 else rows.astype(np.float32) / np.float32(np.iinfo(rows.dtype).max)


def list_devices(text: str) -> list[str]:
    """The devices that `--device` names: "cuda:0,cuda:1"; "all" is every CUDA device, where there is none the fastest.

    One may stand there more than once. Raises EngineError for an empty name.
    """
    import torch

    if text == "all":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["auto"]
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise EngineError(f"--device {text}: a name is missing between the commas")
    return names

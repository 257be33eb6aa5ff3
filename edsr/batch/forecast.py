"""What a batch would be, before it is computed: sizes, networks, errors, about how much time and memory it takes."""

import heapq
import time
from collections.abc import Callable

import numpy as np
import psutil

from edsr.devices import PRECISIONS
from edsr.images import ImageWriter, TargetSize
from edsr.inference import MultiDeviceUpscaler, Upscaler
from edsr.system import temporary_folder

from .clashes import Job
from .pool import UpscalerPool
from .runner import FILES_AT_ONCE, FileResult, OpenedJob, UpscaleOptions, open_job, settle_existing
from .transfers import local_files

ENOUGH = 0.3
"""Seconds that a measured piece must take for its speed to count."""
SIDES = 32, 64, 128, 256, 512, 1024, 2048
"""Of pieces that are tried, in pixels; the first one warms up."""
ENCODED = 512, 1024
"""(height, width) of the piece that is encoded to measure how long that takes."""
MAPS = 5
"""Feature maps of a band that are alive at once: one late for the long skip, four of a block."""
LIBRARIES = 45_000_000
"""Bytes that decoder, encoder and queues take besides, as measured: with it, what is said was within a tenth of the
peak of six images (x2 and x4, PNG, WebP and AVIF, 0.15 to 6 megapixels), 12 % above to 5 % below."""


class Forecast:
    """Says what `upscale_files` would make of jobs, and adds up what it has said.

    Decodes no image, and writes no file but a temporary one, by which it measures how fast images are encoded.

    Args:
        jobs: How many there are; infinity if nobody knows.
        pool: Its networks, of which a small piece measures the speed.
        options: What is wanted.

    Attributes:
        images: How many would be upscaled, of those that have been asked for.
        pixels: Of these, in and out.
        memory_bytes: About how much memory the program takes at most, on a GPU's own besides.
    """

    def __init__(self, jobs: float, pool: UpscalerPool, options: UpscaleOptions):
        self._pool, self._options = pool, options
        upscaler = pool.upscaler(0, pool.scale)
        self._on_cpu = upscaler.device.type == "cpu"
        self._at_once = int(max(1, min(jobs, len(pool) * FILES_AT_ONCE[upscaler.device.type])))
        self._together = self._at_once <= 1 or jobs < len(pool)  # all devices share each image
        if self._together:
            self._at_once = 1
        self._computing: dict[int, float] = {}  # scale -> seconds a pixel
        self._encoding: dict[tuple, float] = {}
        self._resident = 0
        self._largest: list[int] = []
        self._seconds = self._seconds_computing = 0.0
        self.images, self.pixels = 0, (0, 0)

    def __call__(self, job: Job) -> FileResult:
        """The FileResult of a job, its `seconds` and `memory_bytes` those expected, or the error that it would have."""
        result = FileResult(job)
        try:
            wanted, again = settle_existing(result, self._pool, self._options)
            if wanted is not None:
                new_folder = self._options.make_folders
                with (
                    local_files(job, wanted.overwrite) as result.files,
                    open_job(result, result.files, self._network, self._pool, wanted, new_folder) as opened,
                ):
                    self._foresee(result, opened)
                result.warnings += again
        except Exception as error:
            result.error = error
        return result

    @property
    def seconds(self) -> float:
        """About how long all takes: files are encoded side by side on a GPU, which computes one band at a time."""
        devices = 1 if self._together else len(self._pool)
        return max(self._seconds_computing / devices, self._seconds / self._at_once)

    @property
    def memory_bytes(self) -> int:
        return self._resident + sum(self._largest)

    def _network(self, scale: int, _: str) -> Upscaler | MultiDeviceUpscaler:
        # Of all networks that are chosen by file, one: they have one shape.
        return self._pool.on_all_devices(scale) if self._together else self._pool.upscaler(0, scale)

    def _foresee(self, result: FileResult, opened: OpenedJob) -> None:
        reader, writer, upscaler, scale, _ = opened
        assert result.output_size is not None
        pixels, size = reader.width * reader.height, result.output_size
        self._resident = self._resident or psutil.Process().memory_info().rss  # before pieces leave theirs behind
        if scale not in self._computing:
            self._computing[scale] = seconds_per_pixel(upscaler)
        runs = (2 if reader.alpha else 1) * (8 if self._options.self_ensemble else 1)
        computing = runs * pixels * self._computing[scale]
        encoding = size[0] * size[1] * self._seconds_encoding(opened)
        state = upscaler.state_bytes(reader.width, reader.height, reader.channels, self._options.self_ensemble)
        # As measured, what is remembered counts twice: it is copied from one band's buffers into the next one's.
        more = reader.buffered_bytes + writer.buffered_bytes + self._band_bytes(opened) + 2 * state + LIBRARIES
        result.seconds = computing + encoding if self._on_cpu else max(computing, encoding)
        result.memory_bytes = self._resident + more
        self._seconds += result.seconds
        self._seconds_computing += computing
        self._largest = heapq.nlargest(self._at_once, (*self._largest, more))
        self.images, self.pixels = self.images + 1, (self.pixels[0] + pixels, self.pixels[1] + size[0] * size[1])

    def _seconds_encoding(self, opened: OpenedJob) -> float:
        writer, reduced = opened.writer, opened.reduced
        key = writer.path.suffix.lower(), writer.channels, writer.stored_dtype, reduced, self._options.quality
        if key not in self._encoding:
            self._encoding[key] = seconds_encoding(*key)
        return self._encoding[key]

    def _band_bytes(self, opened: OpenedJob) -> int:
        """What a band takes on the way: its rows, those of the result, and on a CPU its feature maps."""
        reader, upscaler = opened.reader, opened.upscaler
        members = upscaler.members if isinstance(upscaler, MultiDeviceUpscaler) else [upscaler]
        rows = upscaler.band_rows(reader.width, reader.height)
        sample = reader.dtype.itemsize
        total = rows * reader.width * reader.channels * (3 * sample + 4 + opened.scale**2 * (2 * sample + 4))
        if self._on_cpu:
            for member in members:
                height, width = member.plan.band_shape(reader.width // len(members), reader.height)
                config = member.model.config
                values = height * width * config.map_scale**2 * config.features
                total += MAPS * values * PRECISIONS[member.precision].itemsize
        return total


def seconds_per_pixel(
    upscaler: Upscaler | MultiDeviceUpscaler, clock: Callable[[], float] = time.perf_counter
) -> float:
    """How long a network takes for a pixel of an image, by gray pieces that grow until one takes ENOUGH."""
    seconds = 0.0
    for i, side in enumerate(SIDES):
        piece, step = np.full((side, side, 3), 128, np.uint8), upscaler.band_rows(side, side)
        begun = clock()
        for _ in upscaler.bands((piece[y : y + step] for y in range(0, side, step)), side):
            pass
        seconds = (clock() - begun) / side**2
        if i and seconds * side**2 >= ENOUGH:
            break
    return seconds


def seconds_encoding(
    suffix: str, channels: int, dtype: np.dtype, reduced: bool, quality: int | None, clock=time.perf_counter
) -> float:
    """How long a pixel takes to be encoded, by a soft image of such samples in a temporary file."""
    height, width = ENCODED
    y, x = np.mgrid[0:height, 0:width]
    wave = (0.5 + 0.25 * np.sin(x / 9) + 0.2 * np.cos(y / 7)) + 0.01 * ((3 * x + 5 * y) % 7)
    piece = np.repeat(wave.astype(np.float32)[:, :, None], channels, 2)
    if not reduced and dtype != np.float32:
        piece = (piece * np.iinfo(dtype).max).clip(0, np.iinfo(dtype).max).astype(dtype)
    target = TargetSize(width * 3 // 4, height * 3 // 4, dtype) if reduced else None
    with temporary_folder() as folder:
        begun = clock()
        writer = ImageWriter(
            folder / f"piece{suffix}", width, height, channels, quality=quality, dtype=piece.dtype, reduced=target
        )
        with writer:
            writer.write(piece)
        size = (height * width) if target is None else target.width * target.height
        return (clock() - begun) / size

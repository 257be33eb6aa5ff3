"""How a batch over many machines divides: fixed shares, as torchrun's, against tasks, as `--engine ray`. Simulated.

    python -m bench.cluster                       # 1, 8, 64 and 512 workers, and the bill for ten million images
    python -m bench.cluster --measure DIR --save  # the mix of sizes of a folder's images, and what files cost

Sizes are those of a record's images, scaled to a mean of 12 megapixels; speeds are those of this project's records.
Some workers are slow, and some are lost: a share waits until all others are done and somebody starts again, when the
same process gets it; a task goes to another worker, and the lost one is replaced after a while.
"""

import argparse
import heapq
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from bench.machine import describe
from bench.records import RESULTS, read, save

MEAN = 12.0  # megapixels
IMAGES = 10_000_000
HOUR = 3600.0


class Rules(NamedTuple):
    """What goes wrong, and how long it takes to go on. Seconds."""

    slow: float = 0.05  # share of the workers
    slowness: float = 2.0  # times as long
    between_losses: float = 200 * HOUR  # of a worker, on average
    restart: float = 8 * HOUR  # until somebody sees that a share is missing, and starts again
    replacement: float = 600.0  # until a lost worker is replaced


class Outcome(NamedTuple):
    """What a batch took: seconds, and worker-seconds in which results were computed."""

    seconds: float
    busy: float
    workers: int
    ideal: float  # seconds, if the work could be divided at will and nothing were lost

    @property
    def idle(self) -> float:
        """Share of the workers' time in which no result was computed."""
        return 1 - self.busy / (self.workers * self.seconds)

    @property
    def lost(self) -> float:
        """Seconds beyond the ideal."""
        return self.seconds - self.ideal


Lifetime = Callable[[], float]
"""Seconds until a worker that begins now is lost; infinity for never."""


def fixed_shares(work: Sequence[float], pace: Sequence[float], lifetime: Lifetime, restart: float) -> Outcome:
    """Worker r of n does every n-th file from the r-th on.

    Args:
        work: Seconds of each file for a worker of pace 1.
        pace: Of each worker, how many times as long it takes.
        lifetime: Asked for each worker when it begins.
        restart: See `Rules`.
    """
    shares = [list(work[r :: len(pace)]) for r in range(len(pace))]
    seconds = busy = 0.0
    while True:
        ends = []
        for share, slow in zip(shares, pace, strict=True):
            life, at, done = lifetime(), 0.0, 0
            for one in share:
                if at + one * slow > life:
                    break
                at, done = at + one * slow, done + 1
            busy += at
            ends.append(at if done == len(share) else life)
            del share[:done]
        seconds += max(ends)
        if not any(shares):
            return Outcome(seconds, busy, len(pace), _ideal(work, pace))
        seconds += restart


def tasks(work: Sequence[float], pace: Sequence[float], lifetime: Lifetime, replacement: float) -> Outcome:
    """Each worker takes the next file when it is free. Arguments as those of `fixed_shares`."""
    waiting = iter(work)
    again: list[float] = []  # files of lost workers
    busy = end = 0.0
    free = [(0.0, r, lifetime()) for r in range(len(pace))]  # when, who, when lost
    heapq.heapify(free)
    losses: list[tuple[float, float]] = []  # when a file comes back, which
    while free:
        at, r, dies = heapq.heappop(free)
        while losses and losses[0][0] <= at:
            again.append(heapq.heappop(losses)[1])
        one = again.pop() if again else next(waiting, None)
        if one is None:
            if losses:  # somebody may still fail: whoever is free waits for what comes back
                heapq.heappush(free, (losses[0][0], r, dies))
            continue
        done = at + one * pace[r]
        if done > dies:
            back = max(at, dies)
            heapq.heappush(losses, (back, one))
            again_at = back + replacement
            heapq.heappush(free, (again_at, r, again_at + lifetime()))
            continue
        busy, end = busy + one * pace[r], max(end, done)
        heapq.heappush(free, (done, r, dies))
    return Outcome(end, busy, len(pace), _ideal(work, pace))


def _ideal(work: Sequence[float], pace: Sequence[float]) -> float:
    return math.fsum(work) / math.fsum(1 / one for one in pace)


def simulate(
    workers: int, files: int, sizes: Sequence[float], speed: float, rules: Rules, seed: int
) -> tuple[Outcome, Outcome]:
    """Fixed shares and tasks, on the same files and workers of the same paces.

    Args:
        workers: How many.
        files: For each worker.
        sizes: Megapixels, of which each file has one.
        speed: Megapixels a second.
        rules: What goes wrong.
        seed: Of all that is drawn.
    """
    draw = random.Random(seed)
    work = [size / speed for size in draw.choices(sizes, k=files * workers)]
    slow = round(rules.slow * workers)
    pace = [rules.slowness] * slow + [1.0] * (workers - slow)
    draw.shuffle(pace)

    def lifetimes(number: int) -> Lifetime:
        other = random.Random(seed * 1000 + number)
        return lambda: other.expovariate(1 / rules.between_losses) if math.isfinite(rules.between_losses) else math.inf

    shared = fixed_shares(work, pace, lifetimes(1), rules.restart)
    return shared, tasks(work, pace, lifetimes(2), rules.replacement)


class Speed(NamedTuple):
    """What was measured of one core or one GPU: megapixels of input a second, and where."""

    name: str
    megapixels: float
    source: str


def measured_speeds() -> list[Speed]:
    """`edsr-baseline` x2 on one core and on one GPU, of the newest records that have it."""
    found: dict[str, Speed] = {}
    for path in sorted(RESULTS.glob("*.json")):
        record = read(path)
        machine = record["machine"]
        for entry in record.get("workloads", ()):
            if record["kind"] == "compare" and entry["work"] == "x2-1024x1024":
                share = entry["cases"]["bands"]["median"] * machine["threads"]
                found["core"] = Speed(f"core of {machine['name']}", 1024 * 1024 / 1e6 / share, path.name)
            if record["kind"] == "gpu" and entry["work"] == "edsr-baseline-x2-1920x1080" and "ours" in entry["cases"]:
                seconds = entry["cases"]["ours"]["median"]
                found["gpu"] = Speed(machine["name"], 1920 * 1080 / 1e6 / seconds, path.name)
    return [found[name] for name in ("core", "gpu")]


def hours(images: int, megapixels: float, speed: float) -> float:
    """Of one core or GPU, for so many images of so many megapixels at so many megapixels a second."""
    return images * megapixels / speed / HOUR


def newest_mix() -> dict:
    """The newest record of a mix of sizes."""
    return read(max(RESULTS.glob("*-cluster.json"), key=lambda path: read(path)["machine"]["date"]))


def scaled(sizes: Sequence[float], mean: float) -> list[float]:
    """The sizes times what makes their mean so large."""
    return [size * mean * len(sizes) / math.fsum(sizes) for size in sizes]


def measure(folder: Path) -> dict:
    """A record of the sizes of a folder's images, in megapixels, and seconds of one core for a file's pixels."""
    sizes = sorted(size for size in _sizes(folder))
    at = [sizes[round(i * (len(sizes) - 1) / 200)] for i in range(201)]
    record = {"kind": "cluster", "machine": describe("cpu"), "images": len(sizes), "sizes": [round(s, 4) for s in at]}
    return record | {"file_seconds_per_megapixel": round(_file_seconds(), 4)}


def _sizes(folder: Path) -> Iterator[float]:
    from edsr.errors import ImageError
    from edsr.images import ImageReader, scan_folder

    for path in scan_folder(folder, True).images:
        try:
            with ImageReader(path) as reader:
                yield reader.width * reader.height / 1e6
        except ImageError:
            continue


def _file_seconds() -> float:
    """Processor seconds for each megapixel of a JPEG that is decoded and written twice as large as PNG."""
    import numpy as np
    from PIL import Image

    from edsr.images import ImageReader, ImageWriter

    example = Path(__file__).parent.parent / "examples" / "harbour.png"
    with tempfile.TemporaryDirectory() as name, Image.open(example) as image:
        small = image.convert("RGB").resize((2000, 1500))
        small.save(Path(name) / "a.jpg", quality=90)
        start = time.process_time()
        with ImageReader(Path(name) / "a.jpg") as reader:
            writer = ImageWriter(Path(name) / "b.png", 2 * reader.width, 2 * reader.height, 3, like=reader)
            with writer:
                for rows in reader.rows(64):
                    writer.write(np.repeat(np.repeat(rows, 2, 0), 2, 1))
        return (time.process_time() - start) / (small.width * small.height / 1e6)


def cells(workers: int, outcomes: Sequence[Outcome]) -> list[str]:
    """A row of the table."""
    row = [f"{workers}", f"{outcomes[0].ideal / HOUR:.1f} h"]
    for one in outcomes:
        row += [f"{one.seconds / HOUR:.1f} h", f"{abs(one.idle):.1%}", f"{abs(one.lost) / HOUR:.2f} h"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="DIR", help="images whose sizes are measured")
    parser.add_argument("--save", action="store_true", help="keep what was measured as a record")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 512], metavar="N")
    parser.add_argument("--files", type=int, default=1000, metavar="N", help="for each worker; default: %(default)s")
    parser.add_argument("--cores", type=int, default=4, metavar="N", help="of a worker; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    options = parser.parse_args()
    console = Console()
    mix = measure(options.measure) if options.measure else newest_mix()
    if options.measure and options.save:
        save(mix)
    rules, (core, gpu) = Rules(), measured_speeds()
    sizes = scaled(mix["sizes"], MEAN)
    speed = core.megapixels * options.cores
    what = f"{options.files:,} images for each worker of {options.cores} cores, {min(sizes):.2f} to {max(sizes):.0f}"
    console.print(f"{what} megapixels, {MEAN:g} on average")
    for name, one in ("slow workers alone", rules._replace(between_losses=math.inf)), ("slow and lost ones", rules):
        table = Table(title=name, box=box.SIMPLE)
        for column in ("workers", "ideal", "fixed shares", "idle", "lost", "tasks", "idle", "lost"):
            table.add_column(column, justify="right")
        for workers in options.workers:
            table.add_row(*cells(workers, simulate(workers, options.files, sizes, speed, one, options.seed)))
        console.print(table)
    bill = Table(title=f"{IMAGES:,} images of {MEAN:g} megapixels, x2", box=box.SIMPLE)
    for column in ("", "megapixels/s", "hours"):
        bill.add_column(column, justify="right" if column else "left")
    for one in core, gpu:
        bill.add_row(one.name, f"{one.megapixels:.3g}", f"{hours(IMAGES, MEAN, one.megapixels):,.0f}")
    files = 1 / mix["file_seconds_per_megapixel"]
    bill.add_row("core, for decoding JPEG and encoding PNG", f"{files:.3g}", f"{hours(IMAGES, MEAN, files):,.0f}")
    console.print(bill)
    console.print(f"speeds: {core.source}, {gpu.source}; sizes of {mix['images']:,} images: {mix['machine']['date']}")


if __name__ == "__main__":
    main()

"""`upscale --engine ray`: the same batch on the machines of a cluster. What takes seconds is imported when needed."""

import contextlib
import itertools
import os
import tempfile
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from edsr.errors import ImageError
from edsr.storage import as_path, is_url, place_of

from . import upscale
from .batch_report import Tally, report_inputs
from .console import UsageError, print_line
from .network import requested_choice

if TYPE_CHECKING:
    from edsr.batch import BatchPlan, Job, LazyJobs, ListedJobs, OutputSize
    from edsr.storage import Place

SHARED = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
"""A variable of the environment that workers are given as well."""


def run_upscale(options: Namespace) -> int:
    """`upscale`, on a cluster or on this machine."""
    check_cluster_options(options)
    return upscale.run_upscale(options, upscale_on_cluster if options.engine else None)


def check_cluster_options(options: Namespace) -> None:
    """Raises UsageError for options that make no sense with, or without, a cluster."""
    if not options.engine:
        if options.address:
            raise UsageError("--address names a cluster; add --engine ray")
        return
    if "-" in (*options.inputs, options.output):
        raise UsageError("- is one image of this machine; leave out --engine ray")
    if options.dry_run:
        raise UsageError("--dry-run looks at this machine alone; leave out --engine ray")
    if options.output is None:
        raise UsageError("--engine ray needs a folder for the results; add -o DIR/")
    if options.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {options.device}: the cluster gives each worker its own; use auto, cpu or cuda")
    if is_url(options.output):
        return
    if os.path.lexists(options.output) and not os.path.isdir(options.output):
        raise UsageError(f"-o {options.output}: is no folder; --engine ray needs one for the results")
    output = Path(os.path.realpath(options.output))
    for folder in (Path(os.path.realpath(name)) for name in options.inputs if os.path.isdir(name)):
        if output == folder or (options.recursive and output.is_relative_to(folder)):
            raise UsageError(f"-o {options.output}: lies in {folder}, which is listed meanwhile; choose another folder")


def upscale_on_cluster(options: Namespace, tally: Tally, stack: ExitStack) -> None:
    """Upscales what the inputs stand for on a cluster, and reports it."""
    from . import progress

    with progress.starting(options.quiet):
        choice = requested_choice(options)

        from edsr.batch import OutputSize, can_be_lazy, usual_scale
        from edsr.cluster import ClusterBatch, Crew, Setup, connected, fingerprint

        model, description = choice or (options.model, None)
        network = {"model": model, "scale": options.scale, "residual_scale": options.residual_scale}
        weights = fingerprint(**network)
        scale = usual_scale(expected_scale=options.outscale or 0, **network)
    network |= {"precision": options.precision, "backend": options.backend, "tile": options.tile}
    network |= {"expected_scale": options.outscale or 0, "description": description}
    size = OutputSize(options.outscale, options.width, options.height, options.fit)
    slash = "/" if is_url(options.output) else os.sep
    options.output = options.output.removesuffix(slash) + slash
    names, total, listing = [as_path(name) for name in options.inputs], Total(), None
    settle = len(names) == 1 and not is_url(names[0]) and can_be_lazy(names[0])
    if settle:
        listing, planned = _listing(names[0], options, size.tag(scale)), []
    else:
        plan = _planned(options, size, scale, tally, stack)
        listing, planned, total.count = plan.listed, plan.jobs, len(plan.jobs)
    jobs = iter(planned) if listing is None else _told(listing, options, tally)
    try:
        if (first := next(jobs, None)) is None:
            return
        output, probe = place_of(options.output), None
        if isinstance(output, Path):
            output = Path(os.path.abspath(output))
            output.mkdir(parents=True, exist_ok=True)
            probe = stack.enter_context(_probe(output))
        with progress.starting(options.quiet, "starting workers"):
            ray = stack.enter_context(connected(options.address))
            crew = Crew.of(ray, options.device, options.threads)
        setup = Setup(
            network,
            crew.device,
            crew.cores,
            upscale.upscale_options(options, size, True),
            size.tag(scale),
            Path.cwd(),
            output,
            probe,
            _sample(first),
            weights,
            {SHARED: os.environ.get(SHARED, "")},
            on_command_line=True,
        )
        if settle and not options.quiet:
            total.start(_listing(names[0], options, size.tag(scale)))
        if not options.quiet:
            each = f"{crew.cores} core{'s' * (crew.cores > 1)}" if crew.device == "cpu" else "a GPU"
            print_line(f"{crew.workers} worker{'s' * (crew.workers > 1)} with {each} each")
        if listing is None and len(planned) == 1 and crew.workers > 1 and isinstance(first.source, Path):
            job = _absolute(first)
            with progress.bars(options.quiet, [job.source]) as bars, ClusterBatch(ray, setup, crew) as batch:
                result = batch.shared(job, bars)
                upscale.report_result(result, options, tally, True, lambda result: bars.done(result.job.source))
            return
        every = map(_absolute, itertools.chain([first], jobs))
        with (
            progress.counted(options.quiet, "images") as show,
            ClusterBatch(ray, setup, crew) as batch,
            contextlib.closing(batch.results(every, settle)) as results,
        ):
            for result in results:
                upscale.report_result(result, options, tally)
                show(tally.inputs, max(total.count, tally.inputs), "upscaled")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            tally.interruption(total.count if listing is None else None, options.overwrite)
        ) from None
    finally:
        total.stop()
        if listing is not None:
            _report_left_out(listing, options, tally)


@contextlib.contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    """A file by which workers see that a folder is the same on every machine."""
    with tempfile.NamedTemporaryFile(prefix=".edsr-", suffix=".probe", dir=folder) as file:
        yield Path(file.name)


class Total:
    """How many images there are: counted meanwhile, by listing once more, and never held."""

    def __init__(self) -> None:
        self.count, self._stopped = 0, threading.Event()

    def start(self, listing: "LazyJobs") -> None:
        """Begins to count."""
        threading.Thread(target=self._run, args=(listing,), daemon=True).start()

    def _run(self, listing: "LazyJobs") -> None:
        for _ in listing:
            if self._stopped.is_set():
                return
            self.count += 1

    def stop(self) -> None:
        """Ends the counting."""
        self._stopped.set()


def _listing(name: str, options: Namespace, tag: str) -> "LazyJobs":
    from edsr.batch import LazyJobs

    return LazyJobs(name, place_of(options.output), tag, options.format, options.recursive, options.again)


def _told(found: "LazyJobs | ListedJobs", options: Namespace, tally: Tally) -> Iterator["Job"]:
    """The jobs; names that stand for nothing are reported when they are met."""
    from edsr.batch import FailedInput

    for item in found:
        if isinstance(item, FailedInput):
            report_inputs([item], options, tally)
        else:
            yield item


def _planned(options: Namespace, size: "OutputSize", scale: int, tally: Tally, stack: ExitStack) -> "BatchPlan":
    """The plan of several names, as on one machine, where each must be compared with all others."""
    from edsr.batch import BatchPlan

    found = upscale.find(options, stack)
    if not found.items and not found.listed:
        report_inputs(found.errors, options, tally)
        return BatchPlan()
    plan = upscale.plan_batch(found, options, size.tag(scale), stack)
    upscale.report_plan(plan, options, tally)
    return plan


def _absolute(job: "Job") -> "Job":
    """The job with names that mean the same on every machine; people are shown those that they gave."""
    source, output = job.source, job.output
    if isinstance(source, Path):
        job = job._replace(source=Path(os.path.abspath(source)), source_label=job.source_name)
    if isinstance(output, Path):
        job = job._replace(output=Path(os.path.abspath(output)), output_label=job.output_name)
    return job


def _sample(job: "Job") -> "tuple[Place, int] | None":
    """An input by which workers see that they see the inputs; None if it is not there."""
    from edsr.storage import size_of

    source = job.source
    try:
        if isinstance(source, Path):
            return Path(os.path.abspath(source)), os.stat(source).st_size
        return (source, size) if (size := size_of(source)) is not None else None
    except (OSError, ValueError, ImageError):
        return None


def _report_left_out(listing: "LazyJobs | ListedJobs", options: Namespace, tally: Tally) -> None:
    from edsr.images import passed_over_kinds

    tally.earlier, tally.others = listing.earlier, passed_over_kinds(listing.others) if listing.others else ""
    if listing.closed and not options.quiet:
        folders = "folder was" if listing.closed == 1 else "folders were"
        print_line(f"note: {listing.closed} {folders} not entered; add --recursive to")

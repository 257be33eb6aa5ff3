"""`upscale`: runs a batch of files and reports each as a line, or as JSON. torch is imported when it is needed."""

import math
import os
import sys
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from edsr.errors import ImageError
from edsr.storage import Url, as_path, check_store, is_url, place_of
from edsr.system import why_unwritable

from .batch_report import Tally, about, megabytes, record_of, record_of_forecast, report, report_inputs
from .checks import check_named_files
from .console import UsageError, is_closed, is_expected, print_line, require_output
from .listed import Found
from .network import requested_choice, set_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edsr.batch import BatchPlan, FileResult, FoundInputs, Job, OutputSize, UpscaleOptions, UpscalerPool

LEFT_OUT_SHOWN = 3
"""Names in the line about inputs that are left out."""


PREPARED_SHAPES = 64
"""Shapes of convolutions that oneDNN, which computes for PyTorch on CPUs, keeps ready. Its own 1,024 take 80 MB in a
batch of as many sizes; an image needs a dozen."""


def run_upscale(options: Namespace, elsewhere: "Callable[[Namespace, Tally, ExitStack], None] | None" = None) -> int:
    """Upscales and reports. elsewhere: what does so in place of this machine's devices."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PREPARED_SHAPES))  # before torch computes
    check_options(options)
    check_named_files(options)
    tally = Tally()
    with ExitStack() as stack:
        if elsewhere is not None:
            elsewhere(options, tally, stack)
        elif (found := find(options, stack)).items or found.listed:
            upscale_found(found, options, tally, stack)
        elif is_main():
            report_inputs(found.errors, options, tally)
    if is_main() and (tally.inputs > 1 or tally.skipped or tally.earlier or tally.others) and not options.quiet:
        print_line(*tally.summary())
    if options.dry_run and is_main() and not options.quiet:
        print_line("dry run: nothing was upscaled, and nothing written")
    return tally.exit_code


def is_main() -> bool:
    """Whether this is the one of torchrun's processes that speaks for all; as `ProcessGroup.is_main`, without torch."""
    return os.environ.get("RANK", "0") == "0"


def upscale_found(found: "FoundInputs", options: Namespace, tally: "Tally", stack: ExitStack) -> None:
    """Upscales the inputs that were found. Temporary files last as long as the stack."""
    from . import progress

    with progress.starting(options.quiet or not is_main()):
        choice = requested_choice(options)

        from edsr.batch import OutputSize, UpscalerPool, upscale_files
        from edsr.devices import ProcessGroup, list_devices

        set_threads(options)
    group = ProcessGroup.for_files()
    devices = list_devices(group.local_device(options.device))
    size = OutputSize(options.outscale, options.width, options.height, options.fit)
    model, description = choice or (options.model, None)
    with progress.starting(options.quiet or not group.is_main):
        pool = UpscalerPool(
            model,
            options.scale,
            devices,
            options.precision,
            options.backend,
            options.tile,
            options.outscale or 0,
            description,
            options.residual_scale,
        )
    plan = plan_batch(found, options, size.tag(pool.scale), stack)
    jobs, more = group.share(plan.jobs), None
    if plan.listed is not None:
        jobs = more = Found(plan.listed, group, options, tally)
    count = len(plan.jobs) if more is None else math.inf
    if group.is_main:
        report_plan(plan, options, tally)
    wanted = upscale_options(options, size, plan.into_folder)
    if options.dry_run:
        if group.is_main:
            foresee(jobs if more else plan.jobs, count, pool, wanted, options, tally, group.world_size)
            if more is not None:
                more.tell_rest()
        group.gather(None)
        group.leave()
        return
    try:
        with progress.bars(options.quiet or not group.is_main, None if more else [job.source for job in jobs]) as bars:
            for result in upscale_files(jobs, pool, wanted, bars):
                if more is not None:
                    more.tell()
                report_result(result, options, tally, count == 1, lambda result: bars.done(result.job.source))
    except KeyboardInterrupt:
        mine = None if more else len(group.share(plan.jobs))
        raise KeyboardInterrupt(tally.interruption(mine, options.overwrite)) from None
    if more is not None:
        more.tell_rest()
    others = group.gather(tally)
    group.leave()
    for other in (others or [])[1:]:
        tally.add_all(other)


def upscale_options(options: Namespace, size: "OutputSize", make_folders: bool) -> "UpscaleOptions":
    """What is wanted of every image."""
    from edsr.batch import UpscaleOptions
    from edsr.images import UNIT, ValueRange

    return UpscaleOptions(
        size,
        options.linear_light,
        options.quality,
        options.self_ensemble,
        options.overwrite,
        options.skip_existing,
        unlimited=options.unlimited,
        make_folders=make_folders,
        salvage=options.salvage,
        keep=options.format == "keep",
        value_range=ValueRange(*options.range) if options.range else UNIT,
    )


def report_result(
    result: "FileResult",
    options: Namespace,
    tally: Tally,
    alone: bool = False,
    counted: "Callable[[FileResult], None]" = lambda result: None,
) -> None:
    """Reports what became of a job. counted: called between counting and showing it. alone: it is the only one."""
    # A defect of ours is shown with its traceback, but ends no batch that somebody left to itself.
    defect = result.error is not None and not is_expected(result.error)
    if result.error is not None and (options.debug or (defect and alone)):
        raise result.error
    record = record_of(result)
    tally.add(record, result.error)
    counted(result)
    report(record, options)


def foresee(
    jobs: "Iterable[Job]",
    count: float,
    pool: "UpscalerPool",
    upscale_options: "UpscaleOptions",
    options: Namespace,
    tally: Tally,
    processes: int,
) -> None:
    """Reports what would become of the jobs; the tally gets what is expected in all."""
    from edsr.batch import Forecast

    from . import progress

    with progress.starting(options.quiet, "measuring how fast this is"):
        forecast = Forecast(count, pool, upscale_options)
        for job in jobs:
            result = forecast(job)
            if result.error is not None and options.debug:
                raise result.error
            record = record_of_forecast(result)
            tally.add(record, result.error)
            report(record, options)
    before, after = (f"{pixels / 1e6:,.3g}" for pixels in forecast.pixels)
    memory = f"at most {megabytes(forecast.memory_bytes)} of memory"
    tally.expected = f"{about(forecast.seconds / processes)}, {before} -> {after} megapixels, {memory}"


def check_options(options: Namespace) -> None:
    """Raises UsageError for options that contradict each other, ImageError if there can be no output."""
    if "-" in (*options.inputs, options.output):
        if len(options.inputs) > 1:
            raise UsageError("- is one image: give no other input with it, and no output - for several")
        if "-" in options.inputs and is_closed("stdin"):
            raise UsageError("-: standard input is closed; pipe an image into it")
        if "-" in options.inputs and sys.stdin.isatty():
            raise UsageError("-: standard input is a terminal; pipe an image into it")
        if writes_stdout(options):
            require_output("the image")
            if sys.stdout.isatty():
                raise UsageError("-: standard output is a terminal; redirect it, or name a file with -o")
            if options.json:
                raise UsageError("--json and the image cannot both go to standard output; name a file with -o")
    if options.json:
        require_output("what --json prints")
    if options.output not in (None, "-"):
        options.output = as_path(options.output)
    if options.output not in (None, "-") and is_url(options.output):
        check_store(Url.parse(options.output))
    elif options.output not in (None, "-"):
        folder = options.output.endswith(("/", os.sep)) or os.path.isdir(options.output)
        if why := why_unwritable(options.output if folder else Path(options.output).parent):
            raise ImageError(f"{options.output}: cannot be written ({why}); choose another -o")
    if options.outscale and (options.width or options.height):
        raise UsageError("--outscale and --width or --height contradict each other; give one of them")
    if options.fit and not (options.width and options.height):
        raise UsageError("--fit needs --width and --height, within which the result is to fit; give both")
    if options.linear_light and not (options.outscale or options.width or options.height):
        raise UsageError("--linear-light has no effect without a size; add --width, --height or --outscale")
    check_format(options)


def check_format(options: Namespace) -> None:
    """Raises UsageError for a format that is not written, and for a quality that none of the results will have."""
    from edsr.batch import is_folder_name
    from edsr.images import FORMATS

    output: str = options.output or "-"
    named = output != "-" and not is_folder_name(output, len(options.inputs) > 1 or os.path.isdir(options.inputs[0]))
    ending = place_of(output).suffix.lower() if named else f".{options.format or 'png'}"
    if ending != ".keep" and ending not in FORMATS:
        problem = f"images are not written as {ending}" if ending else "has no ending that names a format"
        raise UsageError(f"{output}: {problem}; use one of {', '.join(FORMATS)}")
    if options.quality and ending in FORMATS and "Q" not in FORMATS[ending].options:
        advice = "add --format jpg, webp or avif"
        raise UsageError(f"--quality has no effect on {FORMATS[ending].name}, which loses nothing; {advice}")


def writes_stdout(options: Namespace) -> bool:
    """Whether the result goes to standard output."""
    return options.output == "-" or (options.output is None and "-" in options.inputs)


def find(options: Namespace, stack: ExitStack) -> "FoundInputs":
    """What the inputs stand for, with a temporary file for standard input. Imports no torch."""
    from edsr.batch import find_inputs, stdin_file

    stdin = stack.enter_context(stdin_file(sys.stdin.buffer)) if "-" in options.inputs else None
    found = find_inputs(options.inputs, options.recursive, options.again, stdin)
    if not options.skip_existing:  # the result of an image that is gone is a result, too
        found.drop_missing()
    return found


def plan_batch(found: "FoundInputs", options: Namespace, tag: str, stack: ExitStack) -> "BatchPlan":
    """The plan of the batch, with a temporary file for standard output."""
    from edsr.batch import STDOUT, plan_jobs, stdout_file

    to_stdout = writes_stdout(options)
    output = None if to_stdout else options.output
    plan = plan_jobs(found, output, tag, options.format)
    if to_stdout and plan.listed is not None:
        raise UsageError("-o -: standard output takes one image, not all under a prefix; name a folder")
    if to_stdout and plan.jobs:
        if len(plan.jobs) > 1:
            raise UsageError(f"-o -: standard output takes one image, not {len(plan.jobs)}; name a folder")
        job = plan.jobs[0]
        path = stack.enter_context(stdout_file(sys.stdout.buffer, job.output.suffix))
        plan.jobs = [job._replace(output=path, output_label=STDOUT)]
    return plan


def report_plan(plan: "BatchPlan", options: Namespace, tally: "Tally") -> None:
    """Reports what the plan leaves out, the inputs that nothing can be made of, and what has no effect."""
    from edsr.images import FORMATS, name_folders, passed_over

    if plan.left_out and not options.quiet:
        names = [str(path) for path in plan.left_out[:LEFT_OUT_SHOWN]]
        more = len(plan.left_out) - len(names)
        listed = ", ".join(names) + (f" and {more} more" if more else "")
        print_line(f"note: left out, because other inputs become this: {listed}")
    if plan.closed and not options.quiet:
        has = "folder was" if len(plan.closed) == 1 else "folders were"
        names = name_folders(plan.closed)
        print_line(f"note: {len(plan.closed)} {has} not entered, though images lie in: {names}; add --recursive to")
    tally.earlier, tally.others = len(plan.earlier), passed_over(plan.others) if plan.others else ""
    report_inputs(plan.errors, options, tally)
    formats = [FORMATS.get(job.output.suffix.lower()) for job in plan.jobs]
    if formats and options.quality and not any(form is None or "Q" in form.options for form in formats):
        print_line("note: --quality has no effect, as PNG and TIFF lose nothing")

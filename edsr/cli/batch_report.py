"""What is told of the files of a batch: a line or a JSON document for each, and how it went in all."""

import os
from argparse import Namespace
from typing import TYPE_CHECKING

from edsr.errors import printable
from edsr.progress import describe_seconds
from edsr.strict_json import dumps

from .console import describe, is_misuse, print_line, print_result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edsr.batch import FailedInput, FileResult


def report_inputs(errors: "Sequence[FailedInput]", options: Namespace, tally: "Tally") -> None:
    """Reports the inputs that nothing can be made of."""
    if errors and options.debug:
        raise errors[0].error
    for failed in errors:
        record = record_of_input(failed)
        tally.add(record, failed.error)
        report(record, options)


def record_of(result: "FileResult") -> dict:
    """The JSON record of a FileResult; what is not known of a file that failed is null."""
    job = result.job
    record = new_record(job.source_name)
    record |= {"skipped": result.skipped, "warnings": list(result.warnings), "model": result.model}
    record |= {"device": result.device, "precision": result.precision, "backend": result.backend}
    if result.error is not None:
        line = describe(result.error)
        source, output = result.files or (job.source, job.output)
        for path, name in (source, job.source_name), (output, job.output_name):
            line = line.replace(printable(str(path)), printable(name))
        named = any(printable(name) in line for name in (job.source_name, job.output_name))
        return record | {"error": line if named else f"{job.source_name}: {line}"}
    record["output"] = job.output_name
    if result.input_size and result.output_size and result.seconds is not None and result.speed is not None:
        record |= {"input_size": list(result.input_size), "output_size": list(result.output_size)}
        record |= {"seconds": six_digits(result.seconds), "megapixels_per_second": six_digits(result.speed)}
    return record


def six_digits(value: float) -> float:
    """Rounded to so many significant digits: what is small does not become 0."""
    return float(f"{value:.6g}")


def record_of_forecast(result: "FileResult") -> dict:
    """The JSON record of what would become of a job."""
    from edsr.images import FORMATS

    form, replaces = FORMATS.get(result.job.output.suffix.lower()), None
    if result.error is None and not result.skipped:
        from edsr.storage import Url, is_taken

        output = result.job.output
        replaces = is_taken(output) if isinstance(output, Url) else os.path.lexists(output)
    more = {"dry_run": True, "format": form and form.name, "replaces": replaces, "memory_bytes": result.memory_bytes}
    return record_of(result) | more


def record_of_input(failed: "FailedInput") -> dict:
    """The JSON record of an input that nothing can be made of."""
    return new_record(failed.name) | {"error": describe(failed.error)}


def new_record(name: str) -> dict:
    """A record of which nothing is known but the input's name."""
    keys = "input output input_size output_size seconds megapixels_per_second skipped warnings model device precision"
    return dict.fromkeys([*keys.split(), "backend", "error"]) | {"input": name, "skipped": False, "warnings": []}


def report(record: dict, options: Namespace) -> None:
    """Prints what became of an input."""
    if record["error"]:
        print_line(f"error: {record['error']}")
    if not options.quiet:
        print_line(*(f"note: {record['input']}: {line}" for line in record["warnings"]))
    if options.json:
        print_result(dumps(record))
    elif not options.quiet and record["output_size"]:
        # Beside an image on standard output, and with one from standard input, lines go to standard error.
        show = print_line if "-" in (*options.inputs, options.output) else print_result
        show(forecast_line(record) if options.dry_run else result_line(record))


def result_line(record: dict) -> str:
    """What became of an image."""
    width, height = record["output_size"]
    return f"{record['output']}  {width} x {height}, {record['seconds']:.1f} s, {record['model']}"


def forecast_line(record: dict) -> str:
    """What would become of an image."""
    before, after = ("{} x {}".format(*record[name]) for name in ("input_size", "output_size"))
    replaced = " (replaced)" if record["replaces"] else ""
    expected = f"{about(record['seconds'])}, {megabytes(record['memory_bytes'])}"
    what = f"{before} -> {after} {record['format']}, {record['model']}"
    return f"{record['input']} -> {record['output']}{replaced}  {what}, {expected}"


def megabytes(count: int) -> str:
    """Memory that is expected, for a person."""
    return f"{round(count / 1e6, -1):,.0f} MB"


def about(seconds: float) -> str:
    """A duration that is expected, for a person."""
    return f"about {describe_seconds(seconds)}" if seconds >= 1 else "less than 1 s"


class Tally:
    """How a batch goes: numbers, and a line for each failure. Small, however many images there are."""

    def __init__(self) -> None:
        self.inputs, self.skipped = 0, 0
        self.kept = ""  # the result that the last skipped image has already
        self.expected = ""  # what a dry run says of all together
        self.earlier, self.others = 0, ""  # files in folders that are no inputs, see BatchPlan; a line on others
        self.failures: list[str] = []
        self.misuses = 0

    @property
    def exit_code(self) -> int:
        """0 if nothing has failed, 2 if the arguments alone are at fault, otherwise 1."""
        return 0 if not self.failures else 2 if self.misuses == len(self.failures) else 1

    def add(self, record: dict, error: Exception | None) -> None:
        """Counts the record of an input, which has come to this error."""
        self.misuses += error is not None and is_misuse(error)
        self.inputs += 1
        self.skipped += bool(record["skipped"])
        self.kept = record["output"] if record["skipped"] else self.kept
        if record["error"]:
            self.failures.append(record["error"])

    def add_all(self, other: "Tally") -> None:
        """Counts what another process has counted."""
        self.inputs += other.inputs
        self.skipped += other.skipped
        self.kept = other.kept or self.kept
        self.failures += other.failures
        self.misuses += other.misuses

    @property
    def done(self) -> int:
        """Images upscaled."""
        return self.inputs - self.skipped - len(self.failures)

    def interruption(self, jobs: int | None, overwrite: bool) -> str:
        """What is said when a batch of so many jobs, None: nobody knows how many, is interrupted."""
        if jobs is not None and jobs <= 1:
            return "interrupted"
        line = f"interrupted: {self.done + self.skipped}{'' if jobs is None else f' of {jobs}'} images done"
        # Results that were to be replaced would be skipped as well.
        return line if overwrite else f"{line}; the same command with --skip-existing goes on"

    def summary(self) -> list[str]:
        """How the batch went, or would go, in lines; failures are named again."""
        if self.inputs == self.skipped == 1:
            parts = [f"{self.kept} is there already: skipped"]
        else:
            what = f"to do: {self.expected}" if self.expected else "done"
            parts = [f"{self.done} of {self.inputs} image{'s' * (self.inputs != 1)} {what}"]
            parts += [f"{self.skipped} skipped"] if self.skipped else []
        if self.earlier:
            results = f"{self.earlier} earlier result{'s' * (self.earlier != 1)}"
            parts.append(f"{results} left out (--again takes {'it' if self.earlier == 1 else 'them'})")
        if self.others:
            parts.append(self.others)
        parts += [f"{len(self.failures)} failed:"] if self.failures else []
        return [", ".join(parts), *(f"  {line}" for line in self.failures)]

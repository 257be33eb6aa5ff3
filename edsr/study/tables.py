"""A study as tables: of the methods, in the old form, and of the claims."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from edsr.evaluation import score
from edsr.images import matlab_bicubic
from edsr.progress import describe_seconds

from .budgets import METHODS, PUBLISHED, SCALES, table_runs
from .claims import Finding
from .images import load_square, reduce
from .measures import mean_of_finite
from .runner import Study, describe_time


class Row(NamedTuple):
    """A method at a scale. What was not measured of it is None; `diverged` says why its training was given up."""

    method: str
    scale: int
    psnr: float | None
    ssim: float | None
    published: float | None
    parameters: int | None = None
    multiply_adds: float | None = None
    train_seconds: float | None = None
    peak_bytes: int | None = None
    seconds: float | None = None
    diverged: str | None = None


class OldRow(NamedTuple):
    """A line of the table as the reproduction that this project grew from had it; PSNR is None if training diverged."""

    dataset: str
    epochs: float
    module: str
    method: str
    psnr: float | None


OLD_HEADS = ("Dataset", "Epochs", "Module", "Method", "PSNR")
HEADS = (
    "method", "scale", "PSNR, dB", "SSIM", "published (Set5), dB", "parameters", "multiply-adds a megapixel",
    "training", "peak memory", "a megapixel takes",
)  # fmt: skip


def method_rows(study: Study) -> list[Row]:
    """The rows of the table, bicubic first, scale by scale."""
    rows = []
    for scale in SCALES:
        rows.append(_bicubic(study, scale))
        for run in table_runs(study.budget, study.steps):
            if scale in run.scales:
                result = study.results[run.name]
                found = result["scales"].get(str(scale), {})  # of what diverged nothing is measured
                rows.append(
                    Row(
                        run.method, scale, mean_of_finite(found.get("psnr", [])), mean_of_finite(found.get("ssim", [])),
                        PUBLISHED.get(run.method, {}).get(scale), result["parameters"], found.get("multiply_adds"),
                        result["train_seconds"], result["peak_bytes"], found.get("seconds"), result["diverged"],
                    )
                )  # fmt: skip
    return rows


def _bicubic(study: Study, scale: int) -> Row:
    scores = []
    for path in study.squares:
        high = load_square(path)
        scores.append(score(matlab_bicubic(reduce(high, scale), *high.shape[:2]), high, scale))
    psnr, ssim = map(mean_of_finite, zip(*scores, strict=True))
    return Row("bicubic", scale, psnr, ssim, {2: 33.66, 4: 28.42}[scale])


def old_rows(study: Study) -> list[OldRow]:
    """PSNR at half and at full length; of what diverged one row for each scale."""
    rows = []
    for run in table_runs(study.budget, study.steps):
        result = study.results[run.name]
        for line in _half_and_full(result):
            epochs = line["step"] / len(run.scales) * study.budget.batch / max(1, study.training)
            for scale in run.scales:
                psnr = line.get(f"psnr/x{scale}", line["psnr"])
                rows.append(OldRow(study.dataset, epochs, f"x{scale}", run.method, psnr))
    return rows


def old_texts(study: Study) -> list[list[str]]:
    """The same, as people read it."""
    return [
        [r.dataset, f"{r.epochs:.3g}", r.module, r.method, "diverged" if r.psnr is None else f"{r.psnr:.2f}"]
        for r in old_rows(study)
    ]


def _half_and_full(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    curve, steps = result["curve"], result["steps"]
    if result["diverged"] is not None:
        yield {"step": steps, "psnr": None}
    elif curve:
        yield min(curve, key=lambda line: abs(line["step"] - steps / 2))
        yield curve[-1]


def heading(study: Study, title: str) -> str:
    """A heading that says of what kind the study is."""
    return f"{title} ({study.budget.heading})" if study.budget.heading else title


def summary(study: Study) -> str:
    """What was done, in sentences."""
    b, networks = study.budget, "; ".join(f"{m}: {_shape(study, m)}" for m in METHODS)
    return (
        f"{study.training} images of {study.dataset}, cut into squares of 128 x 128; {study.steps:,} steps for each "
        f"network and scale, of {b.batch} patches of {b.patch} x {b.patch} low-resolution pixels; scored on the "
        f"middles of {len(study.squares)} other images, on luma, a border of as many pixels as the scale left out. "
        "Trainings took "
        f"{describe_time(study)} together. Networks: {networks}."
    )


def _shape(study: Study, method: str) -> str:
    run = next(run for run in table_runs(study.budget, study.steps) if run.method == method)
    return run.network.describe()


def markdown(study: Study, found: Sequence[Finding]) -> str:
    """The whole study as Markdown; figures lie beside it."""
    lines = [f"# {heading(study, 'Study')}", "", summary(study), "", f"## {heading(study, 'Methods')}", ""]
    lines += _table(HEADS, map(row_texts, method_rows(study)))
    lines += [
        "",
        "![learning curves](figures/curves.png)",
        "",
        f"## {heading(study, 'At half and at full length')}",
        "",
    ]
    lines += _table(OLD_HEADS, old_texts(study))
    if found:
        lines += ["", f"## {heading(study, 'Claims')}", ""]
        lines += _table(("claim", "holds", "measured"), ((f.claim, f.verdict, f.measured) for f in found))
        lines += ["", *(f"![{f.claim}](figures/claim-{f.name}.png)" for f in found)]
    lines += ["", f"## {heading(study, 'Images')}", ""]
    lines += [f"![{path.stem}](figures/{path.stem}.png)" for path in study.squares]
    return "\n".join(lines) + "\n"


def csv_text(study: Study) -> str:
    """The rows of the methods, in plain numbers."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(method_rows(study))
    return file.getvalue()


def row_texts(row: Row) -> list[str]:
    """The cells of a row for people."""
    return [
        row.method,
        f"x{row.scale}",
        _score_text(row, row.psnr, 2),
        _score_text(row, row.ssim, 4),
        "" if row.published is None else f"{row.published:.2f}",
        "" if row.parameters is None else f"{row.parameters:,}",
        "" if row.multiply_adds is None else f"{row.multiply_adds / 1e9:,.1f} G",
        "" if row.train_seconds is None else describe_seconds(row.train_seconds),
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:,.0f} MB",
        "" if row.seconds is None else f"{row.seconds:.2f} s",
    ]


def _score_text(row: Row, score: float | None, digits: int) -> str:
    if row.diverged is not None:
        return "diverged"
    return "exact" if score is None else f"{score:.{digits}f}"  # PSNR of equal images is infinite


def _table(heads: Sequence[str], rows: Any) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]

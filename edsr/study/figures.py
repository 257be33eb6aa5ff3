"""The figures of a study: learning curves, a plot for each claim, and the methods' results side by side."""

import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edsr.images import matlab_bicubic
from edsr.system import atomic_file

from .budgets import CROP, METHODS, SCALES, table_runs
from .claims import Finding
from .images import load_square, reduce
from .runner import Study
from .tables import heading

ZOOM, MARGIN, LINE = 2, 8, 22  # of images side by side: times larger; pixels between them; of a title
COLORS = dict(zip(METHODS, ("tab:gray", "tab:brown", "tab:green", "tab:olive", "tab:blue", "tab:red"), strict=True))


def draw_figures(study: Study, found: list[Finding], folder: Path) -> dict[str, Path]:
    """Draws all of them as PNG; by name, where each is: "curves", "claim-NAME", and the names of images."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {"curves": _curves(study)} | {f"claim-{f.name}": _claim(study, f) for f in found}
    made |= {path.stem: _side_by_side(study, path) for path in study.squares}
    paths = {}
    for name, data in made.items():
        paths[name] = folder / f"{name}.png"
        with atomic_file(paths[name]) as file:
            file.write(data)
    return paths


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, FigureCanvasAgg(figure)


def _png(canvas: Any) -> bytes:
    data = io.BytesIO()
    canvas.print_png(data)
    return data.getvalue()


def _curves(study: Study) -> bytes:
    figure, canvas = _figure(11, 5)
    plots = figure.subplots(1, len(SCALES))
    for plot, scale in zip(plots, SCALES, strict=True):
        for run in table_runs(study.budget, study.steps):
            if scale in run.scales:
                result = study.results[run.name]
                lines, label = result["curve"], run.method + (" (diverged)" if result["diverged"] is not None else "")
                steps = [line["step"] / len(run.scales) for line in lines]
                psnr = [line.get(f"psnr/x{scale}", line["psnr"]) for line in lines]
                plot.plot(steps, psnr, marker=".", label=label, color=COLORS[run.method])
        plot.set(xlabel="steps for this scale", ylabel="PSNR, dB", title=f"x{scale}")
        plot.grid(alpha=0.3)
        plot.legend()  # of each scale others may have diverged
    figure.suptitle(heading(study, "Learning curves"))
    return _png(canvas)


def _claim(study: Study, found: Finding) -> bytes:
    figure, canvas = _figure(7, 3.2)
    plot = figure.subplots()
    for i, values in enumerate(found.values.values()):
        if values:
            plot.plot([i] * len(values), values, "o", color="tab:blue", alpha=0.5)
            plot.plot([i - 0.2, i + 0.2], [np.mean(values)] * 2, color="black")
        else:
            plot.annotate("diverged", (i, 0.5), xycoords=("data", "axes fraction"), ha="center")
    plot.set_xticks(range(len(found.values)), [*found.values])
    plot.set(xlim=(-0.6, len(found.values) - 0.4), ylabel=found.unit)
    title = textwrap.fill(heading(study, found.claim), 80)
    plot.set_title(f"{title}\n{found.verdict}", fontsize=10)
    plot.grid(alpha=0.3, axis="y")
    return _png(canvas)


def _side_by_side(study: Study, path: Path) -> bytes:
    """bicubic | each method | original, a row for each scale; blank where a method diverged, or its image is gone."""
    high = load_square(path)
    names = ["bicubic", *METHODS, "original"]
    side = CROP * ZOOM
    size = MARGIN + len(names) * (side + MARGIN), MARGIN + len(SCALES) * (side + LINE + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, scale in enumerate(SCALES):
        runs = {run.method: run.name for run in table_runs(study.budget, study.steps) if scale in run.scales}
        for column, name in enumerate(names):
            if name == "bicubic":
                pixels = matlab_bicubic(reduce(high, scale), *high.shape[:2])
            elif name == "original":
                pixels = high
            else:
                pixels = _result(study, runs[name], scale, path.name)
            x, y = MARGIN + column * (side + MARGIN), MARGIN + row * (side + LINE + MARGIN)
            draw.text((x, y), f"{name} x{scale}" if name != "original" else name, "black", font)
            if isinstance(pixels, str):
                draw.text((x, y + LINE), pixels, "black", font)
                continue
            sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (x, y + LINE))
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()


def _result(study: Study, run: str, scale: int, name: str) -> np.ndarray | str:
    """What a network made of a square, or why there is nothing."""
    path = Path(study.config.out) / "images" / f"{run}-x{scale}" / name
    if study.results[run]["diverged"] is not None:  # a part may have been measured
        return "diverged"
    return load_square(path) if path.is_file() else "no image"

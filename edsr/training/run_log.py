"""What a run leaves for people to look at: `metrics.jsonl`, `plot.png`, and TensorBoard's files in `tensorboard/`.

The plot needs matplotlib and TensorBoard's files tensorboard, both in the extra `train`; without them a line is logged.
"""

import json
import logging
from pathlib import Path
from typing import TextIO

import numpy as np

from edsr.strict_json import dumps
from edsr.system import atomic_file, remove_abandoned

logger = logging.getLogger(__name__)

LOG_EVERY = 50  # steps between lines of metrics.jsonl
MISSING = "pip install 'edsr-triton[train]'"
RENAMED = {"images_per_second": "patches_per_second", "setbacks": "rollbacks"}  # keys of earlier versions


class RunLogger:
    """Writes the metrics of a run from `step` on: lines of later steps, which will be taken again, are dropped."""

    def __init__(self, run: Path, step: int):
        self._path, self._run = run / "metrics.jsonl", run
        remove_abandoned(run)
        self._file = self._open(step)
        self._board = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info(f"no TensorBoard files: {MISSING} brings them")
        else:
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def roll_back(self, step: int) -> None:
        """Drops the lines after `step`, whose steps will be taken again; what TensorBoard has of them stays."""
        self._file.close()
        self._file = self._open(step)

    def _open(self, step: int) -> TextIO:
        lines = [line for line in read_metrics(self._path) if line["step"] <= step]
        with atomic_file(self._path) as file:
            file.write("".join(dumps(line) + "\n" for line in lines).encode())
        return open(self._path, "a", encoding="utf-8", buffering=1)

    def log(self, step: int, **values: float) -> None:
        """Writes a line of metrics.jsonl, and as many TensorBoard scalars."""
        self._file.write(dumps({"step": step} | values) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def log_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Writes sample images, uint8 [H, W, 3], for TensorBoard."""
        if self._board is not None:
            for name, image in images.items():
                self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Ends the files and draws the plot."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        try:
            plot(read_metrics(self._path), self._run / "plot.png")
        except ImportError:
            logger.info(f"no plot of the run: {MISSING} brings matplotlib")
        except OSError as error:  # a disk that is full ends the run with an error that matters more
            logger.warning(f"no plot of the run: it cannot be written ({error.strerror})")


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl in the keys of today; what a crash cut off or garbled is left out."""
    lines = []
    if path.is_file():  # not a pipe, which may never end
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append({RENAMED.get(key, key): value for key, value in line.items()})
    return lines


def plot(lines: list[dict], path: Path) -> None:
    """Draws loss and validation PSNR over steps, as a PNG. lines: as `read_metrics` gives them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    loss = figure.subplots()
    loss.plot(*_columns(lines, "loss"), color="tab:gray", linewidth=1, label="loss")
    loss.set(xlabel="step", ylabel="training loss", yscale="log")
    psnr = loss.twinx()
    psnr.plot(*_columns(lines, "psnr"), color="tab:blue", marker=".", label="validation")
    degraded = _columns(lines, "psnr_degraded")
    if degraded[0]:
        psnr.plot(*degraded, color="tab:orange", marker=".", label="degraded")
        psnr.legend(loc="lower right")
    psnr.set_ylabel("validation PSNR, dB", color="tab:blue")
    loss.grid(alpha=0.3)
    with atomic_file(path) as file:
        FigureCanvasAgg(figure).print_png(file)


def _columns(lines: list[dict], name: str) -> tuple[list[int], list[float]]:
    chosen = [line for line in lines if isinstance(line.get(name), (int, float))]
    return [line["step"] for line in chosen], [line[name] for line in chosen]

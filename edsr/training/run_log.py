"""What a run leaves for people to look at: `metrics.jsonl`, `plot.png`, and TensorBoard's files in `tensorboard/`.

The plot needs matplotlib and TensorBoard's files tensorboard, both in the extra `train`; without them a line is logged.
Weights & Biases get the same if they are asked for.
"""

import importlib
import json
import logging
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from edsr.errors import TrainError
from edsr.strict_json import dumps
from edsr.system import atomic_file, remove_abandoned
from edsr.wording import named

logger = logging.getLogger(__name__)

LOG_EVERY = 50  # steps between lines of metrics.jsonl
MISSING = "pip install 'edsr-triton[train]'"
RENAMED = {"images_per_second": "patches_per_second", "setbacks": "rollbacks"}  # keys of earlier versions


class Board(Protocol):
    """Somewhere that metrics are shown."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Takes the metrics of a step."""

    def log_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Takes images, uint8 [H, W, 3], by name."""

    def close(self) -> None:
        """Ends the files."""


class TensorBoard:
    """TensorBoard's files of a run, from `step` on; ImportError without the package."""

    def __init__(self, run: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        for name, image in images.items():
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of a project of Weights & Biases; a run resumed goes on in the same, whose name is in `wandb.txt`."""

    def __init__(self, run: Path, project: str):
        self._wandb, name = load_wandb(), run / "wandb.txt"
        number = name.read_text(encoding="utf-8").strip() if name.is_file() else None
        self._run = self._wandb.init(
            project=project, name=run.resolve().name, dir=str(run), id=number, resume="allow" if number else None
        )
        name.write_text(self._run.id, encoding="utf-8")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def log_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        self._run.log({name: self._wandb.Image(image) for name, image in images.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


def load_wandb() -> Any:
    """The package wandb. Raises TrainError."""
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise TrainError(f"{named('wandb')} needs a package: pip install wandb, or leave it out") from None


class RunLogger:
    """Writes the metrics of a run from `step` on: lines of later steps, which will be taken again, are dropped.

    Args:
        run: The run's folder.
        step: Steps done.
        wandb: Project of Weights & Biases, if it is logged there.
    """

    def __init__(self, run: Path, step: int, wandb: str | None = None):
        self._path, self._run = run / "metrics.jsonl", run
        remove_abandoned(run)
        self._file = self._open(step)
        self._boards: list[Board] = []
        try:
            self._boards.append(TensorBoard(run, step))
        except ImportError:
            logger.info(f"no TensorBoard files: {MISSING} brings them")
        if wandb is not None:
            self._boards.append(WeightsAndBiases(run, wandb))

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
        """Writes a line of metrics.jsonl, and the same to the boards."""
        self._file.write(dumps({"step": step} | values) + "\n")
        for board in self._boards:
            board.log(step, values)

    def log_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Writes sample images, uint8 [H, W, 3], to the boards."""
        for board in self._boards:
            board.log_images(step, images)

    def close(self) -> None:
        """Ends the files and draws the plot."""
        self._file.close()
        for board in self._boards:
            board.close()
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

"""Trains all that a study is about, one after the other, each in a process of its own, and goes on where it was."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edsr.errors import StudyError
from edsr.progress import describe_seconds
from edsr.strict_json import dumps
from edsr.system import atomic_file
from edsr.wording import named

from .budgets import BUDGETS, METHODS, Budget, Run, claim_runs, table_runs
from .images import Split, make_test_squares, split_images

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyConfig:
    """What a study is.

    Args:
        data: Folders of images.
        out: Folder of the study.
        test: Folder of images to score; None: see `edsr.study.images.split_images`.
        budget: A key of BUDGETS.
        steps: In place of the budget's, for each network and scale.
        claims: Whether to train what the claims need, too.
        device: What computes.
        threads: On a CPU; None: as many as there are cores.
    """

    data: tuple[str, ...]
    out: str
    test: str | None = None
    budget: str = "quick"
    steps: int | None = None
    claims: bool = False
    device: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Study:
    """What has been measured.

    Attributes:
        config: What was asked for.
        budget: By which it was trained.
        steps: Of each network, for each scale.
        results: By the names of runs, as `edsr.study.worker` writes them.
        training: How many images were trained on.
        squares: What was scored.
        dataset: What the images are called: the last parts of the folders' names.
    """

    config: StudyConfig
    budget: Budget
    steps: int
    results: dict[str, dict[str, Any]]
    training: int
    squares: list[Path]
    dataset: str


def run_study(
    config: StudyConfig, progress: Callable[[int, int, str], object] = lambda done, total, name: None
) -> Study:
    """Trains and measures what has not been yet.

    Args:
        config: What to study.
        progress: Called with steps done, steps in all, and what is trained.

    Raises:
        DataError: There are no images.
        StudyError: The folder holds another study, or a training failed.
    """
    budget, out = BUDGETS[config.budget], Path(config.out)
    steps = config.steps or budget.steps
    split = split_images([Path(folder) for folder in config.data], Path(config.test) if config.test else None)
    _check_same(out, config, steps, split)
    squares = make_test_squares(split.test, out / "test", budget.tested)
    runs = table_runs(budget, steps) + (claim_runs(budget, steps) if config.claims else [])
    total, done, results = sum(run.steps for run in runs), 0, {}
    for i, run in enumerate(runs):
        path = out / "results" / f"{run.name}.json"
        if not path.is_file():
            logger.info("%d of %d: %s, %s steps", i + 1, len(runs), run.name, f"{run.steps:,}")
            _train(run, config, steps, split, path, lambda step, d=done, n=run.name: progress(d + step, total, n))
        results[run.name] = json.loads(path.read_text(encoding="utf-8"))
        done += run.steps
        progress(done, total, run.name)
    dataset = ", ".join(Path(folder).resolve().name for folder in config.data)
    return Study(config, budget, steps, results, len(split.training), squares, dataset)


def _check_same(out: Path, config: StudyConfig, steps: int, split: Split) -> None:
    """Makes the folder of a study, or sees that it is this one's. Raises StudyError."""
    own = {
        "budget": config.budget,
        "steps": steps,
        "training": sorted(path.name for path in split.training),
        "test": sorted(path.name for path in split.test),
    }
    path = out / "study.json"
    if out.exists() and not out.is_dir():
        raise StudyError(f"{out} is a file; give a folder with {named('out')}")
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise StudyError(f"{out} holds other files; give an empty folder, or that of a study, with {named('out')}")
        try:
            out.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                file.write(dumps(own).encode())
        except OSError as error:
            raise StudyError(f"{out}: cannot be written ({error.strerror}); choose another {named('out')}") from None
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise StudyError(f"{path}: damaged; choose another {named('out')}") from None
    differ = [key for key, value in own.items() if theirs.get(key) != value]
    if differ:
        raise StudyError(f"{out} holds a study of other {' and '.join(differ)}; choose another {named('out')}")


def _train(
    run: Run, config: StudyConfig, steps: int, split: Split, result: Path, advance: Callable[[int], object]
) -> None:
    """Has a run trained and measured. Raises StudyError."""
    out = Path(config.out)
    (out / "results").mkdir(exist_ok=True)
    device = config.device
    if device == "auto":
        from edsr.devices import pick_device

        device = str(pick_device("auto"))
    task = {
        "run": run.name,
        "budget": config.budget,
        "steps": steps,
        "model": METHODS[run.method],
        "out": str(out),
        "files": [str(path.resolve()) for path in split.training],
        "device": device,
        "threads": config.threads,
        "result": str(result),
    }
    path = out / "results" / f"{run.name}.task"
    with atomic_file(path) as file:
        file.write(dumps(task).encode())
    log = out / "results" / f"{run.name}.log"
    # A bare checkout is found by its folder alone.
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with open(log, "ab") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "edsr.study.worker", str(path)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        failure = ""
        try:
            assert child.stdout is not None
            for line in child.stdout:
                told = _read(line)
                failure = told.get("error", failure)
                if "step" in told:
                    advance(told["step"])
            code = child.wait()
        except BaseException:
            child.terminate()  # it saves its run
            child.wait()
            raise
    if code == 130:
        raise KeyboardInterrupt
    if code or not result.is_file():
        raise StudyError(f"{run.name}: {failure or f'its training failed; see {log}'}")
    path.unlink()


def _read(line: str) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def describe_time(study: Study) -> str:
    """How long the trainings took together."""
    return describe_seconds(sum(result["train_seconds"] for result in study.results.values()))

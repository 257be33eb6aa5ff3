"""Trains all that a study is about, each training in a process of its own, and goes on where it was."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edsr.errors import StudyError
from edsr.progress import describe_seconds
from edsr.resources import available_cores
from edsr.storage import why_not_a_path
from edsr.strict_json import dumps, loads
from edsr.system import atomic_file, remove_abandoned
from edsr.training import RunLock
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
        threads: Of each training on a CPU; None: the cores, divided among the trainings that run at once.
        jobs: How many trainings run at once, at most. Times are then those beside others.
    """

    data: tuple[str, ...]
    out: str
    test: str | None = None
    budget: str = "quick"
    steps: int | None = None
    claims: bool = False
    device: str = "auto"
    threads: int | None = None
    jobs: int = 1


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
        TrainError: Another process is at this study.
    """
    lock = RunLock()
    try:
        return _run_study(config, progress, lock)
    finally:
        lock.close()


def _run_study(config: StudyConfig, progress: Callable[[int, int, str], object], study_lock: RunLock) -> Study:
    budget, out = BUDGETS[config.budget], Path(config.out)
    steps = config.steps or budget.steps
    split = split_images([Path(folder) for folder in config.data], Path(config.test) if config.test else None)
    _make_folder(config.out)
    study_lock.acquire(out)
    remove_abandoned(out)
    _check_same(out, config, steps, split)
    squares = make_test_squares(split.test, out / "test", budget.tested)
    runs = table_runs(budget, steps) + (claim_runs(budget, steps) if config.claims else [])
    total, done, lock = sum(run.steps for run in runs), {}, threading.Lock()

    def advance(run: Run, step: int) -> None:
        with lock:  # several trainings tell of theirs
            done[run.name] = step
            progress(sum(done.values()), total, run.name)

    paths = {run.name: out / "results" / f"{run.name}.json" for run in runs}
    for run in runs:
        if paths[run.name].is_file():
            advance(run, run.steps)
    _train_all(runs, _Trainer(config, steps, split), advance)
    results = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    dataset = ", ".join(Path(folder).resolve().name for folder in config.data)
    return Study(config, budget, steps, results, len(split.training), squares, dataset)


def _make_folder(name: str) -> None:
    """Makes the folder of a study, or sees that it can be one. Raises StudyError."""
    out = Path(name)
    if why := why_not_a_path(name):
        raise StudyError(why)
    if out.exists() and not out.is_dir():
        raise StudyError(f"{out} is a file; give a folder with {named('out')}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{out}: cannot be written ({error.strerror}); choose another {named('out')}") from None


def _check_same(out: Path, config: StudyConfig, steps: int, split: Split) -> None:
    """Writes down what the study of a folder is, or sees that it is this one. Raises StudyError.

    Images are known by their names and sizes: they may have been moved, but may not be others. Of other contents in as
    many bytes nothing is noticed, for reading them all would take minutes at each start.
    """
    own = {
        "budget": config.budget,
        "steps": steps,
        "training": sorted(path.name for path in split.training),
        "test": sorted(path.name for path in split.test),
        "sizes of images": sorted([path.name, _size(path)] for path in (*split.training, *split.test)),
    }
    path = out / "study.json"
    if not path.is_file():
        if any(other.name != ".lock" for other in out.iterdir()):  # which Windows needs
            raise StudyError(f"{out} holds other files; give an empty folder, or that of a study, with {named('out')}")
        try:
            with atomic_file(path) as file:
                file.write(dumps(own).encode())
        except OSError as error:
            raise StudyError(f"{out}: cannot be written ({error.strerror}); choose another {named('out')}") from None
        return
    try:
        theirs = {"sizes of images": own["sizes of images"]} | loads(path.read_bytes())  # studies once had no sizes
    except (ValueError, TypeError):
        raise StudyError(f"{path}: damaged; choose another {named('out')}") from None
    differ = [key for key, value in own.items() if theirs.get(key) != value]
    if differ:
        raise StudyError(f"{out} holds a study of other {' and '.join(differ)}; choose another {named('out')}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0  # a link to nothing is left out later


def _train_all(runs: Sequence[Run], trainer: "_Trainer", advance: Callable[[Run, int], object]) -> None:
    """Has what has not been trained yet trained, nothing before what it starts from. Raises StudyError."""
    waiting = [run for run in runs if not trainer.result(run).is_file()]
    going: dict[Future[None], Run] = {}
    with ThreadPoolExecutor(trainer.config.jobs) as pool:
        try:
            while waiting or going:
                unfinished = {run.name for run in (*waiting, *going.values())}
                ready = [run for run in waiting if run.start not in unfinished]
                for run in ready[: trainer.config.jobs - len(going)]:
                    logger.info("%d of %d: %s, %s steps", runs.index(run) + 1, len(runs), run.name, f"{run.steps:,}")
                    going[pool.submit(trainer.train, run, advance)] = run
                    waiting.remove(run)
                # In Windows Ctrl-C reaches no thread that waits without an end.
                ended, _ = wait(going, timeout=1, return_when=FIRST_COMPLETED)
                for future in ended:
                    del going[future]
                    future.result()
        except BaseException:
            trainer.stop()
            raise


@dataclass
class _Trainer:
    """Trains runs of a study, each in a process of its own, for several threads at once."""

    config: StudyConfig
    steps: int
    split: Split
    _children: set[subprocess.Popen[str]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def stop(self) -> None:
        """Ends what is being trained, for good; each training saves its run."""
        with self._lock:
            self._stopped = True
            for child in self._children:
                child.terminate()

    def result(self, run: Run) -> Path:
        """The file of what is measured of a run; there once it is trained."""
        return Path(self.config.out) / "results" / f"{run.name}.json"

    def train(self, run: Run, advance: Callable[[Run, int], object]) -> None:
        """Has a run trained and measured. Raises StudyError."""
        result = self.result(run)
        result.parent.mkdir(exist_ok=True)
        path, log = result.with_suffix(".task"), result.with_suffix(".log")
        with atomic_file(path) as file:
            file.write(dumps(self._task(run)).encode())
        # A bare checkout is found by its folder alone.
        paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        failure = ""
        with open(log, "ab") as errors:
            with self._lock:
                if self._stopped:
                    return
                child = subprocess.Popen(
                    [sys.executable, "-m", "edsr.study.worker", str(path)],
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                )
                self._children.add(child)
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    told = _read(line)
                    failure = told.get("error", failure)
                    if "step" in told:
                        advance(run, told["step"])
                code = child.wait()
            except BaseException:
                child.terminate()  # it saves its run
                child.wait()
                raise
            finally:
                with self._lock:
                    self._children.remove(child)
        if code == 130:
            raise KeyboardInterrupt
        if code or not result.is_file():
            raise StudyError(f"{run.name}: {failure or f'its training failed; see {log}'}")
        path.unlink()
        advance(run, run.steps)

    def _task(self, run: Run) -> dict[str, Any]:
        config, device, threads = self.config, self.config.device, self.config.threads
        if device == "auto":
            from edsr.devices import pick_device

            device = str(pick_device("auto"))
        if threads is None and config.jobs > 1:
            threads = max(1, available_cores() // config.jobs)
        return {
            "run": run.name,
            "budget": config.budget,
            "steps": self.steps,
            "model": METHODS[run.method],
            "out": config.out,
            "files": [str(path.resolve()) for path in self.split.training],
            "device": device,
            "threads": threads,
            "result": str(self.result(run)),
            "parent": os.getpid(),
        }


def _read(line: str) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def describe_time(study: Study) -> str:
    """How long the trainings took together."""
    return describe_seconds(sum(result["train_seconds"] for result in study.results.values()))

"""One training of a study, in a process of its own, so that its memory is its own: python -m edsr.study.worker FILE.

FILE is JSON of what `edsr.study.runner` asks for. Lines of JSON on standard output tell how far it is; what is measured
is written to the file that it names. SIGTERM, SIGINT and SIGHUP save the run; the exit code is then 130.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from edsr.errors import DivergenceError, EDSRError, WeightsError
from edsr.models import Network, build_network
from edsr.strict_json import dumps
from edsr.system import atomic_file
from edsr.training import TrainConfig, read_metrics, train

from .budgets import BUDGETS, CROP, Budget, Run, claim_runs, table_runs
from .measures import measure, peak_bytes
from .plain import train_plainly


def main() -> int:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # If the study was killed while this process started, the system names another parent by now. Windows never does,
    # and there a virtual environment's python is a process in between.
    parent = os.getppid() if sys.platform == "win32" else task["parent"]
    stopping = False

    def stop(*_: Any) -> None:
        nonlocal stopping
        stopping = True

    def ended() -> bool:
        return stopping or os.getppid() != parent  # nobody would take the result

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, stop)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, stop)
    if ended():
        return 130
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    budget = BUDGETS[task["budget"]]
    runs = {run.name: run for run in [*table_runs(budget, task["steps"]), *claim_runs(budget, task["steps"])]}
    run, out, device = runs[task["run"]], Path(task["out"]), task["device"]
    found: dict[str, Any] = {"steps": run.steps, "diverged": None, "train_seconds": 0.0, "rollbacks": 0, "curve": []}
    if run.start and _has_diverged(Path(task["result"]).with_name(f"{run.start}.json")):
        found["diverged"], model = f"{run.start}, from whose weights it starts, diverged", None
    else:
        model = (_train_plainly if run.plain else _train)(run, task, budget, ended, found)
    if ended():
        return 130
    found["peak_bytes"] = peak_bytes(device)
    with torch.device("meta"):
        found["parameters"] = sum(p.numel() for p in build_network(run.network).parameters())
    squares, found["scales"] = sorted((out / "test").glob("*.png")), {}
    try:
        if model is not None:
            found["scales"] = {
                str(scale): measure(model.eval(), scale, squares, device, out / "images" / f"{run.name}-x{scale}")
                for scale in run.scales
            }
    except WeightsError:  # weights may be finite, and what they give is not
        found["diverged"] = "its network gives values that are no numbers"
    with atomic_file(Path(task["result"])) as file:
        file.write(dumps(found).encode())
    return 0


def _has_diverged(result: Path) -> bool:
    """Whether a run, of which this is the file of what was measured, has diverged."""
    return json.loads(result.read_text(encoding="utf-8"))["diverged"] is not None


def _train(
    run: Run, task: dict[str, Any], budget: Budget, ended: Callable[[], bool], found: dict[str, Any]
) -> Network | None:
    """The network of a run, begun or continued; None if it diverges. Puts into `found` how its training went.

    Raises:
        EDSRError: It cannot be trained, for reasons that are none of the network's.
    """
    out = Path(task["out"])
    folder = out / "runs" / run.name
    several = hasattr(run.network, "all_scales")
    config = TrainConfig(
        data=tuple(task["files"]),
        out=str(folder),
        model=task["model"],
        network=run.network,
        scale=2 if several else run.scales[0],
        scales=run.scales if several else None,
        steps=run.steps,
        batch=budget.batch,
        patch=budget.patch,
        lr=run.lr,
        loss=run.loss,
        val=str(out / "test"),
        val_every=max(1, run.steps // 10),
        init=str(out / "runs" / run.start / "last.safetensors") if run.start else "none",
        resume=any(folder.glob("checkpoint-*")),
        seed=run.seed,
        device=task["device"],
        crop=CROP,
        cache=str(out / "cache"),
        candidates=1,
    )
    try:
        for progress in train(config, ended):
            _tell(step=progress.step)
    except DivergenceError as error:  # others tell nothing of the network, and end the study
        found["diverged"] = str(error)
    metrics = read_metrics(folder / "metrics.jsonl")
    found["train_seconds"] = max((line["seconds"] for line in metrics if "seconds" in line), default=0.0)
    found["rollbacks"] = max((line["rollbacks"] for line in metrics if "rollbacks" in line), default=0)
    found["curve"] = [line for line in metrics if any(key.startswith("psnr") for key in line)]
    if found["diverged"] is not None or ended():
        return None
    model = build_network(run.network)
    model.load_state_dict(load_file(folder / "last.safetensors"))
    return model


def _train_plainly(
    run: Run, task: dict[str, Any], budget: Budget, ended: Callable[[], bool], found: dict[str, Any]
) -> Network | None:
    """As `_train`, by `edsr.study.plain`, anew each time: it is short. It has diverged if a weight is not finite."""
    begun = time.perf_counter()
    files = [Path(file) for file in task["files"]]

    def done(step: int) -> bool:
        _tell(step=step)
        return ended()

    model = train_plainly(run, files, budget, Path(task["out"]) / "cache", done)
    found["train_seconds"] = time.perf_counter() - begun
    if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
        found["diverged"] = "a weight is not finite"
        return None
    return model


def _tell(**values: Any) -> None:
    """A line for the study, which reads standard output."""
    sys.stdout.write(dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EDSRError as error:
        _tell(error=str(error))
        sys.exit(1)

"""The command `train`: runs a training run, shows how it goes, and ends it in order when it is interrupted."""

import contextlib
import os
import signal
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace

from edsr.system import temporary_folder

from .checks import check_named_files
from .console import print_line
from .interruption import handle_hangup
from .network import set_threads
from .train_options import training_options


def run_train(options: Namespace) -> int:
    chosen = training_options(options)
    check_named_files(options)
    set_threads(options)

    from edsr.training import TrainConfig, dry_run, find_learning_rate, train, write_preview

    from .training_report import training_report

    # Of several processes under torchrun one speaks.
    quiet = options.quiet or os.environ.get("RANK", "0") != "0"
    progress, stopping, interrupted = None, False, None

    def stop(*_) -> None:
        nonlocal stopping
        if progress is None or stopping:  # nothing to save yet, or somebody in a hurry
            raise KeyboardInterrupt
        stopping = True

    def run():
        nonlocal interrupted
        interrupted = yield from train(TrainConfig(**chosen), lambda: stopping, report.show_validation)

    if options.preview:
        write_preview(TrainConfig(**chosen), options.preview)
        return 0
    if options.dry_run or options.find_lr:
        config = TrainConfig(**chosen)
        if options.dry_run:
            dry_run(config)
        elif config.out or config.resume:
            find_learning_rate(config, options.find_lr)
        else:
            with temporary_folder() as folder:
                find_learning_rate(replace(config, out=str(folder / "run")), options.find_lr)
        return 0
    with handled(stop), training_report(quiet) as report, contextlib.closing(run()) as steps:
        for progress in steps:
            report.show(progress)
    tell = (lambda line: None) if quiet else print_line
    if progress is None:  # the run had come to its end before, which was logged
        return 0
    if not progress.finished:  # interrupted here or in another process of the run, or out of time
        why = "interrupted" if interrupted else f"stopped after {options.minutes:g} minutes"
        where = f"step {progress.step} of {progress.steps}"
        tell(f"{why} and saved at {where}; continue with --resume {progress.folder}")
        return 130 if interrupted else 0
    tell(f"{progress.folder / 'best.safetensors'} is ready for upscale --model")
    return 0


@contextlib.contextmanager
def handled(stop: Callable[..., None]) -> Iterator[None]:
    """In the block `stop` is called when SIGINT, SIGTERM or a first SIGHUP comes."""
    restore = handle_hangup(stop)
    before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
        restore()

"""The command line's entry: parses the arguments, runs the command, turns errors into lines and exit codes."""

import os
import sys

from edsr.wording import for_command_line

from .console import lost_output, open_streams, settle_streams
from .parser import build_parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 done, 1 something failed, or lines for standard output were lost, 2 misuse, 130 interrupted.
    """
    with for_command_line():
        return _run(argv)


def _run(argv: list[str] | None) -> int:
    open_streams()
    try:
        options = build_parser().parse_args(argv)
    except SystemExit as end:  # --help, --version or misuse, whose lines are printed
        raise SystemExit(end.code if settle_streams() else end.code or 1) from None
    # Now, and not before: --help answers without what only commands need.
    from . import cluster, commands, export, interruption, prepare, study, train
    from .console import UsageError, describe, is_expected, is_misuse, print_line, show_log

    arguments = sys.argv[1:] if argv is None else argv
    if "" in arguments:  # which would stand for the folder that one is in
        print_line("error: an argument is empty, as that of a variable that is not set; leave it out, or fill it")
        return 2
    if any("\0" in argument for argument in arguments):
        print_line("error: an argument holds a NUL character, which no name and no value has")
        return 2
    # Of the processes that torchrun starts for a training run only the first speaks.
    mute = options.command == "train" and os.environ.get("RANK", "0") != "0"
    show_log(mute or getattr(options, "quiet", False))
    # SIGTERM unwinds like Ctrl-C: half-written files are removed, a training run saves its state, a cluster's workers
    # end what they do.
    patient = options.command in ("train", "study") or getattr(options, "engine", None) is not None
    with interruption.watched(patient):
        try:
            handlers = {
                "upscale": cluster.run_upscale,
                "compare": commands.run_compare,
                "evaluate": commands.run_evaluate,
                "train": train.run_train,
                "prepare": prepare.run_prepare,
                "study": study.run_study,
                "info": commands.run_info,
                "convert": commands.run_convert,
                "export": export.run_export,
            }
            code = handlers[options.command](options)
            if (lost := lost_output()) is not None:
                print_line(f"error: standard output: {lost.strerror or lost}; lines are missing there")
                return code or 1
            return code
        except KeyboardInterrupt as interrupt:
            print_line(str(interrupt) or "interrupted")
            interruption.end_if_stuck()
            return 130
        except UsageError as error:
            print_line(f"error: {error}")
            return 2
        except Exception as error:
            if options.debug or not is_expected(error):
                raise
            print_line(f"error: {describe(error)}")
            return 2 if is_misuse(error) else 1
        finally:
            settle_streams()

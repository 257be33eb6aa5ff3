"""The command line's entry: parses the arguments, runs the command, turns errors into lines and exit codes."""

import contextlib
import os
import signal
import sys

from .commands import run_compare, run_convert, run_evaluate, run_info, run_train
from .console import UsageError, describe, is_expected, print_line, show_log
from .parser import build_parser
from .upscale import run_upscale

COMMANDS = {
    "upscale": run_upscale,
    "compare": run_compare,
    "evaluate": run_evaluate,
    "train": run_train,
    "info": run_info,
    "convert": run_convert,
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 done, 1 something failed, 2 misuse, 130 interrupted.
    """
    options = build_parser().parse_args(argv)
    # SIGTERM unwinds like Ctrl-C: half-written files are removed, a training run saves its state.
    with contextlib.suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Of the processes that torchrun starts for a training run only the first speaks.
    mute = options.command == "train" and os.environ.get("RANK", "0") != "0"
    show_log(mute or getattr(options, "quiet", False))
    try:
        return COMMANDS[options.command](options)
    except KeyboardInterrupt:
        print_line("interrupted")
        return 130
    except UsageError as error:
        print_line(f"error: {error}")
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nobody is left to tell
        return 1
    except Exception as error:
        if options.debug or not is_expected(error):
            raise
        print_line(f"error: {describe(error)}")
        return 1

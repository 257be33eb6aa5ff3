"""The command line of a checkout: python cli.py upscale | compare | evaluate | train | prepare | info | convert."""

import os
import shlex
import subprocess
import sys


def explain(problem):
    """Says, to whoever runs this with another Python than the one that it was installed for, which to take."""
    folder = os.path.dirname(os.path.abspath(__file__))
    windows = os.name == "nt"
    environment = os.path.join(folder, ".venv")
    python = (
        os.path.join(environment, "Scripts", "python.exe") if windows else os.path.join(environment, "bin", "python")
    )
    if os.path.exists(python) and os.path.realpath(sys.prefix) != os.path.realpath(environment):
        command = [os.path.relpath(python), *sys.argv]
        advice = "run " + (subprocess.list2cmdline(command) if windows else " ".join(map(shlex.quote, command)))
    else:
        python = os.path.relpath(python, folder)
        install = ("py" if windows else "python3") + " -m venv .venv && " + python + " -m pip install -e ."
        advice = "install it first, in its folder: " + install + ", then use " + python
    sys.stderr.write("error: " + problem + " (" + sys.executable + "); " + advice + "\n")
    return 1


def main(arguments=None):
    """Runs a command, as `edsr.cli.main` does; the exit code."""
    if sys.version_info < (3, 11):  # noqa: UP036 - it is run by whatever Python there is
        return explain("this Python is older than 3.11")
    try:
        from edsr.cli import main as run

        return run(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("edsr", "kernels", ""):
            raise
        return explain("this Python lacks the package " + str(error.name))


if __name__ == "__main__":
    sys.exit(main())

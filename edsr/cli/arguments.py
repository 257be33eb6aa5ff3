"""Types and actions of the command line's arguments."""

import argparse
import contextlib
import difflib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from edsr.errors import printable


def tile(text: str) -> int | str:
    """A memory budget: "auto" or 32 or more."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 32:
        raise argparse.ArgumentTypeError("give auto or a whole number of 32 or more")
    return int(text)


def int_between(least: int, most: int):
    """An argument type: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"give a whole number from {least} to {most}")
        return int(text)

    return parse


def square(text: str) -> tuple[int, ...]:
    """(x, y, side)."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError("give X,Y,SIDE, three whole numbers")
    return tuple(map(int, parts))


def positive(text: str) -> float:
    """Above 0 and finite."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError("give a number above 0")


def factor(text: str) -> float:
    """How many times larger a side becomes: above 0, at most 1,000."""
    if positive(text) > 1000:  # far more than networks make; the product with a side stays a number
        raise argparse.ArgumentTypeError("give a number above 0, at most 1000")
    return float(text)


def image_format(text: str) -> str:
    """A format by its name, in any case, or by one of its endings."""
    name = text.lower().removeprefix(".")
    return {"tif": "tiff", "jpeg": "jpg"}.get(name, name)


def value_range(text: str) -> tuple[float, float]:
    """(low, high): two finite numbers that differ."""
    with contextlib.suppress(ValueError):
        low, high = map(float, text.split(","))
        if low != high and abs(low) + abs(high) < float("inf"):
            return low, high
    raise argparse.ArgumentTypeError("give LOW,HIGH, the values of black and white, such as 0,255")


def fraction(text: str) -> float:
    """0 to 1."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError("give a number from 0 to 1")


def auto_or_whole(text: str) -> int | str:
    """1 or more, or "auto"."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("give auto or a whole number of 1 or more")
    return int(text)


def add_residual_scale(group) -> None:
    group.add_argument(
        "--residual-scale",
        type=positive,
        metavar="X",
        help="what the network multiplies each block's result by, for weights files that do not state it; default: "
        "found by trying 1 and 0.1",
    )


def add_threads(group, default: str = "one for each core", **more) -> None:
    help_ = f"how many threads compute on a CPU; default: {default}"
    group.add_argument("--threads", type=int_between(1, 1024), metavar="N", help=help_, **more)


class Named(argparse.Action):
    """Stores an option, and its name among those `named`, which a file of options does not change.

    nargs=0: stores `const`.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)
        namespace.named = {*namespace.named, self.dest}


class Given(Named):
    """The same, with its name among those `given`: a default and the same value given may mean different things."""

    def __call__(self, parser, namespace, values, option_string=None):
        super().__call__(parser, namespace, values, option_string)
        namespace.given = {*namespace.given, self.dest}


class GivenList(Given):
    """`Given` for a list, which grows when the option is repeated."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest) if self.dest in namespace.given else ()
        super().__call__(parser, namespace, (*before, *values), option_string)


def device(text: str) -> str:
    """The name of a device."""
    if not re.fullmatch(r"auto|(?:cpu|cuda|mps)(?::\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none; give auto, cpu, cuda, cuda:N or mps")
    return text


def devices(text: str) -> str:
    """The names of one device or more, with commas between them, or "all"."""
    if text != "all":
        for name in text.split(","):
            if not name.strip():
                raise argparse.ArgumentTypeError("a name is missing between the commas")
            device(name.strip())
    return text


EXECUTION = "execution, rarely needed"
"""The title of options that nobody needs at first."""


def execution_group(command: argparse.ArgumentParser):
    """The group of options that nobody needs at first, one for each command."""
    groups = command._action_groups
    return next((group for group in groups if group.title == EXECUTION), None) or command.add_argument_group(EXECUTION)


class LineParser(argparse.ArgumentParser):
    """A parser whose errors are one line that says what to do, whatever the arguments that it quotes hold, and below it
    how the command is used, briefly.
    """

    def format_help(self) -> str:
        self._action_groups.sort(key=lambda group: group.title == EXECUTION)  # what is rarely needed comes last
        for group in self._action_groups:
            group._group_actions.sort(key=lambda action: action.dest == "debug")
        return super().format_help()

    _given: Sequence[str] = ()
    commands: Mapping[str, argparse.ArgumentParser] = {}
    """The parsers of commands below this one, by their names."""

    def parse_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            speaker = self.commands.get(getattr(options, "command", ""), self)
            known = re.findall(r"--[a-z][a-z-]*", speaker.format_help())
            nearest = difflib.get_close_matches(rest[0].partition("=")[0], known, 1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            speaker.error(f"{rest[0]}: there is no such {'option' if rest[0][0] == '-' else 'argument'}{hint}")
        return options

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        dashed = [name for name in self._given if name.startswith("-") and os.path.isfile(name)]
        if dashed:
            message += f"; {dashed[0]} is taken for an option, write ./{dashed[0]}"
        if message.endswith("expected one argument"):
            message += "; one that begins with - is joined to the option, as in --range=-1,1"
        self.exit(2, f"error: {printable(message)}\n{self.format_usage()}Options: {self.prog} --help\n")


class Defaults(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, but for None and flags, and leaves lines of examples as they are."""

    def _get_help_string(self, action):
        told = action.default is None or isinstance(action.default, bool) or "default:" in (action.help or "")
        return action.help if told else super()._get_help_string(action)

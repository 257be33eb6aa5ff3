"""How messages name what a person can choose: as arguments in Python, as options on the command line."""

from collections.abc import Iterator
from contextlib import contextmanager

_on_command_line = False


@contextmanager
def for_command_line() -> Iterator[None]:
    """Messages that are made meanwhile, in whatever thread, are read by somebody at the command line."""
    global _on_command_line
    before, _on_command_line = _on_command_line, True
    try:
        yield
    finally:
        _on_command_line = before


def either(python: str, command_line: str) -> str:
    """The one of the two that suits the reader."""
    return command_line if _on_command_line else python


def named(name: str) -> str:
    """The name of a choice: named("val_every") is val_every, or --val-every."""
    return either(name, f"--{name.replace('_', '-')}")


def option(name: str, value: object = True) -> str:
    """A choice and its value: option("tile", 64) is tile=64, or --tile 64; with True overwrite=True, or --overwrite."""
    return either(f"{name}={value!r}", f"--{name.replace('_', '-')}" + ("" if value is True else f" {as_words(value)}"))


def as_words(value: object) -> str:
    """A value as the command line has it: of a list its items."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

"""What is looked at before torch, which takes seconds to import: are the files there that the options name?"""

import os
import re
from argparse import Namespace
from collections.abc import Iterator

from edsr.errors import EDSRError
from edsr.storage import why_not_a_path

_WEIGHTS = re.compile(r"\.(?:safetensors|pth?|ckpt|bin|pkl)$", re.IGNORECASE)
"""How files of weights are called; other names may be those of packaged networks, or mixtures."""


def check_named_files(options: Namespace) -> None:
    """Raises EDSRError for a file that the options name and that is not there; `upscale` finds its inputs itself.

    And for a URL, which would be taken for the path of a file or, worse, of a folder to be made.
    """
    for name, value in vars(options).items():
        if options.command == "upscale" and name in ("inputs", "output", "address"):
            continue
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and (why := why_not_a_path(text)):
                raise EDSRError(why)
    for path, option in _named(options):
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            advice = f"give another with {option}" if option else "check the name"
            raise EDSRError(f"{path}: no such file or folder; {advice}") from None
        except (OSError, ValueError):  # which whoever reads it explains
            continue


def _named(options: Namespace) -> Iterator[tuple[str, str]]:
    """What the options name, and by which option."""
    paths = {"compare": ("image", "hr"), "evaluate": ("hr", "lr"), "train": ("data", "val", "resume", "vgg")}
    paths |= {"prepare": ("data",), "study": ("data", "test")}
    for name in paths.get(options.command, ()):
        value = getattr(options, name)
        for path in value if isinstance(value, list | tuple) else [value]:
            if path not in (None, True):
                yield path, "" if name == "image" else f"--{name}"
    name = {"info": "file", "convert": "input", "export": "model", "train": "init"}.get(options.command, "model")
    value = getattr(options, name, None)
    for text in value if isinstance(value, list | tuple) else [value or ""]:
        if _WEIGHTS.search(text) and ":" not in text:
            yield text, f"--{name}" if name in ("init", "model") and options.command != "export" else ""

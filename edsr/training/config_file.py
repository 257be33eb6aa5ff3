"""The options of a run as a TOML file: `config.toml` in the folder of each run but decays, for `train --config`."""

import dataclasses
import json
import os
import tomllib
from pathlib import Path

from edsr.errors import TrainError
from edsr.system import atomic_file
from edsr.weights import list_packaged
from edsr.wording import named

from .config import SHAPE, TrainConfig
from .consistency import remembered

NAME = "config.toml"
_NOT_WRITTEN = ("out", "decay", "minutes")  # of where and how long, not of what


def write(config: TrainConfig, run: Path) -> None:
    """Writes all options that are set, under the names of the command line; paths are absolute.

    The file of a run resumed stays, with comments of people, where it says what the options are.

    Raises:
        TrainError: The disk refuses.
    """
    path = run / NAME
    before = _read(path) if config.resume else {}
    if "init" in before:  # of which a run remembers the file's name only
        config = dataclasses.replace(config, init=before["init"])
    if tomllib.loads(dump(config)) == before:
        return
    try:
        with atomic_file(path) as file:
            file.write(dump(config).encode("utf-8", "replace"))
    except OSError as error:
        raise TrainError(
            f"{path}: cannot be written ({error.strerror}); make room, or choose another {named('out')}"
        ) from None


def _read(path: Path) -> dict:
    """The values of a file; none of one that is not there or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def dump(config: TrainConfig) -> str:
    """The text of the file."""
    values = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(config) if "help" in field.metadata
    }
    values |= {name: remembered(config)[name] for name in ("data", "val", "cache")} | {"device": config.device}
    if config.network is not None:
        values |= {name: getattr(config.network, name, None) for name in SHAPE}
    if config.serves_several_scales:
        values |= {"scale": None, "scales": config.trained_scales}
    values["vgg"] = config.vgg and os.path.abspath(config.vgg)
    if config.init and config.init not in list_packaged() and Path(config.init).exists():
        values["init"] = os.path.abspath(config.init)
    lines = [f"{name} = {_toml(value)}" for name, value in values.items() if value is not None]
    kept = [line for line in lines if line.split(" = ")[0] not in _NOT_WRITTEN]
    return "# The options of this run; another like it: train --config FILE --out RUN\n" + "\n".join(kept) + "\n"


def _toml(value: object) -> str:
    """A value of TOML: JSON's texts, numbers, lists and booleans are written alike there, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

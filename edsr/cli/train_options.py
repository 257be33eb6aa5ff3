"""The options of `train`: those of TrainConfig, whose fields say what they are. Imports no torch."""

import argparse
import dataclasses
import tomllib
from pathlib import Path
from typing import NoReturn

from edsr.training import TrainConfig

from .arguments import (
    Defaults,
    Given,
    GivenList,
    Named,
    add_threads,
    auto_or_whole,
    device,
    execution_group,
    int_between,
    positive,
)
from .console import UsageError


def add_train(commands, parents) -> None:
    command = commands.add_parser(
        "train",
        parents=parents,
        formatter_class=Defaults,
        usage="%(prog)s --data PATH... --out RUN [options]\n       %(prog)s --resume RUN [options]",
        help="train a network on folders of images",
        description="Writes last.safetensors and best.safetensors into the run's folder, for upscale --model. Ctrl-C\n"
        "saves; --resume RUN continues, with the images and options that the run remembers.\n"
        "Several GPUs: torchrun --nproc-per-node N cli.py train ...",
        epilog="examples:\n"
        "  python cli.py train --data DIV2K_train_HR --out runs/x2\n"
        "  python cli.py train --resume runs/x2\n"
        "  python cli.py train --data photos/ --out runs/short --steps auto --minutes 15\n"
        "  python cli.py train --data photos/ --out runs/long --schedule wsd\n"
        "  python cli.py train --resume runs/long --decay 20000",
    )
    command.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="RUN",
        help="continue the run in RUN, or in --out; images and options that are not given are as they were, but for "
        "--device, --threads, --backend, --no-graph and --wandb, which are given again",
    )
    command.add_argument(
        "--config",
        metavar="FILE",
        help="options from a TOML file, such as RUN/config.toml, which every run but a decay writes: steps = 1000; "
        "those of the command line come first",
    )
    _add_options(command)
    before = command.add_argument_group("before a run, instead of it")
    before.add_argument(
        "--dry-run", action="store_true", help="say what the run is and how long it will take; write nothing"
    )
    before.add_argument(
        "--find-lr",
        nargs="?",
        type=int_between(10, 10**6),
        const=100,
        metavar="STEPS",
        help="raise the learning rate from step to step until the loss diverges, and propose a --lr; STEPS: 100",
    )
    before.add_argument(
        "--preview", metavar="DIR", help="write a sheet of patches that --degrade would give into DIR; train nothing"
    )


def _add_options(command: argparse.ArgumentParser) -> None:
    """Adds what a file of options may hold, too."""
    command.set_defaults(given=set(), named=set())
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}

    def add(group, name: str, **more) -> None:
        """The option of a field of TrainConfig, whose default, choices and help it has."""
        told = {key: value for key, value in fields[name].metadata.items() if key != "help"}
        if fields[name].default is not dataclasses.MISSING:
            told["default"] = fields[name].default
        help_text = fields[name].metadata["help"].replace("%", "%%")
        group.add_argument(f"--{name.replace('_', '-')}", help=help_text, **({"action": Given} | told | more))

    add(command, "data", nargs="+", action=GivenList)
    add(command, "out", action=Named)
    add(command, "minutes", type=positive, action=Named)
    command.add_argument(
        "--device",
        type=device,
        default="auto",
        metavar="NAME",
        action=Named,
        help="auto, cpu, cuda, cuda:N or mps; default: auto, the fastest here",
    )
    add(command, "wandb", action=Named)
    network = command.add_argument_group("network")
    add(network, "model")
    add(network, "blocks", type=int)
    add(network, "features", type=int)
    add(network, "residual_scale", type=positive)
    add(network, "scale", type=int)
    add(network, "scales", nargs="+", type=int, action=GivenList)
    add(network, "init", action=Named)
    recipe = command.add_argument_group("recipe")
    add(recipe, "steps", type=auto_or_whole)
    add(recipe, "batch", type=int)
    add(recipe, "patch", type=int)
    add(recipe, "candidates", type=int)
    add(recipe, "recolor", nargs=0, const=True)
    add(recipe, "lr", type=positive)
    add(recipe, "loss")
    add(recipe, "vgg")
    add(recipe, "schedule")
    add(recipe, "decay", type=auto_or_whole, action=Named)
    add(recipe, "seed", type=int)
    add(recipe, "degrade")
    images = command.add_argument_group("images and validation")
    add(images, "val", nargs="+", action=GivenList)
    add(images, "val_every", type=int)
    add(images, "crop", type=int)
    add(images, "cache")
    machine = execution_group(command)
    add(machine, "save_every", type=int)
    add(machine, "precision")
    add(machine, "backend", action=Named)
    add_threads(machine, action=Named)
    no_graph = {"dest": "graph", "nargs": 0, "const": False, "default": True, "action": Named}
    machine.add_argument("--no-graph", help=fields["graph"].metadata["help"], **no_graph)
    add(machine, "deterministic", nargs=0, const=True)


def training_options(options) -> dict:
    """What TrainConfig is made of; takes into `options` what --config has. Raises UsageError."""
    if options.config:
        _take_file(options)
    resumed = options.resume  # None, True, or the folder of a run
    named = resumed if isinstance(resumed, str) else None
    if options.decay is not None and named is None:
        raise UsageError("--decay needs to know of which run; name it with --resume RUN")
    if options.decay is not None and "steps" in options.given:
        raise UsageError("--decay N says how many steps more; leave --steps out")
    if named and options.decay is None and options.out and Path(options.out).resolve() != Path(named).resolve():
        raise UsageError(f"--resume {named} goes on in {named}; leave --out out, or add --decay N")
    if options.preview and (resumed or not options.degrade):
        raise UsageError("--preview shows what a run would begin with; give --degrade SPEC, and leave --resume out")
    # These write nothing there; what is resumed is read from there.
    writes = options.dry_run or not (options.preview or options.find_lr)
    if not named and not options.out and (writes or resumed):
        raise UsageError("name the folder of the run with --out")
    if not resumed and not options.data:
        raise UsageError("name the images to train on with --data")
    ours = {"command", "debug", "quiet", "resume", "given", "data", "out", "preview", "threads"}
    ours |= {"named", "config", "dry_run", "find_lr"}
    chosen = {name: value for name, value in vars(options).items() if name not in ours}
    chosen |= {"data": tuple(options.data or ()), "given": frozenset(options.given), "resume": bool(resumed)}
    return chosen | {"out": options.out or (named if options.decay is None else None) or "", "source": named}


class _FileParser(argparse.ArgumentParser):
    """A parser of a file's options."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def _take_file(options: argparse.Namespace) -> None:
    """Takes the options of a file that the command line does not have. Raises UsageError."""
    path = options.config
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a TOML file with --config") from None
    except ValueError as error:
        raise UsageError(f"{path}: is not TOML ({next(iter(str(error).splitlines()), '')})") from None
    parser = _FileParser(prog=path, allow_abbrev=False, add_help=False)
    _add_options(parser)
    found = parser.parse_args([argument for name, value in table.items() for argument in _arguments(path, name, value)])
    for name in found.named - options.named:
        setattr(options, name, getattr(found, name))
    options.given = {*options.given, *found.given}


def _arguments(path: str, name: str, value: object) -> list[str]:
    """What an option in a file is on the command line. Raises UsageError."""
    option = f"--{name.replace('_', '-')}"
    if option == "--graph":
        option, value = "--no-graph", not value
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, (str, int, float)) and one != "" for one in values):
        raise UsageError(f"{path}: {name} is not a text, a number, true or false, or a list of texts")
    if isinstance(value, bool):
        return [option] if value else []
    return [option, *map(str, values)] if isinstance(value, list) else [f"{option}={value}"]

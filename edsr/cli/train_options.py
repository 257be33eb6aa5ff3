"""The options of `train`: those of TrainConfig, whose fields say what they are. Imports no torch."""

import dataclasses
from pathlib import Path

from edsr.training import TrainConfig

from .arguments import Defaults, Given, GivenList, add_threads, auto_or_whole, positive
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
    command.set_defaults(given=set())

    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}

    def add(group, name: str, **more) -> None:
        """The option of a field of TrainConfig, whose default, choices and help it has."""
        told = {key: value for key, value in fields[name].metadata.items() if key != "help"}
        if fields[name].default is not dataclasses.MISSING:
            told["default"] = fields[name].default
        help_text = fields[name].metadata["help"].replace("%", "%%")
        group.add_argument(f"--{name.replace('_', '-')}", help=help_text, **({"action": Given} | told | more))

    add(command, "data", nargs="+", action=GivenList)
    add(command, "out", action="store")
    command.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="RUN",
        help="continue the run in RUN, or in --out; what is not given is as it was",
    )
    add(command, "minutes", type=positive, action="store")
    network = command.add_argument_group("network")
    add(network, "model")
    add(network, "blocks", type=int)
    add(network, "features", type=int)
    add(network, "residual_scale", type=positive)
    add(network, "scale", type=int)
    add(network, "init", action="store")
    recipe = command.add_argument_group("recipe")
    add(recipe, "steps", type=auto_or_whole)
    add(recipe, "batch", type=int)
    add(recipe, "patch", type=int)
    add(recipe, "lr", type=positive)
    add(recipe, "loss")
    add(recipe, "schedule")
    add(recipe, "decay", type=auto_or_whole, action="store")
    add(recipe, "seed", type=int)
    add(recipe, "degrade")
    recipe.add_argument(
        "--preview", metavar="DIR", help="write a sheet of patches that --degrade would give into DIR; train nothing"
    )
    images = command.add_argument_group("images")
    add(images, "val", nargs="+", action=GivenList)
    add(images, "crop", type=int)
    add(images, "cache")
    machine = command.add_argument_group("execution")
    add(machine, "val_every", type=int)
    add(machine, "save_every", type=int)
    add(machine, "precision")
    add(machine, "backend", action="store")
    add_threads(machine)
    machine.add_argument("--no-graph", dest="graph", action="store_false", help=fields["graph"].metadata["help"])
    add(machine, "deterministic", nargs=0, const=True)


def training_options(options) -> dict:
    """What TrainConfig is made of. Raises UsageError."""
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
    if not named and not options.out and not options.preview:
        raise UsageError("name the folder of the run with --out")
    if not resumed and not options.data:
        raise UsageError("name the images to train on with --data")
    ours = {"command", "debug", "quiet", "resume", "given", "data", "out", "preview", "threads"}
    chosen = {name: value for name, value in vars(options).items() if name not in ours}
    chosen |= {"data": tuple(options.data or ()), "given": frozenset(options.given), "resume": bool(resumed)}
    return chosen | {"out": options.out or (named if options.decay is None else None) or "", "source": named}

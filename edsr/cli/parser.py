"""The command line's arguments. Imports no torch, so that --help answers at once."""

import argparse
import contextlib
import dataclasses
from pathlib import Path

from edsr.training import TrainConfig


def tile(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 32:
        raise argparse.ArgumentTypeError("give auto or a whole number of 32 or more")
    return int(text)


def whole(least: int, most: int):
    """A type: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"give a whole number from {least} to {most}")
        return int(text)

    return parse


def square(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError("give X,Y,SIDE, three whole numbers")
    return tuple(map(int, parts))


def positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError("give a number above 0")


def share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError("give a number from 0 to 1")


def auto_or_whole(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("give auto or a whole number of 1 or more")
    return int(text)


class Given(argparse.Action):
    """Stores an option, and its name among those `given`: a default and the same value given may mean different things.

    nargs=0: stores `const`.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)
        namespace.given = {*namespace.given, self.dest}


class Defaults(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Tells defaults that are worth telling, and leaves lines of examples as they are."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False, True) else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edsr",
        description="Makes images 2, 3 or 4 times larger with EDSR (Lim et al. 2017), exactly, whatever their size.",
        epilog="Start with: python cli.py upscale photo.png",
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    quiet = argparse.ArgumentParser(add_help=False)
    quiet.add_argument("--quiet", action="store_true", help="print errors only")
    device = argparse.ArgumentParser(add_help=False)
    device.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps", help="default: the fastest here"
    )
    network = argparse.ArgumentParser(add_help=False)
    network.add_argument("--scale", type=int, choices=(2, 3, 4), help="default: the model file's, or 2")
    # Each command its own: a parent's default, once changed, would be changed for all.
    form = "NAME|FILE|NAME:SHARE+..."
    names = "packaged name, weights file, or a mixture such as edsr-baseline:0.3+edsr-photo:0.7"
    fixed = argparse.ArgumentParser(add_help=False)
    fixed.add_argument("--model", metavar=form, default="edsr-baseline", help=f"{names} (%(default)s)")
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument(
        "--model",
        metavar=form,
        default="auto",
        help=f"{names}; auto, the default: edsr-baseline for lossless images, for JPEG, WebP, AVIF, HEIC a mixture "
        "with edsr-photo by how much the file was compressed",
    )
    chosen.add_argument(
        "--strength",
        type=share,
        metavar="0..1",
        help="how much compression and noise is cleaned away: 0 is edsr-baseline, faithful, 1 edsr-photo; default: "
        "for each image by its file",
    )
    network.add_argument(
        "--tile",
        type=tile,
        default="auto",
        metavar="N|auto",
        help="memory budget: no feature map is larger than one of N x N pixels; the result is the same for every N",
    )
    network.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "fp16", "bf16"),
        help="auto: fp16 on CUDA, fp32 elsewhere",
    )
    network.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "torch", "triton", "winograd"),
        help="who computes: our Triton kernels (NVIDIA GPUs), our Winograd kernels (CPUs) or PyTorch",
    )
    add_threads(network)
    network.add_argument(
        "--self-ensemble",
        action="store_true",
        help="mean over 8 flips and turns: slightly better, 8 times slower",
    )
    add_upscale(commands, [common, quiet, network, chosen])
    add_compare(commands, [common, quiet, device, network, chosen])
    add_evaluate(commands, [common, device, network, fixed])
    add_train(commands, [common, quiet, device])
    add_info(commands, [common])
    add_convert(commands, [common, quiet])
    return parser


def add_threads(group) -> None:
    help_ = "on a CPU, how many compute; default: one for each core"
    group.add_argument("--threads", type=whole(1, 1024), metavar="N", help=help_)


def add_upscale(commands, parents) -> None:
    command = commands.add_parser(
        "upscale",
        parents=parents,
        help="make images larger",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes NAME_x2.png beside each image. Nothing is overwritten unless told so. A file that fails\n"
        "is named, and the others go on. Exit code 0: all done, 1: a file failed, 2: misuse, 130: interrupted.",
        epilog="examples:\n"
        "  python cli.py upscale scan.tif -o large.tif --scale 4 --tile 512\n"
        "  python cli.py upscale photos/ -o large/ --recursive --skip-existing\n"
        "  python cli.py upscale photo.jpg --width 3840 --format jpg --quality 92\n"
        "  python cli.py upscale - < small.jpg > large.png\n"
        "  python cli.py upscale old.jpg --strength 1\n"
        "  python cli.py upscale blocky.jpg --outscale 1 --strength 0.8    cleaned, at its own size",
    )
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="PNG, JPEG, WebP, TIFF or AVIF images, folders of them, patterns, @list.txt with one of these in each "
        "line, or - for standard input",
    )
    command.add_argument(
        "--device",
        default="auto",
        metavar="NAME[,NAME...]|all",
        help="auto (the fastest here), cpu, cuda, cuda:N or mps; several share the files, or the columns of one: "
        "cuda:0,cuda:1, or all",
    )
    output = command.add_argument_group("output")
    output.add_argument("-o", "--output", metavar="FILE|DIR/|-", help="where to; the ending chooses the format")
    output.add_argument(
        "--format", choices=("keep", "png", "jpg", "webp", "tiff", "avif"), help="default: png; keep: the image's own"
    )
    output.add_argument(
        "--quality", type=whole(1, 100), metavar="N", help="1 to 100, for JPEG and WebP (95) and AVIF (90)"
    )
    output.add_argument("--overwrite", action="store_true", help="replace existing files")
    output.add_argument("--json", action="store_true", help="one JSON line per file on standard output")
    size = command.add_argument_group("size", "the next larger network, then a Lanczos reduction")
    size.add_argument("--outscale", type=positive, metavar="X", help="how many times larger, such as 2.5")
    size.add_argument("--width", type=whole(1, 10**8), metavar="N", help="pixels; the height follows, unless given too")
    size.add_argument("--height", type=whole(1, 10**8), metavar="N", help="pixels")
    size.add_argument("--linear-light", action="store_true", help="reduce light, not the values that stand for it")
    batch = command.add_argument_group("batch")
    batch.add_argument("--recursive", action="store_true", help="folders in folders, too; -o gets the same tree")
    batch.add_argument("--skip-existing", action="store_true", help="leave what is there: resumes a batch")


def add_compare(commands, parents) -> None:
    command = commands.add_parser(
        "compare",
        parents=parents,
        help="bicubic, EDSR and the original in one figure, or on a page with a slider",
        description="Writes NAME_compare.png: the image by bicubic interpolation and by EDSR, with a detail enlarged "
        "pixel by pixel; with --hr beside the original, with PSNR and SSIM (luma, border of SCALE pixels left out).",
        epilog="Example: python cli.py compare --hr Set5/HR/003.png --html",
    )
    command.add_argument(
        "image", nargs="?", type=Path, metavar="IMAGE", help="the small image; made from the original if left out"
    )
    command.add_argument("--hr", type=Path, metavar="ORIGINAL", help="its original, SCALE times as large")
    command.add_argument(
        "--detail",
        type=square,
        metavar="X,Y,SIDE",
        help="in pixels of the result; default: where EDSR and bicubic differ most",
    )
    command.add_argument("--html", action="store_true", help="a page with a slider, in one file, instead of the figure")
    command.add_argument("-o", "--output", metavar="FILE|DIR", help="default: NAME_compare.png or .html beside it")
    command.add_argument("--overwrite", action="store_true", help="replace an existing file")


def add_evaluate(commands, parents) -> None:
    command = commands.add_parser(
        "evaluate",
        parents=parents,
        help="PSNR and SSIM on a folder of originals",
        description="Scores beside bicubic's. Reduced images are made as MATLAB's imresize does, unless given.",
        epilog="Example: python cli.py evaluate --hr Set5/HR --scale 2",
    )
    command.add_argument("--hr", required=True, metavar="DIR", help="the originals")
    command.add_argument("--lr", metavar="DIR", help="their reductions, NAME.png or NAMEx2.png")
    command.add_argument(
        "--protocol",
        default="y",
        choices=("y", "rgb", "div2k"),
        help="y: luma, border of SCALE pixels left out, as for Set5 and Set14; rgb; div2k: rgb, border of 6 + SCALE",
    )
    command.add_argument("--json", action="store_true", help="one JSON document on standard output")


def add_train(commands, parents) -> None:
    command = commands.add_parser(
        "train",
        parents=parents,
        formatter_class=Defaults,
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

    add(command, "data", nargs="+")
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
    add(images, "val")
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


def add_info(commands, parents) -> None:
    info = commands.add_parser("info", parents=parents, help="what a weights file, or a mixture of them, holds")
    info.add_argument("file", metavar="FILE", help=".safetensors, .pt or .pth, packaged name or NAME:SHARE+NAME:SHARE")
    info.add_argument("--scale", type=int, choices=(2, 3, 4), help="of packaged weights (2)")
    info.add_argument("--json", action="store_true", help="as one JSON document")


def add_convert(commands, parents) -> None:
    convert = commands.add_parser(
        "convert",
        parents=parents,
        help="bring another project's checkpoint into this one's layout",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Reads checkpoints of EDSR-PyTorch, torchSR, BasicSR, super-image and mmagic, and mixtures.",
        epilog="examples:\n"
        "  python cli.py convert edsr_x4.pt edsr_x4.safetensors\n"
        "  python cli.py convert edsr-baseline:0.3+edsr-photo:0.7 mine.safetensors --scale 3",
    )
    convert.add_argument("input", metavar="IN", help="a checkpoint, a packaged name, or NAME:SHARE+NAME:SHARE")
    convert.add_argument("output", metavar="OUT", help="a .safetensors file")
    convert.add_argument(
        "--residual-scale",
        type=float,
        metavar="X",
        help="where the file does not tell (0.1 for 256 features)",
    )
    convert.add_argument("--scale", type=int, choices=(2, 3, 4), help="of packaged weights (2)")
    convert.add_argument("--half", action="store_true", help="store as fp16, half the size")
    convert.add_argument("--overwrite", action="store_true", help="replace an existing OUT")

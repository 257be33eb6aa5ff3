"""The command line's arguments. Imports no torch, so that --help answers at once."""

import argparse
import sys
from pathlib import Path

from edsr import __version__

from .arguments import (
    EXECUTION,
    LineParser,
    add_residual_scale,
    add_threads,
    devices,
    factor,
    fraction,
    image_format,
    int_between,
    square,
    tile,
    value_range,
)
from .arguments import device as device_name
from .export import add_export
from .prepare import add_prepare
from .study import add_study
from .train_options import add_train


def program_name() -> str:
    """How this program was started, for examples that can be copied."""
    path = Path(sys.argv[0])
    if path.name == "cli.py":
        return "python cli.py"
    return "python -m edsr" if path.parts[-2:] == ("edsr", "__main__.py") else "edsr"


def build_parser() -> LineParser:
    """The parser of all commands."""
    parser = LineParser(
        prog=program_name(),
        description="Makes images 2, 3 or 4 times larger with EDSR (Lim et al. 2017), exactly, whatever their size.",
        epilog="Start with: %(prog)s upscale photo.png. For the options of a command: %(prog)s COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"edsr-triton {__version__}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    parser.commands = commands.choices
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument_group(EXECUTION).add_argument(
        "--debug", action="store_true", help="show the traceback of an error"
    )
    quiet = argparse.ArgumentParser(add_help=False)
    quiet.add_argument("--quiet", action="store_true", help="print errors only")
    device = argparse.ArgumentParser(add_help=False)
    device.add_argument(
        "--device",
        type=device_name,
        default="auto",
        metavar="NAME",
        help="auto, cpu, cuda, cuda:N or mps; default: auto, the fastest here",
    )
    network = argparse.ArgumentParser(add_help=False)
    network.add_argument(
        "--scale", type=int, choices=(2, 3, 4), help="how many times larger; default: as the weights file has it, or 2"
    )
    # Each command its own: a parent's default, once changed, would be changed for all.
    form = "NAME|FILE|NAME:SHARE+..."
    names = "a packaged network, a weights file, a folder or hf-hub:USER/NAME in the layout of the Hugging Face Hub, "
    names += "or a mixture such as edsr-baseline:0.3+edsr-photo:0.7"
    fixed = argparse.ArgumentParser(add_help=False)
    fixed.add_argument(
        "--model",
        metavar=form,
        action="append",
        help=f"{names}; given several times, networks stand side by side; default: edsr-baseline",
    )
    chosen, compared = argparse.ArgumentParser(add_help=False), argparse.ArgumentParser(add_help=False)
    auto = (
        f"{names}; auto, the default, takes edsr-baseline for lossless images and mixes in edsr-photo for "
        "JPEG, WebP, AVIF and HEIC, the more the stronger the file was compressed"
    )
    chosen.add_argument("--model", metavar=form, default="auto", help=auto)
    compared.add_argument(
        "--model", metavar=form, action="append", help=f"{auto}; given several times, networks stand side by side"
    )
    strength = (
        "how strongly compression artifacts and noise are removed: 0 is edsr-baseline, faithful to every pixel, 1 "
        "is edsr-photo; default: chosen for each image, see --model auto"
    )
    for group in chosen, compared:
        group.add_argument("--strength", type=fraction, metavar="0..1", help=strength)
    execution = network.add_argument_group(EXECUTION)
    add_residual_scale(execution)
    execution.add_argument(
        "--tile",
        type=tile,
        default="auto",
        metavar="N|auto",
        help="use less memory: at most N x N pixels at once, N from 32 on; the result is the same; default: auto",
    )
    execution.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "fp16", "bf16"),
        help="what is computed in; default: auto, which is fp16 on CUDA and fp32 elsewhere",
    )
    execution.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "torch", "triton", "winograd"),
        help="which program parts compute: triton (for NVIDIA GPUs), winograd (for CPUs) or torch (PyTorch, for all); "
        "default: auto, the fastest that can be had",
    )
    add_threads(execution)
    network.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average the results for 8 flips and rotations of the image: slightly better, 8 times slower",
    )
    add_upscale(commands, [common, quiet, network, chosen])
    add_compare(commands, [common, quiet, device, network, compared])
    add_evaluate(commands, [common, device, network, fixed])
    add_train(commands, [common, quiet])
    add_prepare(commands, [common, quiet])
    add_study(commands, [common, quiet, device])
    add_info(commands, [common])
    add_convert(commands, [common, quiet])
    add_export(commands, [common, quiet])
    return parser


def add_upscale(commands, parents) -> None:
    command = commands.add_parser(
        "upscale",
        parents=parents,
        usage="%(prog)s INPUT... [-o OUTPUT] [--scale 2|3|4] [options]",
        help="make images larger",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes NAME_x2.png beside each image. Existing files are only replaced with --overwrite. An\n"
        "input that fails is reported, and the others go on.\n"
        "Exit code 0: all done, 1: something failed, 2: wrong usage, 130: interrupted.",
        epilog="examples:\n"
        "  %(prog)s photo.jpg\n"
        "  %(prog)s scan.tif -o large.tif --scale 4 --tile 512\n"
        "  %(prog)s photos/ -o large/ --recursive --skip-existing\n"
        "  %(prog)s photo.jpg --width 3840 --format jpg --quality 92\n"
        "  %(prog)s - < small.jpg > large.png\n"
        "  %(prog)s old.jpg --strength 1\n"
        "  %(prog)s blocky.jpg --outscale 1 --strength 0.8    cleaned, at its own size",
    )
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="PNG, JPEG, WebP, TIFF or AVIF images, folders of them, patterns such as 'in/*.png', URLs of these "
        "(s3://, gs://, https://), @list.txt with one of these in each line, or - for standard input",
    )
    command.add_argument(
        "--device",
        type=devices,
        default="auto",
        metavar="NAME[,NAME...]|all",
        help="auto (the fastest here, the default), cpu, cuda, cuda:N or mps; several, such as cuda:0,cuda:1, or all "
        "GPUs share the files, or the columns of a single one",
    )
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be written: sizes, network, about how much time and memory; compute and write nothing",
    )
    output = command.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        metavar="FILE|DIR/|URL|-",
        help="a file, whose extension chooses the format; a folder, which is made if need be; the URL of one of these "
        "(s3://, gs://); or - for standard output",
    )
    output.add_argument(
        "--format",
        type=image_format,
        choices=("keep", "png", "jpg", "webp", "tiff", "avif"),
        help="of the results; keep: each image's own, and its kind of compression; default: png",
    )
    output.add_argument(
        "--quality", type=int_between(1, 100), metavar="N", help="1 to 100; default: 95 for JPEG and WebP, 90 for AVIF"
    )
    output.add_argument("--overwrite", action="store_true", help="replace existing files")
    output.add_argument("--json", action="store_true", help="one JSON line per file on standard output")
    size = command.add_argument_group(
        "size", "any size: the image is upscaled by the next larger network and then reduced (Lanczos)"
    )
    size.add_argument("--outscale", type=factor, metavar="X", help="how many times larger, such as 2.5")
    size.add_argument(
        "--width", type=int_between(1, 10**8), metavar="N", help="pixels; the height follows, unless given too"
    )
    size.add_argument("--height", type=int_between(1, 10**8), metavar="N", help="pixels")
    size.add_argument(
        "--fit", action="store_true", help="keep the proportions: as large as --width and --height together allow"
    )
    size.add_argument("--linear-light", action="store_true", help="reduce in linear light, not in sRGB's values")
    batch = command.add_argument_group("batch")
    batch.add_argument(
        "--recursive", action="store_true", help="go into folders of folders; below -o DIR/ the same tree is made"
    )
    batch.add_argument(
        "--skip-existing",
        action="store_true",
        help="skip images whose result exists: resumes a batch; --overwrite does not change that, but replaces "
        "what else is in a result's place",
    )
    batch.add_argument(
        "--again", action="store_true", help="upscale results of earlier runs (NAME_x2.png) that lie in folders, too"
    )
    cluster = command.add_argument_group(
        "several machines", "see docs/cluster.md; needs: pip install 'edsr-triton[cluster]'"
    )
    cluster.add_argument(
        "--engine",
        choices=("ray",),
        help="ray: share the files among the workers of a Ray cluster, one for each GPU or group of --threads cores; "
        "without --address among processes on this machine",
    )
    cluster.add_argument(
        "--address", metavar="HOST:PORT|auto", help="of the cluster; auto is the one that this machine is part of"
    )
    unusual = command.add_argument_group("unusual files")
    unusual.add_argument(
        "--range",
        type=value_range,
        metavar="LOW,HIGH",
        help="the values of black and white in TIFFs of floating-point samples, written as --range=LOW,HIGH; results "
        "in floating point have the same range; default: 0,1",
    )
    unusual.add_argument(
        "--salvage", action="store_true", help="give what is left of a damaged image, and say so, instead of failing"
    )
    unusual.add_argument(
        "--unlimited",
        action="store_true",
        help="read images that claim very many pixels for the bytes of their file, such as huge ones of a single color",
    )


def add_compare(commands, parents) -> None:
    command = commands.add_parser(
        "compare",
        parents=parents,
        usage="%(prog)s [IMAGE] [--hr ORIGINAL] [--html] [options]",
        help="show bicubic, EDSR and the original in one figure, or on a page with a slider",
        description="Writes NAME_compare.png: the image by bicubic interpolation and by EDSR, with a detail magnified. "
        "With --hr also the original, and PSNR and SSIM (on luma, a border of SCALE pixels left out).",
        epilog="Example: %(prog)s --hr Set5/HR/003.png --html",
    )
    command.add_argument("image", nargs="?", metavar="IMAGE", help="the small image; default: made from the original")
    command.add_argument("--hr", metavar="ORIGINAL", help="the high-resolution original, SCALE times as large")
    command.add_argument(
        "--detail",
        type=square,
        metavar="X,Y,SIDE",
        help="the detail, in pixels of the result; default: where EDSR and bicubic differ most",
    )
    command.add_argument("--html", action="store_true", help="write a web page with a slider, in one file, instead")
    command.add_argument("-o", "--output", metavar="FILE|DIR", help="default: NAME_compare.png or .html beside it")
    command.add_argument("--save", metavar="DIR", help="keep the images themselves, too, as NAME_bicubic.png and so on")
    command.add_argument("--overwrite", action="store_true", help="replace existing files")


def add_evaluate(commands, parents) -> None:
    command = commands.add_parser(
        "evaluate",
        parents=parents,
        usage="%(prog)s --hr DIR|FILE.h5 [--lr DIR] [options]",
        help="score a network: PSNR and SSIM on a folder of images",
        description="Upscales low-resolution images and compares the results with the originals; bicubic's scores\n"
        "stand beside. Low-resolution images are made as MATLAB does, unless --lr or the HDF5 file has them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  %(prog)s --hr Set5/HR --scale 2\n"
        "  %(prog)s --hr Set5/HR --lr Set5/LR_bicubic --model edsr-baseline --model runs/x2/best.safetensors\n"
        "  %(prog)s --hr Set5_x2.h5 --scale 2",
    )
    command.add_argument(
        "--hr",
        required=True,
        metavar="DIR|FILE.h5",
        help="the high-resolution originals, or an HDF5 file of these (hr) and their low-resolution images (lr)",
    )
    command.add_argument("--quiet", action="store_true", help="print scores and errors only")
    command.add_argument(
        "--lr",
        metavar="DIR",
        help="their low-resolution images, NAME.png, NAMEx2.png or the like, or a folder that has X2, LRbicx2, "
        "LR_bicubic/X2 or the like for the scale",
    )
    command.add_argument(
        "--protocol",
        default="y",
        choices=("y", "edsr", "rgb", "div2k"),
        help="y, the default: luma as MATLAB rounds it, a border of SCALE pixels left out, as most papers score Set5 "
        "and Set14; edsr: as EDSR-PyTorch does, luma not rounded, gray images as RGB (0.02 to 0.12 dB more); rgb: the "
        "same border, on RGB; div2k: on RGB, a border of 6 + SCALE",
    )
    command.add_argument(
        "--save", metavar="DIR", help="keep the results as NAME_x2.png in DIR, or in DIR/MODEL/ of each"
    )
    command.add_argument("--overwrite", action="store_true", help="replace existing files in DIR")
    command.add_argument("--json", action="store_true", help="one JSON document for each model, each on its own line")


def add_info(commands, parents) -> None:
    info = commands.add_parser("info", parents=parents, help="show what a weights file, or a mixture, holds")
    info.add_argument(
        "file", metavar="FILE", help=".safetensors, .pt, .pth, a folder, a packaged name, or NAME:SHARE+NAME:SHARE"
    )
    info.add_argument("--scale", type=int, choices=(2, 3, 4), help="of packaged weights; default: 2")
    add_residual_scale(info)
    info.add_argument("--json", action="store_true", help="one JSON document on standard output")


def add_convert(commands, parents) -> None:
    convert = commands.add_parser(
        "convert",
        parents=parents,
        help="convert a checkpoint from another project or for one, or store a mixture",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Reads checkpoints of EDSR-PyTorch, torchSR, BasicSR, super-image and mmagic, and mixtures, and\n"
        "writes a weights file for --model, or a checkpoint for EDSR-PyTorch (.pt) or BasicSR (.pth).",
        epilog="examples:\n"
        "  %(prog)s edsr_x4.pt edsr_x4.safetensors\n"
        "  %(prog)s runs/x2/best.safetensors mine.pth\n"
        "  %(prog)s edsr-baseline:0.3+edsr-photo:0.7 mine.safetensors --scale 3",
    )
    convert.add_argument("input", metavar="IN", help="a checkpoint, a packaged name, or NAME:SHARE+NAME:SHARE")
    convert.add_argument("output", metavar="OUT", help="a .safetensors, .pt or .pth file")
    add_residual_scale(convert)
    convert.add_argument("--scale", type=int, choices=(2, 3, 4), help="of packaged weights; default: 2")
    convert.add_argument("--half", action="store_true", help="store as fp16, which takes half the space")
    convert.add_argument("--overwrite", action="store_true", help="replace an existing OUT")

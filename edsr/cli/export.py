"""The command `export`: writes a network for another runtime, and tries it there."""

import argparse
import logging
import os
from argparse import Namespace
from pathlib import Path

from .arguments import add_residual_scale
from .checks import check_named_files
from .console import print_result

log = logging.getLogger(__name__)

RUNTIMES = {".onnx": ("ONNX Runtime", "onnx"), ".param": ("ncnn", "ncnn")}
"""By the ending of a file: what runs it, and the extra that brings that."""


def add_export(commands, parents) -> None:
    command = commands.add_parser(
        "export",
        parents=parents,
        usage="%(prog)s MODEL -o FILE.onnx|NAME.param [--scale 2|3|4] [options]",
        help="write a network for other runtimes: ONNX, or ncnn",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes a network as ONNX (opset 17), or for ncnn (NAME.param, NAME.bin, and NAME.json that says\n"
        "what they are): RGB float in and out, of any size; mean shift and range are inside. Where ONNX Runtime, or\n"
        "ncnn, is installed, the file is run and compared with our own result first; a wrong one is not left.",
        epilog="examples:\n"
        "  %(prog)s edsr-baseline -o edsr_x2.onnx\n"
        "  %(prog)s edsr-photo -o photo_x4.onnx --scale 4 --precision fp16\n"
        "  %(prog)s edsr-photo -o photo_x4.param --scale 4\n"
        "  %(prog)s runs/x2/best.safetensors -o mine.onnx --range 255",
    )
    command.add_argument("model", metavar="MODEL", help="a packaged name, a weights file, or NAME:SHARE+NAME:SHARE")
    command.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="the file to write: .onnx, or .param for ncnn"
    )
    command.add_argument("--scale", type=int, choices=(2, 3, 4), help="of packaged weights; default: 2")
    add_residual_scale(command)
    command.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "fp16"),
        help="fp16: weights of 16 bits, half the size, and in ONNX convolutions, too; what goes in and out stays fp32; "
        "default: fp32",
    )
    command.add_argument(
        "--collapsed",
        action="store_true",
        help="upsampler and tail as one convolution: less work, but the outermost ring of pixels is not exact",
    )
    command.add_argument(
        "--range", type=int, default=1, choices=(1, 255), help="the value that is white, in and out; default: 1"
    )
    command.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run_export(options: Namespace) -> int:
    check_named_files(options)

    from edsr.errors import ExportError
    from edsr.system import why_unwritable_file

    output, model_file = Path(options.output), Path(options.model)
    ending = output.suffix.lower()
    if ending not in RUNTIMES:
        raise ExportError(f"{output}: name a file that ends in {' or '.join(RUNTIMES)}", misuse=True)
    for path in [output] if ending == ".onnx" else [output.with_suffix(e) for e in (".param", ".bin", ".json")]:
        if os.path.lexists(path) and not options.overwrite:
            raise ExportError(f"{path} exists; add --overwrite to replace it")
        if model_file.exists() and path.exists() and path.samefile(model_file):
            raise ExportError(f"{path} is the network itself; choose another name", misuse=True)
        if why := why_unwritable_file(path):
            raise ExportError(f"{path}: {why}")

    from . import progress

    with progress.starting(options.quiet):
        from edsr.export import write_ncnn, write_onnx
        from edsr.weights import load_model, read_info, source_files

        chosen = {"scale": options.scale, "residual_scale": options.residual_scale}
        model = load_model(options.model, **chosen)
        info = read_info(options.model, **chosen)
        write = write_onnx if ending == ".onnx" else write_ncnn
        made = write(
            model,
            output,
            precision=options.precision,
            collapsed=options.collapsed,
            span=options.range,
            training=info["training"],
            terms=info["terms"],
            sources=source_files(options.model, options.scale),
        )
    scale, named = model.config.scale, scale_by_name(output.stem)
    if ending == ".param" and named not in (None, scale):
        log.warning("%s: tools that go by the name take this for x%d, and it is x%d; rename it", output, named, scale)
    if not options.quiet:
        print_result(str(made.path), f"  {describe_error(made.error, made.ring, *RUNTIMES[ending])}")
    return 0


def scale_by_name(name: str) -> int | None:
    """The scale that upscayl and its command line take a network of this name for, None if none is in it."""
    return next((s for s in (1, 2, 3, 4, 8, 16) if f"x{s}" in name or f"{s}x" in name), None)


def describe_error(error: float | None, ring: float | None, runtime: str, extra: str) -> str:
    """What trying a file has shown."""
    if error is None:
        return f"not tried: pip install 'edsr-triton[{extra}]'"
    inner = f"{runtime}'s result is ours to {error:.2g} of white"
    return inner if ring is None else f"{inner}; in the outermost ring of pixels noise is off by up to {ring:.2g}"

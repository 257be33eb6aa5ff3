"""The command `export`: writes a network as an ONNX file, and tries it."""

import argparse
from argparse import Namespace
from pathlib import Path

from .arguments import add_residual_scale
from .checks import check_named_files
from .console import print_result


def add_export(commands, parents) -> None:
    command = commands.add_parser(
        "export",
        parents=parents,
        usage="%(prog)s MODEL -o FILE.onnx [--scale 2|3|4] [options]",
        help="write a network as an ONNX file for other runtimes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes a network as ONNX (opset 17): RGB float in and out, [batch, 3, height, width] of any\n"
        "size; mean shift and range are inside the file. Where ONNX Runtime is installed, the file is run and\n"
        "compared with our own result first; a wrong one is not left.",
        epilog="examples:\n"
        "  %(prog)s edsr-baseline -o edsr_x2.onnx\n"
        "  %(prog)s edsr-photo -o photo_x4.onnx --scale 4 --precision fp16\n"
        "  %(prog)s runs/x2/best.safetensors -o mine.onnx --range 255",
    )
    command.add_argument("model", metavar="MODEL", help="a packaged name, a weights file, or NAME:SHARE+NAME:SHARE")
    command.add_argument("-o", "--output", required=True, metavar="FILE.onnx", help="the file to write")
    command.add_argument("--scale", type=int, choices=(2, 3, 4), help="of packaged weights; default: 2")
    add_residual_scale(command)
    command.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "fp16"),
        help="fp16: weights and convolutions of 16 bits, half the size; what goes in and out stays fp32; default: fp32",
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

    output = Path(options.output)
    if output.exists() and not options.overwrite:
        raise ExportError(f"{output} exists; add --overwrite to replace it")
    if why := why_unwritable_file(output):
        raise ExportError(f"{output}: {why}")

    from . import progress

    with progress.starting(options.quiet):
        from edsr.export import write_onnx
        from edsr.weights import load_model, read_info, source_files

        chosen = {"scale": options.scale, "residual_scale": options.residual_scale}
        model = load_model(options.model, **chosen)
        info = read_info(options.model, **chosen)
        made = write_onnx(
            model,
            output,
            precision=options.precision,
            collapsed=options.collapsed,
            span=options.range,
            training=info["training"],
            terms=info["terms"],
            sources=source_files(options.model, options.scale),
        )
    if not options.quiet:
        print_result(str(output), f"  {describe_error(made.error, made.ring)}")
    return 0


def describe_error(error: float | None, ring: float | None) -> str:
    """What trying a file has shown."""
    if error is None:
        return "not tried: pip install onnxruntime"
    if ring is None:
        return f"ONNX Runtime's result is ours to {error:.2g} of white"
    inner = f"ONNX Runtime's result is ours to {error:.2g} of white"
    return f"{inner}; in the outermost ring of pixels noise is off by up to {ring:.2g}"

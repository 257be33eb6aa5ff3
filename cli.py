"""The command line: python cli.py upscale | evaluate | train | info | convert. `--help` after each tells more."""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

# torch takes seconds to import: the handlers import what they need, so that --help answers at once.


def main(argv: list[str] | None = None) -> int:
    """Runs one command; gives the exit code: 0 done, 1 something failed, 2 misuse, 130 interrupted."""
    options = build_parser().parse_args(argv)
    # SIGTERM unwinds like Ctrl-C: half-written files are removed, a training run saves its state.
    with contextlib.suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nobody is left to tell
        return 1
    except Exception as error:
        if options.debug or not is_expected(error):
            raise
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1


def is_expected(error: Exception) -> bool:
    """Whether an error is about the user's files, devices or options, and its message is meant for them."""
    import torch

    from edsr import EngineError, WeightsError
    from edsr.checkpoint import CheckpointError
    from edsr.data import DataError
    from edsr.evaluate import EvaluateError
    from edsr.imageio import ImageError
    from edsr.train import TrainError

    ours = (ImageError, WeightsError, EngineError, DataError, EvaluateError, TrainError, CheckpointError)
    return isinstance(error, (*ours, OSError, MemoryError, torch.OutOfMemoryError))


def describe(error: Exception) -> str:
    """One line for a person."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "out of memory; try a smaller --tile"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


# --- upscale


def run_upscale(options) -> int:
    from edsr import Upscaler, load_model, progress
    from edsr.batch import jobs

    model = load_model(options.model, options.scale)
    batch = jobs(options.inputs, options.output, model.config.scale, options.recursive)
    upscaler = Upscaler(model, options.device, options.precision, options.backend, options.tile)
    upscaler.say = lambda line: None if options.quiet else print(line, file=sys.stderr)
    upscaler.warm_up(upscaler.say)
    failures, skipped = [], 0
    with progress.bar(options.quiet) as bar:
        for source, output in batch:
            if options.skip_existing and output.exists():
                skipped += 1
                continue
            record: dict = {"input": str(source)} | dict.fromkeys(RESULTS)
            record |= {"device": str(upscaler.device), "precision": upscaler.precision}
            record |= {"backend": upscaler.backend, "error": None}
            try:
                record |= upscale_file(upscaler, source, output, options, bar)
            except Exception as error:
                if options.debug or not is_expected(error):
                    raise
                record["error"] = describe(error)
                failures.append(record["error"])
                print(f"error: {record['error']}", file=sys.stderr)
            if options.json:
                print(json.dumps(record), flush=True)
            elif not options.quiet and record["error"] is None:
                print(
                    f"{record['output']}  {record['output_size'][0]} x {record['output_size'][1]}, "
                    f"{record['seconds']:.1f} s, {record['megapixels_per_second']:.2f} Mpx/s"
                )
    if len(batch) > 1 and not options.quiet:
        done = len(batch) - len(failures) - skipped
        parts = [f"{done} of {len(batch)} pictures done"]
        parts += [f"{skipped} there already"] if skipped else []
        parts += [f"{len(failures)} failed:"] if failures else []
        print(", ".join(parts), file=sys.stderr)
        for line in failures:
            print(f"  {line}", file=sys.stderr)
    return 1 if failures else 0


RESULTS = (
    "output",
    "input_size",
    "output_size",
    "seconds",
    "megapixels_per_second",
)  # null where a file failed


def upscale_file(upscaler, source: Path, output: Path, options, bar) -> dict:
    """One picture from file to file; gives the part of the JSON record that depends on it."""
    from edsr.imageio import Reader, Writer

    start = time.perf_counter()
    with Reader(source) as reader:
        if options.output and Path(options.output).is_dir():  # below it, the tree that is mirrored
            output.parent.mkdir(parents=True, exist_ok=True)
        s, (width, height) = upscaler.scale, (reader.width, reader.height)
        with Writer(output, s * width, s * height, reader.channels, like=reader, overwrite=options.overwrite) as writer:
            bar.start(source.name, width, height)
            arriving = reader.rows(upscaler.band_rows(width))
            for rows in upscaler.bands(arriving, width, options.self_ensemble):
                writer.write(rows)
                bar.advance(len(rows) // s)
    seconds = time.perf_counter() - start
    speed = width * height / 1e6 / seconds
    values = str(output), [width, height], [s * width, s * height], round(seconds, 4), round(speed, 4)
    return dict(zip(RESULTS, values, strict=True))


# --- evaluate


def run_evaluate(options) -> int:
    from edsr import Upscaler, load_model
    from edsr.evaluate import FIELDS, evaluate, mean

    model = load_model(options.model, options.scale)
    upscaler = Upscaler(model, options.device, options.precision, options.backend, options.tile)
    upscaler.warm_up(lambda line: print(line, file=sys.stderr))
    images = []
    if not options.json:
        print(f"{'':24}{'PSNR':>9}{'SSIM':>9}{'bicubic':>10}{'SSIM':>9}")
    for image in evaluate(upscaler, options.hr, options.lr, options.protocol, options.self_ensemble):
        images.append(image)
        if not options.json:
            print(score_line(image["name"], image), flush=True)
    means = mean(images)
    if options.json:
        print(json.dumps({"images": images, "mean": {field: means[field] for field in FIELDS}}))
    else:
        print(score_line(f"mean of {len(images)}", means))
    return 0


def score_line(name: str, scores: dict) -> str:
    psnr, ssim, bicubic_psnr, bicubic_ssim = (scores[f] for f in ("psnr", "ssim", "bicubic_psnr", "bicubic_ssim"))
    return f"{name[:23]:24}{psnr:9.2f}{ssim:9.4f}{bicubic_psnr:10.2f}{bicubic_ssim:9.4f}"


# --- train


def run_train(options) -> int:
    from dataclasses import fields

    from edsr.progress import training_bar
    from edsr.train import TrainOptions, train

    chosen = {field.name: getattr(options, field.name) for field in fields(TrainOptions)}
    chosen |= {"data": tuple(options.data)}
    # Of several processes under torchrun one speaks.
    quiet = options.quiet or os.environ.get("RANK", "0") != "0"

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    progress, stopping = None, False

    def stop(*_) -> None:
        nonlocal stopping
        if progress is None or stopping:  # nothing to save yet, or somebody in a hurry
            raise KeyboardInterrupt
        stopping = True

    for name in signal.SIGINT, signal.SIGTERM:
        signal.signal(name, stop)
    steps = train(TrainOptions(**chosen), say, lambda: stopping)
    with contextlib.closing(steps), training_bar(quiet, options.steps) as bar:
        for progress in steps:
            bar.show(progress.step, progress.loss, progress.speed, progress.psnr)
            if progress.psnr is not None:
                say(f"step {progress.step}: loss {bar.loss:.5f}, validation {progress.psnr:.3f} dB")
    if progress is not None and not progress.finished:
        why = "interrupted" if stopping else f"stopped after {options.minutes:g} minutes"
        say(f"{why} and saved at step {progress.step} of {options.steps}; continue with --resume")
        return 130 if stopping else 0
    say(f"{Path(options.out) / 'best.safetensors'} is ready for upscale --model")
    return 0


# --- info, convert


def run_info(options) -> int:
    from edsr.weights import read_info

    info = read_info(options.file)
    if options.json:
        print(json.dumps(info))
        return 0
    for name, value in info.items():
        print(f"{name:16}{', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")
    return 0


def run_convert(options) -> int:
    import torch

    from edsr import WeightsError, load_model, save_model
    from edsr.weights import read_info

    output = Path(options.output)
    if output.suffix != ".safetensors":
        raise WeightsError(f"{output}: weights are written as .safetensors; give such a name")
    if output.exists() and not options.overwrite:
        raise WeightsError(f"{output} exists; add --overwrite to replace it")
    model = load_model(options.input, residual_scale=options.residual_scale)
    dtype = torch.float16 if options.half else None
    save_model(model, output, dtype=dtype, training=read_info(options.input).get("training"))
    if not options.quiet:
        print(output)
    return 0


# --- arguments


def tile(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 32:
        raise argparse.ArgumentTypeError("give auto or a whole number of 32 or more")
    return int(text)


def positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError("give a number above 0")


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Tells defaults that are worth telling."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False, True) else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edsr",
        description="Makes pictures 2, 3 or 4 times larger with EDSR (Lim et al. 2017), exactly, whatever their size.",
        epilog="Start with: python cli.py upscale photo.png",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    quiet = argparse.ArgumentParser(add_help=False)
    quiet.add_argument("--quiet", action="store_true", help="print errors only")
    device = argparse.ArgumentParser(add_help=False)
    device.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps", help="default: the fastest here"
    )
    network = argparse.ArgumentParser(add_help=False, parents=[device])
    network.add_argument("--scale", type=int, choices=(2, 3, 4), help="default: the model file's, or 2")
    network.add_argument(
        "--model",
        default="edsr-baseline",
        metavar="NAME|FILE",
        help="packaged name or weights file (%(default)s)",
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
        choices=("auto", "torch", "triton"),
        help="who computes: our Triton kernels (NVIDIA GPUs) or PyTorch",
    )
    network.add_argument(
        "--self-ensemble",
        action="store_true",
        help="mean over 8 flips and turns: slightly better, 8 times slower",
    )
    add_upscale(commands, [common, quiet, network])
    add_evaluate(commands, [common, network])
    add_train(commands, [common, quiet, device])
    add_info(commands, [common])
    add_convert(commands, [common, quiet])
    return parser


def add_upscale(commands, parents) -> None:
    command = commands.add_parser(
        "upscale",
        parents=parents,
        help="make pictures larger",
        description="Writes NAME_x2.png beside each picture. Nothing is overwritten unless told so.",
        epilog="Example: python cli.py upscale scan.tif -o large.tif --scale 4 --tile 512",
    )
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="PNG, JPEG, WebP or TIFF pictures, folders of them, patterns, or @list.txt with one of these in each line",
    )
    command.add_argument("-o", "--output", metavar="FILE|DIR", help="where to; the ending chooses the format")
    command.add_argument("--recursive", action="store_true", help="folders in folders, too; -o gets the same tree")
    command.add_argument("--overwrite", action="store_true", help="replace existing files")
    command.add_argument("--skip-existing", action="store_true", help="leave what is there: resumes a batch")
    command.add_argument("--json", action="store_true", help="one JSON line per file on standard output")
    command.set_defaults(run=run_upscale)


def add_evaluate(commands, parents) -> None:
    command = commands.add_parser(
        "evaluate",
        parents=parents,
        help="PSNR and SSIM on a folder of originals",
        description="Scores beside bicubic's. Reduced pictures are made as MATLAB's imresize does, unless given.",
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
    command.set_defaults(run=run_evaluate)


def add_train(commands, parents) -> None:
    command = commands.add_parser(
        "train",
        parents=parents,
        formatter_class=Defaults,
        help="train a network on folders of pictures",
        description="Writes last.safetensors and best.safetensors into the run's folder, for upscale --model. Ctrl-C "
        "saves; --resume continues. Several GPUs: torchrun --nproc-per-node N cli.py train ...",
        epilog="Example: python cli.py train --data DIV2K_train_HR --out runs/x2",
    )
    command.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="PATH",
        help="folders of high-resolution pictures, DIV2K's folder, or HDF5 files of lr and hr",
    )
    command.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    command.add_argument("--resume", action="store_true", help="continue the run in --out")
    command.add_argument("--minutes", type=positive, metavar="N", help="save and stop after so long")
    network = command.add_argument_group("network")
    network.add_argument("--model", default="edsr-baseline", choices=("edsr-baseline", "edsr"), help="which one")
    network.add_argument("--scale", type=int, default=2, choices=(2, 3, 4), help="how many times larger")
    network.add_argument(
        "--init", metavar="NAME|FILE|none", help="weights to start from (none given: x2's body for x3, x4)"
    )
    recipe = command.add_argument_group("recipe")
    recipe.add_argument("--steps", type=int, default=300_000, help="steps in all")
    recipe.add_argument("--batch", type=int, default=16, help="patches a step, over all processes")
    recipe.add_argument("--patch", type=int, default=48, help="side of a patch in low-resolution pixels")
    recipe.add_argument("--lr", type=positive, default=2e-4, help="learning rate at its peak")
    recipe.add_argument("--loss", default="l1", choices=("l1", "l2", "charbonnier"), help="what is made small")
    recipe.add_argument("--schedule", default="cosine", choices=("cosine", "step"), help="how the learning rate falls")
    recipe.add_argument("--seed", type=int, default=0, help="of weights and patches")
    pictures = command.add_argument_group("pictures")
    pictures.add_argument("--val", metavar="PATH", help="validation pictures (none: some of --data are held back)")
    pictures.add_argument("--crop", type=int, metavar="N", help="cut pictures into squares of N pixels beforehand")
    pictures.add_argument("--cache", metavar="DIR", help="keep decoded pictures there, not in memory")
    machine = command.add_argument_group("execution")
    machine.add_argument("--val-every", type=int, default=1000, metavar="N", help="steps between validations")
    machine.add_argument("--save-every", type=int, default=1000, metavar="N", help="steps between checkpoints")
    machine.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="auto: bf16 on CUDA")
    machine.add_argument("--backend", default="auto", choices=("auto", "torch", "triton"), help="who computes")
    machine.add_argument("--no-graph", dest="graph", action="store_false", help="without CUDA graphs")
    machine.add_argument("--deterministic", action="store_true", help="the same bits in every run, on CUDA too")
    command.set_defaults(run=run_train)


def add_info(commands, parents) -> None:
    info = commands.add_parser("info", parents=parents, help="what a weights file holds")
    info.add_argument("file", metavar="FILE", help=".safetensors, .pt or .pth")
    info.add_argument("--json", action="store_true", help="as one JSON document")
    info.set_defaults(run=run_info)


def add_convert(commands, parents) -> None:
    convert = commands.add_parser(
        "convert",
        parents=parents,
        help="bring another project's checkpoint into this one's layout",
        description="Reads checkpoints of EDSR-PyTorch, torchSR, BasicSR, super-image and mmagic.",
        epilog="Example: python cli.py convert edsr_x4.pt edsr_x4.safetensors",
    )
    convert.add_argument("input", metavar="IN")
    convert.add_argument("output", metavar="OUT", help="a .safetensors file")
    convert.add_argument(
        "--residual-scale",
        type=float,
        metavar="X",
        help="where the file does not tell (0.1 for 256 features)",
    )
    convert.add_argument("--half", action="store_true", help="store as fp16, half the size")
    convert.add_argument("--overwrite", action="store_true", help="replace an existing OUT")
    convert.set_defaults(run=run_convert)


if __name__ == "__main__":
    sys.exit(main())

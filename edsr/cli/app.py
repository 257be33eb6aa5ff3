"""The command line: python cli.py upscale | compare | evaluate | train | info | convert. `--help` tells more."""

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path

from .console import describe, is_expected, print_line, show_log
from .parser import build_parser

# torch takes seconds to import: the handlers import what they need, so that --help answers at once.


def main(argv: list[str] | None = None) -> int:
    """Runs one command; gives the exit code: 0 done, 1 something failed, 2 misuse, 130 interrupted."""
    options = build_parser().parse_args(argv)
    # SIGTERM unwinds like Ctrl-C: half-written files are removed, a training run saves its state.
    with contextlib.suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    show_log(getattr(options, "quiet", False))
    try:
        return HANDLERS[options.command](options)
    except KeyboardInterrupt:
        print_line("interrupted")
        return 130
    except UsageError as error:
        print_line(f"error: {error}")
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nobody is left to tell
        return 1
    except Exception as error:
        if options.debug or not is_expected(error):
            raise
        print_line(f"error: {describe(error)}")
        return 1


class UsageError(Exception):
    """Options that make no sense together; one line that says what to do."""


def use_threads(options) -> None:
    """Sets how many threads compute on a CPU, PyTorch's and ours alike."""
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)


def make_upscaler(options, quiet: bool, model: str | None = None):
    """The network that the options ask for, or another `model` in its place, ready on one device."""
    from edsr.inference import Upscaler
    from edsr.weights import load_model

    use_threads(options)
    network = load_model(model or options.model, options.scale)
    upscaler = Upscaler(network, options.device, options.precision, options.backend, options.tile)
    upscaler.say = lambda line: None if quiet else print_line(line)
    upscaler.warm_up(upscaler.say)
    return upscaler


def requested_choice(options):
    """The Choice that --model and --strength make for all images, or None for auto. Raises UsageError."""
    from edsr.weights import AUTO, Choice, choose_by_strength

    if options.strength is None:
        return None if options.model == AUTO else Choice(options.model, options.model)
    if options.model != AUTO:
        raise UsageError("--strength mixes edsr-baseline and edsr-photo; leave --model out")
    return choose_by_strength(options.strength)


# --- upscale


def run_upscale(options) -> int:
    piped = check_upscale(options)
    wish = requested_choice(options)

    from edsr.batch import (
        Job,
        OutputSize,
        UpscaleOptions,
        UpscalerPool,
        output_path,
        plan_jobs,
        stdin_file,
        stdout_file,
        upscale_files,
    )
    from edsr.devices import ProcessGroup, list_devices

    from . import progress

    use_threads(options)
    group = ProcessGroup.for_files()
    devices = list_devices(group.local_device(options.device))
    size = OutputSize(options.outscale, options.width, options.height)

    def say(line: str) -> None:
        if not options.quiet:
            print_line(line)

    model, said = wish or (options.model, None)
    names = model, options.scale, devices, options.precision, options.backend, options.tile
    networks = UpscalerPool(*names, say, options.outscale or 0, said)
    tag = size.tag(networks.scale)
    outcomes = []
    with contextlib.ExitStack() as stack:
        if "-" in piped:
            source = (
                stack.enter_context(stdin_file(sys.stdin.buffer)) if "-" in options.inputs else Path(*options.inputs)
            )
            folder = source.parent if options.output in (None, "-") else options.output
            output = output_path(source, tag, folder, options.format)
            if options.output in (None, "-"):
                output = stack.enter_context(stdout_file(sys.stdout.buffer, output.suffix))
            batch = [Job(source, output)]
        else:
            batch = plan_jobs(options.inputs, options.output, tag, options.format, options.recursive)
        batch = group.share(batch)
        request = UpscaleOptions(
            size,
            options.linear_light,
            options.quality,
            options.self_ensemble,
            options.overwrite,
            options.skip_existing,
            make_folders=options.output is not None and Path(options.output).is_dir(),  # below it, a tree is mirrored
        )
        with progress.bars(options.quiet or not group.is_main, len(batch)) as bars:
            for outcome in upscale_files(batch, networks, request, bars):
                # A defect of ours is shown whole, but does not end a batch that somebody left to itself.
                defect = outcome.error is not None and not is_expected(outcome.error)
                if outcome.error is not None and (options.debug or (defect and len(batch) == 1)):
                    raise outcome.error
                outcomes.append(record_of(outcome))
                bars.done()
                report(outcomes[-1], options, sys.stderr if "-" in piped else sys.stdout)
    gathered = group.gather(outcomes)
    group.leave()
    everything = [record for records in gathered or [] for record in records]
    if gathered is not None and len(everything) > 1 and not options.quiet:
        print_line(summary(everything))
    return 1 if any(record["error"] for record in outcomes + everything) else 0


def check_upscale(options) -> list[str]:
    """What of "-" is meant for standard input or output. Raises UsageError for options that contradict each other."""
    piped = [name for name in (*options.inputs, options.output) if name == "-"]
    if piped:
        if len(options.inputs) > 1:
            raise UsageError("- is one image: give no other input with it, and no output - for several")
        if "-" in options.inputs and sys.stdin.isatty():
            raise UsageError("-: standard input is a terminal; pipe an image into it")
        if options.output in (None, "-"):
            if sys.stdout.isatty():
                raise UsageError("-: standard output is a terminal; redirect it, or name a file with -o")
            if options.json:
                raise UsageError("--json and the image cannot both go to standard output; name a file with -o")
    if options.outscale and (options.width or options.height):
        raise UsageError("--outscale and --width or --height contradict each other; give one of them")
    return piped


def record_of(outcome) -> dict:
    """The JSON record of a FileResult; what is not known of a file that failed is null."""
    from edsr.batch import STDIN, STDOUT

    source, output = (shown(path, name) for path, name in zip(outcome.job, (STDIN, STDOUT), strict=True))
    record = {"input": source, "output": None, "input_size": None, "output_size": None, "seconds": None}
    record |= {"megapixels_per_second": None, "skipped": outcome.skipped, "warnings": list(outcome.warnings)}
    record |= {"model": outcome.model, "device": outcome.device, "precision": outcome.precision}
    record |= {"backend": outcome.backend, "error": None}
    if outcome.error is not None:
        line = describe(outcome.error).replace(str(outcome.job.source), source).replace(str(outcome.job.output), output)
        return record | {"error": line if source in line or output in line else f"{source}: {line}"}
    record["output"] = output
    if not outcome.skipped:
        record |= {"input_size": list(outcome.input_size), "output_size": list(outcome.output_size)}
        record |= {"seconds": round(outcome.seconds, 4), "megapixels_per_second": round(outcome.speed, 4)}
    return record


def shown(path: Path, name: str) -> str:
    """The path, or the name of the stream that a temporary file stands for."""
    return name if path.stem in ("stdin", "stdout") and path.parent.name.startswith("edsr-") else str(path)


def report(record: dict, options, stream) -> None:
    """What is printed of a file when it has ended."""
    if record["error"]:
        print_line(f"error: {record['error']}")
    if not options.quiet:
        for line in record["warnings"]:
            print_line(f"note: {record['input']}: {line}")
    if options.json:
        print_line(json.dumps(record), sys.stdout)
    elif not options.quiet and record["output_size"]:
        width, height = record["output_size"]
        seconds, speed = record["seconds"], record["megapixels_per_second"]
        print_line(
            f"{record['output']}  {width} x {height}, {seconds:.1f} s, {speed:.2f} Mpx/s, {record['model']}", stream
        )


def summary(records: list[dict]) -> str:
    """How a batch went, failures named again."""
    failures = [record["error"] for record in records if record["error"]]
    skipped = sum(record["skipped"] for record in records)
    parts = [f"{len(records) - len(failures) - skipped} of {len(records)} images done"]
    parts += [f"{skipped} there already"] if skipped else []
    parts += [f"{len(failures)} failed:"] if failures else []
    return "\n".join([", ".join(parts), *(f"  {line}" for line in failures)])


# --- compare


def run_compare(options) -> int:
    wish = requested_choice(options)

    from edsr.evaluation import compare, comparison_path, render_figure, render_page, save_comparison
    from edsr.weights import choose_by_file, choose_by_strength

    from . import progress

    suffix = ".html" if options.html else ".png"
    target = comparison_path(options.image, options.hr, options.output, suffix, options.overwrite)
    scale = options.scale or 2
    if wish is not None:
        model, said = wish
    elif options.image is not None:
        model, said = choose_by_file(options.image, scale, lambda line: None if options.quiet else print_line(line))
    else:
        model, said = choose_by_strength(0)  # the small image is made here, and loses nothing
    upscaler = make_upscaler(options, options.quiet, model)
    with progress.bars(options.quiet, 1) as bars:
        found = compare(upscaler, options.image, options.hr, options.detail, options.self_ensemble, bars)
    if options.html:
        data = render_page(found).encode()
    else:
        file = io.BytesIO()
        render_figure(found).save(file, "PNG")
        data = file.getvalue()
    save_comparison(target, data, options.overwrite)
    if not options.quiet:
        print(target)
        if said != options.model:
            print(f"  {said}")
        for title, (psnr, ssim) in found.scores.items():
            print(f"  {title:10}{psnr:6.2f} dB{ssim:9.4f}")
    return 0


# --- evaluate


def run_evaluate(options) -> int:
    from edsr.evaluation import FIELDS, evaluate, mean_scores

    if options.model == "auto":
        raise UsageError("evaluate scores one network for all images, not auto; name it with --model")
    upscaler = make_upscaler(options, quiet=False)
    images = []
    if not options.json:
        print(f"{'':24}{'PSNR':>9}{'SSIM':>9}{'bicubic':>10}{'SSIM':>9}")
    for image in evaluate(upscaler, options.hr, options.lr, options.protocol, options.self_ensemble):
        images.append(image)
        if not options.json:
            print(score_line(image["name"], image), flush=True)
    means = mean_scores(images)
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
    chosen = training_options(options)
    use_threads(options)

    from edsr.training import TrainConfig, train, write_preview

    from .progress import training_bar

    # Of several processes under torchrun one speaks.
    quiet = options.quiet or os.environ.get("RANK", "0") != "0"
    show_log(quiet)

    def say(line: str) -> None:
        if not quiet:
            print_line(line)

    progress, stopping, interrupted = None, False, None

    def stop(*_) -> None:
        nonlocal stopping
        if progress is None or stopping:  # nothing to save yet, or somebody in a hurry
            raise KeyboardInterrupt
        stopping = True

    def run():
        nonlocal interrupted
        interrupted = yield from train(TrainConfig(**chosen), lambda: stopping)

    for name in signal.SIGINT, signal.SIGTERM:
        signal.signal(name, stop)
    if options.preview:
        write_preview(TrainConfig(**chosen), options.preview)
        return 0
    with contextlib.closing(run()) as steps, training_bar(quiet) as bar:
        for progress in steps:
            bar.show(progress)
            if progress.validated:
                say(f"step {progress.step}: loss {bar.loss:.5f}, validation {progress.validated}")
    if progress is None:  # the run had come to its end before, which was logged
        return 0
    if not progress.finished:  # interrupted here or in another process of the run, or out of time
        why = "interrupted" if interrupted else f"stopped after {options.minutes:g} minutes"
        where = f"step {progress.step} of {progress.steps}"
        say(f"{why} and saved at {where}; continue with --resume {progress.folder}")
        return 130 if interrupted else 0
    say(f"{progress.folder / 'best.safetensors'} is ready for upscale --model")
    return 0


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


# --- info, convert


def run_info(options) -> int:
    from edsr.weights import read_info

    info = read_info(options.file, scale=options.scale)
    if options.json:
        print(json.dumps(info))
        return 0
    for name, value in info.items():
        print(f"{name:16}{', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")
    return 0


def run_convert(options) -> int:
    import torch

    from edsr.errors import WeightsError
    from edsr.weights import load_model, read_info, save_model

    output = Path(options.output)
    if output.suffix != ".safetensors":
        raise WeightsError(f"{output}: weights are written as .safetensors; give such a name")
    if output.exists() and not options.overwrite:
        raise WeightsError(f"{output} exists; add --overwrite to replace it")
    chosen = {"scale": options.scale, "residual_scale": options.residual_scale}
    model = load_model(options.input, **chosen)
    dtype = torch.float16 if options.half else None
    save_model(model, output, dtype=dtype, training=read_info(options.input, **chosen)["training"])
    if not options.quiet:
        print(output)
    return 0


HANDLERS = {
    "upscale": run_upscale,
    "compare": run_compare,
    "evaluate": run_evaluate,
    "train": run_train,
    "info": run_info,
    "convert": run_convert,
}

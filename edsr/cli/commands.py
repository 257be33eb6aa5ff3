"""The commands other than `upscale`: each takes the parsed options and gives the exit code.

torch takes seconds to import: the commands import what they need.
"""

import math
import textwrap
from argparse import Namespace
from pathlib import Path

from edsr.errors import printable
from edsr.strict_json import dumps

from .checks import check_named_files
from .console import UsageError, print_line, print_result, require_output, result_width
from .network import make_upscalers, requested_choices
from .scores import ScoreTable, name_infinite, print_notes

# --- compare


def run_compare(options: Namespace) -> int:
    check_named_files(options)
    requested = requested_choices(options)

    from . import progress

    with progress.starting(options.quiet):
        from edsr.evaluation import (
            compare,
            comparison_files,
            comparison_path,
            default_title,
            encode_png,
            render_figure,
            render_page,
            save_comparison,
            short_names,
        )
        from edsr.weights import AUTO, choose_by_file, choose_by_strength

    suffix = ".html" if options.html else ".png"
    image, original = (None if path is None else Path(path) for path in (options.image, options.hr))
    target = comparison_path(image, original, options.output, suffix, options.overwrite)
    scale = options.scale or 2
    auto = choose_by_strength(0)  # an image that is made here loses nothing
    if image is not None and None in requested:
        auto = choose_by_file(image, scale)
    choices = [choice or auto for choice in requested]
    models = [choice.model for choice in choices]
    with progress.starting(options.quiet):
        networks = make_upscalers(options, models)
    upscalers = networks[0]
    if len(models) > 1:
        pairs = zip(short_names(options.model), networks, strict=True)
        upscalers = {default_title(network, options.self_ensemble, name): network for name, network in pairs}
    sources = [path for path in (image, original) if path]
    kept = {}
    if options.save:
        titles = list(upscalers) if isinstance(upscalers, dict) else [default_title(upscalers, options.self_ensemble)]
        titles = ["bicubic", *titles, *(["original"] if original else [])]
        kept = comparison_files(Path(options.save), sources, titles, options.overwrite)
    with progress.bars(options.quiet, sources[:1]) as bars:
        found = compare(upscalers, image, original, options.detail, options.self_ensemble, bars)
    data = render_page(found).encode() if options.html else encode_png(render_figure(found))
    save_comparison(target, data, options.overwrite, sources)
    for title, path in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_comparison(path, encode_png(found.images[title]), options.overwrite, sources)
    if not options.quiet:
        print_line(*(f"note: {line}" for line in found.warnings))
        print_result(str(target))
        for choice, model in zip(choices, options.model or [AUTO], strict=True):
            if choice.description != model:
                print_result(f"  {choice.description}")
        width = max(map(len, ("EDSR+ x2", *found.scores))) + 2
        for title, (psnr, ssim) in found.scores.items():
            print_result(f"  {title:{width}}{psnr:6.2f} dB" + ("" if math.isnan(ssim) else f"{ssim:9.4f}"))
    return 0


# --- evaluate


def run_evaluate(options: Namespace) -> int:
    check_named_files(options)

    from . import progress

    with progress.starting(options.quiet):
        from edsr.evaluation import (
            ResultFolders,
            evaluate_all,
            list_originals,
            mean_counts,
            mean_scores,
            short_names,
        )
        from edsr.weights import AUTO, FAITHFUL

    models = options.model or [FAITHFUL]
    if AUTO in models:
        raise UsageError("evaluate scores one network for all images, not auto; name it with --model")
    if len(set(models)) < len(models):
        raise UsageError("a network is named twice; name each once with --model")
    if options.overwrite and not options.save:
        raise UsageError("--overwrite is for the images that --save DIR keeps; add that, or leave it out")
    require_output("the scores")
    names = short_names(models)
    with progress.starting(options.quiet):
        upscalers = make_upscalers(options, models)
    scale, keep = upscalers[0].scale, None
    originals = list_originals(Path(options.hr), scale)
    if options.save:
        keep = ResultFolders(Path(options.save), names, originals, scale, options.overwrite).save
    images: list[list[dict]] = [[] for _ in models]
    failed, complete = [], False
    table = None
    chosen = options.hr, options.lr, options.protocol, options.self_ensemble
    try:
        with progress.bars(options.quiet, originals) as bars:
            for found in evaluate_all(upscalers, *chosen, keep, bars):
                bars.done(Path(options.hr, found[0]["name"]))
                if "error" in found[0]:
                    failed.append(found[0])
                    print_line(found[0]["error"])
                    continue
                for scored, image in zip(images, found, strict=True):
                    scored.append(image)
                if not options.quiet:
                    print_notes(names, found)
                if not options.json:  # not before there is a score: an error has no head of a table above it
                    table = table or ScoreTable(models, names, [path.name for path in originals])
                    table.row(found[0]["name"], found)
        complete = True
    finally:  # what was scored before an interruption is given, too
        if options.json:
            how = {"scale": scale} | {
                name: getattr(options, name) for name in ("protocol", "self_ensemble", "hr", "lr")
            }
            for model, scored in zip(models, images, strict=True):
                document = {"images": [name_infinite(image) for image in scored], "failed": failed}
                means, counts = name_infinite(mean_scores(scored)), mean_counts(scored)
                means |= {"counts": counts} if counts else {}
                print_result(dumps({"model": model} | how | document | {"mean": means, "complete": complete}))
    count = len(images[0])
    if count and table:
        title = f"mean of {count}" + (f" of {count + len(failed)}" if failed else "")
        table.row(title, [mean_scores(scored) for scored in images])
    for name, scored in zip(names, images, strict=True):
        counts, whose = mean_counts(scored), f", {name}" if len(names) > 1 else ""
        for kind in "psnr", "ssim":
            if kind in counts and not options.quiet:
                print_line(f"note: mean {kind.upper()}{whose} of {counts[kind]} of {count}, where it is a number")
    if failed:
        total = count + len(failed)
        print_line(f"{len(failed)} of {total} image{'s' * (total != 1)} could not be scored")
    return 1 if failed else 0


# --- info, convert


SOURCES = {
    "file": "stated in the file",
    "given": "as given",
    "found": "found from the weights",
    "assumed": "assumed",
    "any": "makes no difference",
}
"""Where a network's residual scale is from, for people; see `edsr.weights.read_info`."""


def run_info(options: Namespace) -> int:
    require_output("what the file holds")
    check_named_files(options)

    from edsr.weights import available_scales, read_info

    info = read_info(options.file, scale=options.scale, residual_scale=options.residual_scale)
    info["packaged_scales"] = available_scales(options.file)
    if options.json:
        print_result(dumps(info))
        return 0
    notes, packaged = info.pop("notes"), info.pop("packaged_scales")
    if packaged:
        others = " or ".join(str(scale) for scale in packaged if scale != info["scale"])
        packaged_too = ", ".join(map(str, packaged))
        info["scale"] = f"{info['scale']} (packaged: {packaged_too}" + (f"; see --scale {others})" if others else ")")
    info |= describe_terms(info.pop("terms"), info.pop("training"))
    if source := info.pop("residual_scale_source", None):
        info["residual_scale"] = f"{info['residual_scale']} ({SOURCES[source]})"
    for name, value in info.items():
        print_result(*fields_lines(name, describe_value(value)))
    for note in notes:
        print_result(printable(f"note: {note}"))
    return 0


def describe_terms(terms: dict, training: dict | None) -> dict[str, object]:
    """The terms of a file for people, see `edsr.weights.terms`, and what else is known of its training."""
    data, licenses = describe_value(terms["data"]), describe_value(terms["data_licenses"])
    lines: dict[str, object] = {
        "license": terms["license"] or "not stated; ask whoever published the weights",
        "training data": (data or "not stated") + (f", under {licenses}" if licenses else ""),
        "assumed": "; ".join(terms["assumed"]) or "nothing, all is stated",
    }
    lines |= {"origin": f"a file of {terms['origin']}"} if terms["origin"] else {}
    told = {name: value for name, value in (training or {}).items() if name not in ("data", "license", "licenses")}
    return lines | ({"training": told} if told else {})


def describe_value(value: object) -> str:
    """A value of JSON for people: no brackets, and quotes nowhere."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {describe_value(inner)}" for name, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def fields_lines(name: str, text: str) -> list[str]:
    """A name and a text beside it, in as many lines as a terminal needs; elsewhere in one."""
    line, width = printable(f"{name:16}{text}"), result_width()
    if width is None or len(line) <= width:
        return [line]
    lines = textwrap.wrap(line[16:], max(20, width - 16), break_long_words=False, break_on_hyphens=False)
    return [f"{name if i == 0 else '':16}{part}" for i, part in enumerate(lines)]


def run_convert(options: Namespace) -> int:
    check_named_files(options)

    import torch

    from edsr.errors import WeightsError
    from edsr.system import why_unwritable_file
    from edsr.weights import (
        PROJECTS,
        load_model,
        read_info,
        reading_options,
        save_checkpoint,
        save_model,
        source_files,
    )

    output = Path(options.output)
    layout = PROJECTS.get(output.suffix.lower())
    if layout is None and output.suffix.lower() != ".safetensors":
        endings = ".safetensors, as .pt for EDSR-PyTorch, or as .pth for BasicSR"
        raise WeightsError(f"{output}: weights are written as {endings}; give such a name", misuse=True)
    if layout and options.half:
        raise UsageError("--half is for .safetensors; EDSR-PyTorch and BasicSR compute with fp32 weights")
    if output.exists() and not options.overwrite:
        raise WeightsError(f"{output} exists; add --overwrite to replace it")
    chosen = {"scale": options.scale, "residual_scale": options.residual_scale}
    if why := why_unwritable_file(output):
        raise WeightsError(f"{output}: {why}")
    model = load_model(options.input, **chosen)
    info, sources = read_info(options.input, **chosen), source_files(options.input, options.scale)
    if layout:
        save_checkpoint(model, output, sources, info["terms"])
    else:
        dtype = torch.float16 if options.half else None
        save_model(model, output, dtype=dtype, training=info["training"], terms=info["terms"], sources=sources)
    if not options.quiet:
        print_result(str(output), *([f"  {reading_options(model.config, layout)}"] if layout else []))
    return 0

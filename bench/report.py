"""The records in bench/results as Markdown tables: `python -m bench.report [FILE ...] [--chart FILE.svg]`.

Of a GPU's record the whole network comes first, with what was aimed at, then single operations. Training has records of
its own. `--chart` draws the latest record of a GPU.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import NamedTuple

from bench.machine import machine_line
from bench.records import RESULTS, interleaved, read

NOT_MEASURED = "Not yet measured on a GPU."
Column = tuple[str, Callable[[dict], str]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="default: all")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="write a chart of frames per second")
    options = parser.parse_args()
    records = [read(path) for path in options.files or sorted(RESULTS.glob("*.json"))]
    gpus = sorted((record for record in records if record["kind"] == "gpu"), key=lambda r: r["machine"]["date"])
    parts = [render(record) for record in gpus] if gpus or options.files else [NOT_MEASURED]
    print("\n\n".join(parts + [render(record) for record in records if record["kind"] != "gpu"]))
    if options.chart:
        if not gpus:
            print(NOT_MEASURED, file=sys.stderr)
            return 1
        options.chart.parent.mkdir(parents=True, exist_ok=True)
        options.chart.write_text(chart(gpus[-1]), encoding="utf-8")
    return 0


def render(record: dict) -> str:
    if record["kind"] == "check":
        return check_summary(record)
    parts = [machine_line(record["machine"])]
    training = record["kind"] == "training"
    if record["kind"] == "gpu" or (training and record["machine"]["device"] == "cuda"):
        parts.append(targets_table(record))
    parts += [training_table(entry) if training else compare_table(entry) for entry in record.get("workloads", [])]
    parts += [memory_table(record)] if record["kind"].startswith("memory") else []
    parts += [sizes_table(record)] if record["kind"] == "cluster" else []
    parts += [f"{work}: {why}" for work, why in record.get("failed", {}).items()]
    if "not_reached" in record:
        parts.append("No time was left for: " + "; ".join(record["not_reached"]) + ".")
    return "\n\n".join(parts)


# --- tables


def heading(entry: dict) -> str:
    """What was compared, in words."""
    size = f"{entry['width']} x {entry['height']}"
    if "op" in entry:
        return f"{entry['title']}, {entry['features']} features, {size}, {entry['precision']}"
    shape = f"{entry['blocks']} blocks of {entry['features']} features"
    model = f"`{entry['model']}` " if "model" in entry else ""
    return f"{model}x{entry['scale']} of {size}, {shape}, {entry['precision']}"


def rounds_of(entry: dict) -> str:
    """How many rounds the figures of an entry are medians of, in words."""
    in_turns = [case for case in entry["cases"].values() if case.get("turns", "") is not None]
    counts = sorted({len(case["seconds"]) for case in in_turns})
    if not counts:
        return "no rounds yet"
    numbers = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{numbers} interleaved round{'s' * (counts[-1] > 1)}"


def apart(entry: dict) -> list[str]:
    """A line each about cases that were not timed in turns with all others."""
    samples, groups = [], {}
    for case in entry["cases"].values():
        if case.get("turns", "") is None:
            samples.append(case["title"])
        else:
            groups.setdefault((case.get("run"), case.get("turns")), []).append(case["title"])
    lines = [f"Single samples, before any rounds: {'; '.join(samples)}."] if samples else []
    if len(groups) > 1:  # titles have commas
        together = ", ".join(f"({'; '.join(titles)})" for titles in groups.values())
        lines.append(f"Measured apart, in turns only with each other: {together}.")
    return lines


def left_out(entry: dict) -> list[str]:
    return [f"{name}: {why}" for name, why in (entry["incorrect"] | entry["skipped"]).items()]


def digits(value: float) -> str:
    """Three digits that count, or all before the point."""
    if value == 0:
        return "0"  # so slow that nothing is left of a figure; only where a dry run plays the GPU
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def ms(case: dict) -> str:
    return digits(1e3 * case["median"])


def ceiling_of(entry: dict) -> str:
    """What the machine did at best, in words."""
    flops, copied = entry["ceiling"]["gflops"], entry["ceiling"]["gbs"]
    if flops < 1e4:
        return f"Ceiling: {flops:,.0f} GFLOP/s matrix product, {copied:,.0f} GB/s copy."
    return f"Ceiling: {flops / 1e3:,.0f} TFLOP/s matrix product, {copied / 1e3:,.1f} TB/s copy."


def columns(entry: dict) -> list[Column]:
    """Titles of a table's columns after the first, and what they say of a case."""
    ratio = ("speed-up", lambda case: "-" if case["ratio"] is None else f"{case['ratio']:.2f}")
    ceiling = ("of ceiling", lambda case: f"{case['ceiling_percent']:.0f} %")
    peak = ("peak MiB", lambda case: "-" if case["peak_mib"] is None else f"{case['peak_mib']:,.0f}")
    error = ("error", lambda case: f"{case['error']:.0e}")
    if "model" not in entry and "op" not in entry:  # on a CPU
        return [("ms", ms), ratio, ("GFLOP/s", lambda case: f"{case['gflops']:,.0f}"), ceiling, peak, error]
    figures: list[Column] = [ratio, ("TFLOP/s", lambda case: f"{case['gflops'] / 1e3:,.0f}"), ceiling]
    if "op" in entry:  # whose memory depends on what the operation before left in the allocator's pool
        return [("ms", ms), *figures, error]
    return [("ms", ms), ("frames/s", lambda case: digits(1 / case["median"])), *figures, peak, error]


def compare_table(entry: dict) -> str:
    text = f"{heading(entry)}, medians of {rounds_of(entry)}. {ceiling_of(entry)}"
    rows = []
    for case in by_speed(entry):
        title = case["title"] if case["title"].startswith("ours") else f"{case['title']} ({case['version']})"
        rows.append((title, *(show(case) for _, show in columns(entry))))
    head = ("", *(title for title, _ in columns(entry)))
    return "\n\n".join([text, markdown(head, rows), *apart(entry), *left_out(entry)])


def by_speed(entry: dict) -> list[dict]:
    return sorted(entry["cases"].values(), key=lambda case: case["median"])


def training_table(entry: dict) -> str:
    side, per = entry["patch"], 1e3 if entry["ceiling"]["gflops"] >= 1e4 else 1.0  # TFLOP/s of a GPU
    text = (
        f"Training `{entry['model']}` x{entry['scale']}, {entry['blocks']} blocks of {entry['features']} features, "
        f"{entry['batch']} patches of {side} x {side} a step, {entry['gflop']:,.0f} GFLOP. {entry['workers']} workers "
        f"for each DataLoader. Medians of {rounds_of(entry)}. {ceiling_of(entry)}"
    )
    columns: list[Column] = [
        ("", lambda case: case["title"]),
        ("precision", lambda case: case["precision"]),
        ("ms", ms),
        ("speed-up", lambda case: "-" if case["ratio"] is None else f"{case['ratio']:.2f}"),
        ("patches/s", lambda case: digits(case["patches_per_second"])),
        ("TFLOP/s" if per > 1 else "GFLOP/s", lambda case: digits(case["gflops"] / per)),
        ("of ceiling", lambda case: f"{case['ceiling_percent']:.0f} %"),
        ("peak MiB", lambda case: "-" if case["peak_mib"] is None else f"{case['peak_mib']:,.0f}"),
        ("GPU busy", lambda case: "-" if case["busy_percent"] is None else f"{case['busy_percent']:.0f} %"),
        ("loss error", lambda case: f"{case['loss_error']:.0e}"),
        ("gradient error", lambda case: f"{case['gradient_error']:.0e}"),
    ]
    rows = [tuple(show(case) for _, show in columns) for case in by_speed(entry)]
    table = markdown(tuple(title for title, _ in columns), rows)
    return "\n\n".join([text, table, *apart(entry), *left_out(entry)])


def sizes_table(record: dict) -> str:
    """A mix of images' sizes."""
    sizes = record["sizes"]
    shown = [f"{sizes[i * (len(sizes) - 1) // 4]:.3g}" for i in range(5)]
    names = ("images", "smallest, megapixels", "first quarter", "median", "third quarter", "largest", "s per megapixel")
    return markdown(names, [(str(record["images"]), *shown, f"{record['file_seconds_per_megapixel']:.3g}")])


def memory_table(record: dict) -> str:
    text = f"`cli.py upscale --tile {record['tile']}`, {record['model']}: peak memory of the whole process."
    rows = []
    for run in record["runs"]:
        pixels = run["width"] * run["height"] / 1e6
        speed = f"{pixels / run['seconds']:.2f}"
        size = f"{run['width']} x {run['height']}"
        rows.append((size, f"{pixels:.1f}", f"{run['peak_mib']:,.0f}", f"{run['seconds']:.1f}", speed))
    return text + "\n\n" + markdown(("image", "Mpx", "peak MiB", "seconds", "Mpx/s"), rows)


def check_summary(record: dict) -> str:
    """What `bench.verify` found: counts, and each case that was not right."""
    cases, missing = record["cases"], record["not_reached"]
    absent = [name for name, words in cases.items() if words.startswith("not here")]
    bad = [f"{name}: {words}" for name, words in cases.items() if not words.startswith(("off by", "not here"))]
    right = len(cases) - len(absent) - len(bad)
    counts = f"{right} right, {record['incorrect']} wrong, {len(absent)} not here, {len(missing)} not reached"
    lines = [machine_line(record["machine"]), f"Kernels on small images, as they are and narrowed: {counts}."]
    lines += [f"Not here: {'; '.join(absent)}."] if absent else []
    lines += [f"Not reached: {'; '.join(missing)}."] if missing else []
    return "\n\n".join(lines + bad)


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table; columns of numbers are set right."""
    rule = ("---", *("---:",) * (len(head) - 1))
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


# --- what a GPU is to reach


class Target(NamedTuple):
    """measured: from the cases of every work, as one run found them. Raises KeyError, or gives None, where it did not.

    wanted: on an H100, and on any other GPU without an aim of its own. elsewhere: by a part of the GPU's name.
    """

    title: str
    wanted: float
    at_least: bool  # or at most
    unit: str
    measured: Callable[[dict[str, dict[str, dict]]], float | None]
    elsewhere: tuple[tuple[str, float], ...] = ()

    def wanted_on(self, gpu: str) -> float:
        return next((wanted for part, wanted in self.elsewhere if part in gpu), self.wanted)


BASELINE, BASELINE_X4 = "edsr-baseline-x2-1920x1080", "edsr-baseline-x4-1920x1080"
SMALL, FULL = "edsr-baseline-x2-64x64", "edsr-x2-1920x1080"


def faster(cases: dict[str, dict], peer: str, ours: str = "ours") -> float:
    """How many times faster ours is, the median over rounds. Raises KeyError unless both were timed in turns."""
    if not interleaved(cases[peer], cases[ours]):
        raise KeyError(peer)
    pairs = zip(cases[peer]["seconds"], cases[ours]["seconds"], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


TARGETS = [
    Target(
        "`edsr-baseline` x2, 1080p",
        100,
        True,
        "frames/s",
        lambda of: 1 / of[BASELINE]["ours"]["median"],
        (("H200", 110),),
    ),
    Target("the same, over eager channels_last", 4, True, "x", lambda of: faster(of[BASELINE], "channels_last")),
    Target("the same, over torch.compile", 1.8, True, "x", lambda of: faster(of[BASELINE], "compile")),
    Target("the same, over TensorRT", 1.5, True, "x", lambda of: faster(of[BASELINE], "tensorrt")),
    Target(
        "`edsr-baseline` x4, 1080p, its time over that of x2",
        1.1,
        False,
        "x",
        lambda of: of[BASELINE_X4]["ours"]["median"] / of[BASELINE]["ours"]["median"],
    ),
    Target("`edsr` x2, 1080p, of the ceiling", 75, True, "%", lambda of: of[FULL]["ours"]["ceiling_percent"]),
    Target("the same, over torch.compile", 1.2, True, "x", lambda of: faster(of[FULL], "compile")),
    Target("`edsr-baseline` x2, 64 x 64", 0.3, False, "ms", lambda of: 1e3 * of[SMALL]["ours"]["median"]),
    Target("peak memory, 1080p to 4K", 1, False, "GB", lambda of: of[BASELINE]["ours"]["peak_mib"] * 2**20 / 1e9),
]


STEP, FULL_STEP = "training-edsr-baseline-x2-16x48", "training-edsr-x2-16x48"


def faster_of_ours(cases: dict[str, dict], peer: str | None = None) -> str:
    """The step of ours that is taken where both were measured; of those timed in turns with a peer, if one is named.

    Raises KeyError where there is none.
    """
    found = [name for name in ("torch", "triton") if name in cases]
    if peer is not None:
        found = [name for name in found if interleaved(cases[peer], cases[name])]
    if not found:
        raise KeyError("ours")
    return min(found, key=lambda name: cases[name]["median"])


def step_faster(cases: dict[str, dict], peer: str) -> float:
    return faster(cases, peer, faster_of_ours(cases, peer))


TRAINING_TARGETS = [
    Target(
        "step of `edsr-baseline` x2",
        3,
        False,
        "ms",
        lambda of: 1e3 * of[STEP][faster_of_ours(of[STEP])]["median"],
    ),
    Target("the same, over the plain loop", 5, True, "x", lambda of: step_faster(of[STEP], "plain")),
    Target("the same, over torch.compile", 1.5, True, "x", lambda of: step_faster(of[STEP], "compile")),
    Target("the same, GPU busy", 95, True, "%", lambda of: of[STEP][faster_of_ours(of[STEP])]["busy_percent"]),
    Target("step of `edsr` x2, over the plain loop", 5, True, "x", lambda of: step_faster(of[FULL_STEP], "plain")),
    Target("the same, over torch.compile", 1.5, True, "x", lambda of: step_faster(of[FULL_STEP], "compile")),
]


def runs(record: dict) -> list[dict[str, dict[str, dict]]]:
    """The cases of every work as each run found them, the newest run first."""
    found: dict[str, dict[str, dict[str, dict]]] = {}
    for entry in record["workloads"]:
        earlier = [(name, case) for name, cases in entry.get("earlier", {}).items() for case in cases]
        for name, case in [*earlier, *entry["cases"].items()]:
            found.setdefault(case.get("run", ""), {}).setdefault(entry["work"], {})[name] = case
    return [found[run] for run in sorted(found, reverse=True)]


def figure(target: Target, record: dict) -> float | None:
    """What the newest run that can tell has measured; None if none can."""
    for of in runs(record):
        try:
            value = target.measured(of)
        except KeyError:  # one of the figures is missing
            continue
        if value is not None:
            return value
    return None


def targets_table(record: dict) -> str:
    """What this kind of GPU is to reach, beside what was measured."""
    gpu = record["machine"]["name"]
    kind = next((kind for kind in ("H100", "H200") if kind in gpu), f"{gpu}, as on an H100")
    rows = []
    for target in TRAINING_TARGETS if record["kind"] == "training" else TARGETS:
        value, wanted = figure(target, record), target.wanted_on(gpu)
        if value is None:
            measured, met = "not measured", ""
        else:
            measured = f"{value:.3g} {target.unit}"
            met = "yes" if (value >= wanted if target.at_least else value <= wanted) else "no"
        sign = "at least" if target.at_least else "at most"
        rows.append((target.title, f"{sign} {wanted:g} {target.unit}", measured, met))
    return markdown((f"aim on one {kind}", "wanted", "measured", "met"), rows)


# --- chart

WIDTH, BAR, GAP, LEFT, RIGHT = 800, 20, 6, 240, 90
STYLE = """
  text { fill: #1f2328; } .quiet { fill: #59636e; } .bold { font-weight: 600; }
  .paper { fill: #ffffff; stroke: #d1d9e0; }
  .best { fill: #0969da; } .ours { fill: #80b9f7; } .other { fill: #c3cad2; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .quiet { fill: #9198a1; }
    .paper { fill: #0d1117; stroke: #3d444d; }
    .best { fill: #4493f8; } .ours { fill: #2a4f7f; } .other { fill: #4b535d; }
  }
"""


def chart(record: dict) -> str:
    """An SVG image: for each network at 1080p, a bar of frames per second for every way to run it."""
    entries = [e for e in record["workloads"] if "model" in e and e["height"] == 1080 and e["cases"]]
    machine = record["machine"]
    versions = f"{machine['name']}, torch {machine['torch']}, Triton {machine['triton']}, {machine['date']}"
    body = [text(20, 34, "Frames per second, from uint8 image to uint8 image", "bold", size=16)]
    body.append(text(20, 54, f"{versions}. Longer is faster.", "quiet"))
    y = 88
    for entry in entries:
        title = f"{entry['model']} x{entry['scale']}, {entry['width']} x {entry['height']}"
        body.append(text(20, y, title, "bold"))
        y += 10
        fastest = max(1 / case["median"] for case in entry["cases"].values())
        for case in by_speed(entry):
            frames, name = 1 / case["median"], case["title"]
            kind = "best" if name == "ours" else "ours" if name.startswith("ours") else "other"
            length = max(2.0, (WIDTH - LEFT - RIGHT) * frames / fastest)
            strong = "bold" if kind == "best" else ""
            body.append(text(LEFT - 10, y + 15, name, strong, "end"))
            body.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="3" class="{kind}"/>')
            body.append(text(LEFT + length + 8, y + 15, digits(frames), strong))
            y += BAR + GAP
        y += 26
    y -= 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" '
        f'font-family="system-ui, sans-serif" font-size="13">\n<style>{STYLE}</style>\n'
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{y - 1}" rx="6" class="paper"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start", size: int = 13) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} class="{kind}">{escape(words)}</text>'


if __name__ == "__main__":
    sys.exit(main())

"""The records in bench/results as Markdown tables: `python -m bench.report [FILE ...]`."""

import argparse
import json
from pathlib import Path

from bench.cases import CASES
from bench.machine import machine_line

RESULTS = Path(__file__).with_name("results")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="default: all")
    files = parser.parse_args().files or sorted(RESULTS.glob("*.json"))
    print("\n\n".join(render(json.loads(path.read_text())) for path in files))


def render(record: dict) -> str:
    parts = [compare_table(entry) for entry in record["workloads"]] if record["kind"] == "compare" else []
    parts += [memory_table(record)] if record["kind"].startswith("memory") else []
    return "\n\n".join([machine_line(record["machine"]), *parts])


def compare_table(entry: dict) -> str:
    best, size = entry["ceiling"], f"{entry['width']} x {entry['height']}"
    text = (
        f"x{entry['scale']} of {size}, {entry['blocks']} blocks of {entry['features']} features, "
        f"{entry['precision']}, medians of {entry['rounds']} interleaved rounds. "
        f"Ceiling: {best['gflops']:.0f} GFLOP/s matrix product, {best['gbs']:.0f} GB/s copy."
    )
    rows = []
    for case in sorted(entry["cases"].values(), key=lambda case: case["median"]):
        title = case["title"] if case["title"].startswith("ours") else f"{case['title']} ({case['version']})"
        peak = "-" if case["peak_mib"] is None else f"{case['peak_mib']:,.0f}"
        numbers = f"{1e3 * case['median']:,.0f}", f"{case['ratio']:.2f}", f"{case['gflops']:,.0f}"
        rows.append((title, *numbers, f"{case['ceiling_percent']:.0f} %", peak, f"{case['error']:.0e}"))
    head = ("", "ms", "speed-up", "GFLOP/s", "of ceiling", "peak MiB", "error")
    left_out = [f"{CASES[name].title}: {why}" for name, why in (entry["wrong"] | entry["skipped"]).items()]
    return "\n\n".join([text, markdown(head, rows), *left_out])


def memory_table(record: dict) -> str:
    text = f"`cli.py upscale --tile {record['tile']}`, {record['model']}: peak memory of the whole process."
    rows = []
    for run in record["runs"]:
        pixels = run["width"] * run["height"] / 1e6
        speed = f"{pixels / run['seconds']:.2f}"
        size = f"{run['width']} x {run['height']}"
        rows.append((size, f"{pixels:.1f}", f"{run['peak_mib']:,.0f}", f"{run['seconds']:.1f}", speed))
    return text + "\n\n" + markdown(("picture", "Mpx", "peak MiB", "seconds", "Mpx/s"), rows)


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table; columns of numbers are set right."""
    rule = ("---", *("---:",) * (len(head) - 1))
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


if __name__ == "__main__":
    main()

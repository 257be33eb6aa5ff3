"""What was found on a GPU, in ten lines: `python -m bench.findings [--logs DIR] [--run RUN]`.

From the newest records in bench/results and the statuses in kernels/triton/configs. Needs neither torch nor a GPU.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, CONFIGS = ROOT / "bench" / "results", ROOT / "kernels" / "triton" / "configs"
NAMES = {  # of cases, short
    "ours": "ours",
    "channels_last": "eager",
    "folded": "ours on cuDNN",
    "compile": "torch.compile",
    "tensorrt": "TensorRT",
    "onnxruntime": "ONNX Runtime",
    "hopper": "Hopper",
    "one_kernel": "one kernel",
    "cudnn": "cuDNN",
    "triton": "ours",
    "torch": "ours on cuDNN",
    "eager": "without graph",
    "plain": "plain loop",
}
NETWORKS = (
    "edsr-baseline-x2-1920x1080",
    "edsr-baseline-x2-64x64",
    "edsr-x2-1920x1080",
    "edsr-baseline-x4-1920x1080",
)
OPERATIONS = ("relu-64", "skip-64", "resblock-64")


def newest(kind: str) -> dict[str, Any] | None:
    """The newest record of a GPU of this kind ("gpu", "training" or "check")."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    ours = [record for record in records if record["kind"] == kind and record["machine"]["device"] == "cuda"]
    return max(ours, key=lambda record: record["machine"]["date"], default=None)


def lines(logs: Path | None = None, run: Path | None = None) -> Iterator[str]:
    """Each a finding; what was not measured is left out."""
    records = {kind: newest(kind) for kind in ("gpu", "training", "check")}
    machine = next((record["machine"] for record in records.values() if record), None)
    if machine is None:
        yield "no record of a GPU"
    else:
        versions = f"torch {machine['torch']}, Triton {machine['triton']}"
        yield f"{machine['name']}, {versions}, {machine['date']}"
    for path in sorted(CONFIGS.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8")).get("choices", {}).get("hopper", {}).get("statuses", {})
        if found:
            right = [key for key, words in found.items() if words == "verified"]
            wrong = [f"{key}: {words}" for key, words in found.items() if words != "verified"]
            yield f"kernels on {path.stem}: right {', '.join(right) or 'none'}" + "".join(f"; {w}" for w in wrong)
    if right := "; ".join(filter(None, (_check(records["check"]), _tests(logs)))):
        yield right
    entries = {entry["work"]: entry for entry in (records["gpu"] or {}).get("workloads", [])}
    for work in NETWORKS:
        if work in entries:
            yield f"{work}: {_cases(entries[work])}"
    if operations := [f"{work}: {_cases(entries[work])}" for work in OPERATIONS if work in entries]:
        yield "; ".join(operations)
    for entry in (records["training"] or {}).get("workloads", []):
        yield f"{entry['work']}: {_cases(entry, steps=True)}"
    if trained := _trained(run):
        yield trained
    yield from _scores(logs)


def _check(record: dict[str, Any] | None) -> str | None:
    if record is None:
        return None
    missing = f", {len(record['not_reached'])} works not reached" if record.get("not_reached") else ""
    return f"checked against fp64: {len(record['cases'])} cases, {record['incorrect']} wrong{missing}"


def _cases(entry: dict[str, Any], steps: bool = False) -> str:
    """Milliseconds and share of the ceiling of each case, the fastest first."""
    words = []
    for name, case in sorted(entry["cases"].items(), key=lambda item: item[1]["median"]):
        rate = f", {1 / case['median']:.0f} steps/s" if steps else ""
        words.append(f"{NAMES.get(name, name)} {1e3 * case['median']:.3g} ms ({case['ceiling_percent']:.0f} %{rate})")
    died = entry.get("failed", [])
    words += [f"{NAMES.get(name, name)} {'died' if name in died else 'WRONG'}" for name in entry.get("incorrect", {})]
    return ", ".join(words) or "nothing measured"


def _tests(logs: Path | None) -> str | None:
    """What pytest said last."""
    if logs is None or not (logs / "tests.log").exists():
        return None
    text = (logs / "tests.log").read_text(encoding="utf-8", errors="replace")
    message = re.findall(r"^.*\b(?:passed|failed|errors?)\b.* in [\d.]+s.*$", text, re.MULTILINE)
    return f"tests on the chip: {message[-1].strip('= ') if message else 'ended before their last line'}"


def _trained(run: Path | None) -> str | None:
    if run is None or not (run / "metrics.jsonl").exists():
        return None
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    scored = [line for line in logged if "psnr" in line]
    if not logged:
        return None
    best = f", validation {max(line['psnr'] for line in scored):.3f} dB at best" if scored else ""
    # Earlier versions called patches images.
    speeds = (line.get("patches_per_second", line.get("images_per_second")) for line in logged)
    rates = [speed for speed in speeds if speed is not None]
    speed = f", {statistics.median(rates):,.0f} patches/s" if rates else ""
    return f"trained to step {logged[-1]['step']:,}{speed}{best}"


def _scores(logs: Path | None) -> Iterator[str]:
    """PSNR and SSIM of folders, which `cli.py evaluate` says last."""
    for log in sorted(logs.glob("score-*.log")) if logs is not None else ():
        text = log.read_text(encoding="utf-8", errors="replace").strip()
        yield f"{log.stem}: {text.splitlines()[-1] if text else 'nothing'}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.findings", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--logs", type=Path, metavar="DIR", help="logs of the parts of bench/gpu.sh")
    parser.add_argument("--run", type=Path, help="a training run")
    options = parser.parse_args()
    print("\n".join(lines(options.logs, options.run)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

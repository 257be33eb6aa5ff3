"""python -m bench.ablation --data DIR...: what each choice of the training recipe is worth, on a small network.

Every variant differs from the first in what its name says, and trains on the same number of pixels; the score is the
validation PSNR (held-out images of --data, never Set5 or Set14) of the averaged weights, and of those not averaged.
A small network ranks choices as a large one does only roughly; what it finds is checked on the real one.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bench import machine
from edsr.data.dataset import load_dataset, train_val_split
from edsr.data.store import PairedImages
from edsr.models.edsr import EDSR, PRESETS, EDSRConfig
from edsr.training import checkpoint
from edsr.training.config import TrainConfig
from edsr.training.trainer import train
from edsr.training.validation import validate

VARIANTS: dict[str, dict] = {
    "base": {},
    "lr 2e-4": {"lr": 2e-4},
    "lr 1e-3": {"lr": 1e-3},
    "lr 2e-3": {"lr": 2e-3},
    "schedule step": {"schedule": "step"},
    "loss l2": {"loss": "l2"},
    "loss charbonnier": {"loss": "charbonnier"},
    "batch / 2, steps x 2": {"batch": 0.5, "steps": 2},
    "batch x 2, steps / 2": {"batch": 2, "steps": 0.5},
    "patch x 2, batch / 4": {"patch": 2, "batch": 0.25},
    "no clipping": {"clip": float("inf")},
    "bf16": {"precision": "bf16"},
}


def run(config: TrainConfig, validation: PairedImages) -> dict:
    """Trains, and scores the end of the run on `validation`, the same images for all: a run of larger patches leaves
    small images out, and would hold out others."""
    begun = time.perf_counter()
    steps = list(train(config))[-1].step
    seconds = time.perf_counter() - begun
    tensors = checkpoint.load_latest(Path(config.out)).tensors
    model = EDSR(replace(config.network or PRESETS[config.model], scale=config.scale))
    scores = {}
    for name, kind in ("psnr", "ema"), ("not_averaged", "model"):
        model.load_state_dict({key: tensors[f"{kind}.{key}"] for key in model.state_dict()})
        scores[name] = round(validate(model, validation, config.scale)[0], 3)
    return scores | {"seconds": round(seconds, 1), "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--patch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each variant; the score is their mean")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="variants")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", metavar="FILE", help="where to write the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        compare(options, cache)


def compare(options, cache: str) -> None:
    network = EDSRConfig(blocks=options.blocks, features=options.features)
    sizes = {"steps": options.steps, "batch": options.batch, "patch": options.patch}
    base = TrainConfig(
        tuple(options.data),
        "",
        scale=options.scale,
        lr=options.lr,
        device=options.device,
        cache=cache,
        network=network,
        **sizes,
    )
    images, validation = load_dataset(base.data, base.scale, base.patch, cache=cache)
    validation = train_val_split(images)[1] if validation is None else validation
    if validation is None:
        raise SystemExit("one image cannot be held out; give more with --data")
    print(machine.machine_line(machine.describe(options.device)))
    print(f"{options.blocks} blocks of {options.features}, {sizes}, lr {options.lr:g}")
    print(f"{'':24}{'PSNR':>9}{'raw':>9}{'steps':>8}{'s':>7}")
    results = {}
    for name in options.only or VARIANTS:
        change = dict(VARIANTS[name])
        for key in sizes.keys() & change.keys():
            change[key] = int(getattr(base, key) * change[key])
        runs = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                steps = change.get("steps", base.steps)
                every = {"val_every": steps, "save_every": steps}
                runs.append(run(replace(base, out=folder, seed=seed, init="none", **(every | change)), validation))
        mean = {key: round(statistics.fmean(r[key] for r in runs), 3) for key in runs[0]}
        results[name] = mean
        print(
            f"{name:24}{mean['psnr']:9.3f}{mean['not_averaged']:9.3f}{mean['steps']:8.0f}{mean['seconds']:7.0f}",
            flush=True,
        )
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "results": results}, indent=1))


if __name__ == "__main__":
    main()

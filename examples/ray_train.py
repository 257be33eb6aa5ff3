"""Trains on the machines of a Ray cluster, by Ray Train: `python -m examples.ray_train --data DIR --out runs/x2`.

Needs: pip install 'edsr-triton[train]' 'ray[train]', on every machine; data and runs at the same names on all of them.
What torchrun does, Ray does here: it starts the processes, which then train as one. When one is lost, all are started
again, and the run goes on from its last checkpoint.
"""

import argparse
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

LOSSES = 3
"""So many times the processes are started again."""


def run_process(options: dict) -> None:
    """One process of the run, in Ray's process group. options: of `edsr.TrainConfig`."""
    from edsr.training import TrainConfig, train

    begun = any(Path(options["out"]).glob("checkpoint-*"))
    for _ in train(TrainConfig(**options, resume=begun)):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR", help="images to train on")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the folder of the run")
    parser.add_argument("--steps", type=int, default=300_000, metavar="N")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="of all processes together")
    parser.add_argument("--patch", type=int, default=48, metavar="N")
    parser.add_argument("--save-every", type=int, default=1000, metavar="N", help="steps between checkpoints")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes; default: %(default)s")
    parser.add_argument("--cpu", action="store_true", help="train on CPUs, a core for each process")
    parser.add_argument(
        "--address", metavar="HOST:PORT|auto", help="of the cluster; default: processes on this machine"
    )
    options = parser.parse_args()
    ray.init(address=options.address)
    out = options.out.absolute()
    training = {"data": tuple(str(Path(path).absolute()) for path in options.data), "out": str(out)}
    training |= {"steps": options.steps, "batch": options.batch, "patch": options.patch}
    training |= {"save_every": options.save_every, "device": "cpu" if options.cpu else "cuda"}
    trainer = TorchTrainer(
        run_process,
        train_loop_config=training,
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=not options.cpu),
        run_config=RunConfig(
            name=out.name, storage_path=f"{out.parent}/ray", failure_config=FailureConfig(max_failures=LOSSES)
        ),
    )
    trainer.fit()
    print(f"{out / 'best.safetensors'} is ready for upscale --model")


if __name__ == "__main__":
    main()

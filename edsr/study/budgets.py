"""What a study trains: each network of the family at x2 and x4, and the variants that its claims compare."""

from dataclasses import dataclass, replace
from typing import Any

from edsr.models import DIV2K_MEAN, NETWORKS, EDSRConfig

SCALES = (2, 4)
CROP = 128  # HR pixels a side of the squares that images are cut into, and of what is scored
PUBLISHED = {  # PSNR in dB on Set5, by scale: the papers', SRResNet's of Ledig et al. 2017
    "SRCNN": {2: 36.66, 3: 32.75, 4: 30.49},
    "VDSR": {2: 37.53, 3: 33.66, 4: 31.35},
    "SRResNet": {4: 32.05},
    "EDSR": {2: 38.11, 3: 34.65, 4: 32.46},
    "MDSR": {2: 38.11, 3: 34.66, 4: 32.50},
}
RATES = {"SRCNN": 1e-3, "VDSR": 2e-4, "SRGAN": 1e-4}  # peaks of the learning rate that differ from RATE
RATE = 5e-4


@dataclass(frozen=True)
class Budget:
    """How much a study trains.

    Attributes:
        name: What --budget calls it.
        heading: What every heading says of it; empty for networks as published.
        steps: Of each network, for each scale.
        batch: Patches a step.
        patch: LR pixels a side of a patch.
        seeds: How many runs of each variant of a claim there are.
        tested: The most images that are scored.
        networks: What takes the place of the networks' own configs, by method.
        wide: Blocks and features of the network that shows what a residual scale is for, and its learning rate.
    """

    name: str
    heading: str
    steps: int
    batch: int
    patch: int
    seeds: int
    tested: int
    networks: dict[str, dict[str, int]]
    wide: tuple[int, int, float]


BUDGETS = {
    "quick": Budget(
        "quick", "a rehearsal with small networks", 400, 4, 16, 2, 8,
        {
            "VDSR": {"depth": 6, "features": 16},
            "SRResNet": {"blocks": 2, "features": 16},
            "EDSR": {"blocks": 4, "features": 16},
            "MDSR": {"blocks": 4, "features": 16},
        },
        (6, 64, 2e-3),
    ),
    "cpu": Budget("cpu", "a night on CPUs", 2000, 4, 24, 3, 50, {}, (16, 128, 1e-3)),
    "gpu": Budget("gpu", "", 100_000, 16, 32, 3, 200, {}, (32, 256, 1e-3)),
}  # fmt: skip
METHODS = {
    "SRCNN": "srcnn",
    "VDSR": "vdsr",
    "SRResNet": "srresnet",
    "SRGAN": "srgan",
    "EDSR": "edsr-baseline",
    "MDSR": "mdsr-baseline",
}
"""The methods of the table, and the names of their networks."""


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        name: Of its folder.
        method: What it is called in the table; what it is a variant of.
        network: Config of its network.
        scales: What it is trained for.
        steps: In all.
        lr: Peak of the learning rate.
        loss: As in TrainConfig.
        seed: Of weights and patches.
        start: The run whose weights it starts from; random ones where empty.
        plain: Whether it is trained by `edsr.study.plain`, which never takes a run for diverged.
    """

    name: str
    method: str
    network: Any
    scales: tuple[int, ...]
    steps: int
    lr: float
    loss: str = "l1"
    seed: int = 0
    start: str = ""
    plain: bool = False


def table_runs(budget: Budget, steps: int) -> list[Run]:
    """The trainings of the table, in an order in which none comes before what it starts from."""
    runs = []
    for method in METHODS:
        network = network_of(method, budget)
        several = hasattr(network, "all_scales")
        for scales in [SCALES] if several else [(scale,) for scale in SCALES]:
            config = replace(network, scale=scales[0], **({"all_scales": scales} if several else {}))
            name = f"{method.lower()}-x{'x'.join(map(str, scales))}"
            start = f"srresnet-x{scales[0]}" if method == "SRGAN" else ""
            rate = RATES.get(method, RATE)
            runs.append(Run(name, method, config, scales, steps * len(scales), rate, start=start))
    return runs


def network_of(method: str, budget: Budget) -> Any:
    """The config of a method's network under a budget."""
    own = budget.networks.get("SRResNet" if method == "SRGAN" else method, {})
    return replace(NETWORKS[METHODS[method]], **own)


def claim_runs(budget: Budget, steps: int) -> list[Run]:
    """The trainings that claims need beside those of the table: variants of these, at x2 but for one, by seed."""
    by_name = {run.name: run for run in table_runs(budget, steps)}
    edsr, srresnet, x4 = by_name["edsr-x2"], by_name["srresnet-x2"], by_name["edsr-x4"]
    blocks, features, rate = budget.wide
    wide = replace(edsr, network=EDSRConfig(2, blocks, features, 1.0), lr=rate)
    variants = {
        "edsr": edsr,
        "srresnet": srresnet,
        "edsr-x4": x4,
        "srresnet-plain": replace(srresnet, network=replace(srresnet.network, normalized=False)),
        "edsr-l2": replace(edsr, loss="l2"),
        "edsr-x4-from-x2": replace(x4, start="edsr-x2"),
        "wide-1": wide,
        "wide-0.1": replace(wide, network=replace(wide.network, residual_scale=0.1)),
        "edsr-right-range": replace(edsr, plain=True),
        "edsr-wrong-range": replace(
            edsr, plain=True, network=replace(edsr.network, mean=tuple(255 * mean for mean in DIV2K_MEAN))
        ),
    }
    of_table = {"edsr": "edsr-x2", "srresnet": "srresnet-x2", "edsr-x4": "edsr-x4"}
    return [
        replace(run, name=f"{name}-seed{seed}", seed=seed)
        for name, run in variants.items()
        for seed in range(budget.seeds)
        if seed or name not in of_table
    ]


def runs_of_variant(name: str, budget: Budget) -> list[str]:
    """Names of the runs of a variant of `claim_runs`, one for each seed; the first may be one of the table."""
    of_table = {"edsr": "edsr-x2", "srresnet": "srresnet-x2", "edsr-x4": "edsr-x4"}
    names = [f"{name}-seed{seed}" for seed in range(budget.seeds)]
    return [of_table.get(name, names[0]), *names[1:]]

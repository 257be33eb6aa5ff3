"""What EDSR's paper claims, and what a study's runs say to it."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edsr.models import NETWORKS

from .budgets import SCALES, runs_of_variant
from .measures import bytes_kept_for_gradients, mean_of_finite
from .runner import Study

YES, NO, OPEN = "yes", "no", "not decided"


@dataclass(frozen=True)
class Finding:
    """A claim, and what was measured.

    Attributes:
        name: For files.
        claim: What is claimed.
        measured: What was measured, in words.
        verdict: YES, NO, or OPEN where runs with other seeds differ by as much, or too many diverged.
        unit: Of the values.
        values: By variant, one for each run.
    """

    name: str
    claim: str
    measured: str
    verdict: str
    unit: str
    values: dict[str, list[float]]


def findings(study: Study) -> list[Finding]:
    """All claims of a study that was run with them."""
    return [claim(study) for claim in _CLAIMS]


def decide(better: Sequence[float], worse: Sequence[float], least: float = 0.0) -> str:
    """Whether one variant has more than another, by more than `least`.

    Runs that differ by their seeds alone say how much chance does: the difference of the means has to be larger than
    the ranges of both together.
    """
    if not better or not worse:
        return OPEN
    difference = statistics.mean(better) - statistics.mean(worse) - least
    spread = max(better) - min(better) + max(worse) - min(worse)
    if min(len(better), len(worse)) < 2 or abs(difference) <= spread:
        return OPEN
    return YES if difference > 0 else NO


def _psnr(study: Study, variant: str) -> list[float]:
    """Mean PSNR of each run of a variant; of runs that diverged there is none."""
    means = [mean_of_finite(scores["psnr"]) for scores in _scales(study, variant)]
    return [mean for mean in means if mean is not None]


def _scales(study: Study, variant: str) -> list[dict[str, Any]]:
    """What was measured of the runs of a variant, as `edsr.study.measures.measure` gives it."""
    return [s for run in runs_of_variant(variant, study.budget) for s in study.results[run]["scales"].values()]


def _diverged(study: Study, runs: Iterable[str]) -> str:
    """What follows the measured in a finding, by which a reader sees what it lacks: the names of runs that diverged."""
    names = [name for name in runs if study.results[name]["diverged"] is not None]
    return f"; diverged: {', '.join(names)}" if names else ""


def _lacking(study: Study, *variants: str) -> str:
    return _diverged(study, (run for variant in variants for run in runs_of_variant(variant, study.budget)))


def _db(values: Sequence[float]) -> str:
    """The mean of values in dB, and between which they lie."""
    if not values:
        return "nothing (diverged)"
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f} dB{spread}"


def _memory(study: Study) -> Finding:
    del study  # it needs no training: the network as published
    srresnet = NETWORKS["srresnet"]
    networks = {
        "SRResNet": srresnet,
        "without": replace(srresnet, normalized=False),
        "EDSR": replace(NETWORKS["edsr-baseline"], scale=srresnet.scale),
    }
    kept = {name: [bytes_kept_for_gradients(config, 1, 24) / 1e6] for name, config in networks.items()}
    whole, without, edsr = (values[0] for values in kept.values())
    text = (
        f"for the backward pass of a patch of 24 x 24 at x4 SRResNet keeps {whole:.1f} MB, without its normalizations "
        f"{without:.1f} MB, {100 * (1 - without / whole):.0f} % less; EDSR of as many blocks and features "
        f"{edsr:.1f} MB, {100 * (1 - edsr / whole):.0f} % less"
    )
    return Finding(
        "memory", "EDSR, without batch normalization, saves about 40 % of the memory of training SRResNet.", text,
        YES if edsr <= 0.7 * whole else NO, "MB", kept,
    )  # fmt: skip


def _no_harm(study: Study) -> Finding:
    values = {"with": _psnr(study, "srresnet"), "without": _psnr(study, "srresnet-plain")}
    harm = decide(values["with"], values["without"])
    text = f"with it {_db(values['with'])}, without {_db(values['without'])}"
    text += _lacking(study, "srresnet", "srresnet-plain")
    return Finding(
        "normalization", "Removing batch normalization does not hurt PSNR.", text,
        {YES: NO, NO: YES}.get(harm, OPEN), "dB", values,
    )  # fmt: skip


def _shift(study: Study) -> Finding:
    shifts, told = {}, []
    for name, variant in ("with", "srresnet"), ("without", "srresnet-plain"):
        scales = _scales(study, variant)
        shifts[name] = [statistics.mean(map(abs, s["shift"])) for s in scales]
        contrast = mean_of_finite(100 * abs(s["contrast"] - 1) for s in scales)
        off = (
            f"off by {statistics.mean(shifts[name]):.2f} levels and contrast by {contrast:.1f} %"
            if scales
            else "unknown"
        )
        told.append(f"{name} it brightness is {off}")
    text = "; ".join(told) + _lacking(study, "srresnet", "srresnet-plain")
    verdict = decide(shifts["with"], shifts["without"])
    return Finding(
        "shift", "Batch normalization shifts color and contrast of the outputs.", text, verdict, "levels", shifts
    )


def _residual_scale(study: Study) -> Finding:
    values, told, unstable = {}, [], {}
    for name, variant in ("1", "wide-1"), ("0.1", "wide-0.1"):
        results = [study.results[run] for run in runs_of_variant(variant, study.budget)]
        values[name] = _psnr(study, variant)
        diverged = sum(r["diverged"] is not None for r in results)
        rolled = sum(r.get("rollbacks", 0) for r in results)
        unstable[name] = bool(rolled or diverged)
        told.append(f"with {name} {_db(values[name])}, {rolled} times back to a checkpoint, {diverged} given up")
    blocks, features, rate = study.budget.wide
    verdict = NO if unstable["0.1"] else YES if unstable["1"] else OPEN
    text = f"{blocks} blocks of {features} features at {rate:g}: {'; '.join(told)}"
    claim = "Residual scaling by 0.1 keeps a wide network stable."
    return Finding("residual-scale", claim, text, verdict, "dB", values)


def _loss(study: Study) -> Finding:
    values = {"l1": _psnr(study, "edsr"), "l2": _psnr(study, "edsr-l2")}
    text = f"l1 {_db(values['l1'])}, l2 {_db(values['l2'])}{_lacking(study, 'edsr', 'edsr-l2')}"
    return Finding("loss", "L1 gives a higher PSNR than L2.", text, decide(values["l1"], values["l2"]), "dB", values)


def _from_x2(study: Study) -> Finding:
    values = {"random": _halfway(study, "edsr-x4"), "x2": _halfway(study, "edsr-x4-from-x2")}
    text = f"after half of the steps x4 has {_db(values['random'])} from random weights, {_db(values['x2'])} from x2's"
    text += _lacking(study, "edsr-x4", "edsr-x4-from-x2")
    verdict = decide(values["x2"], values["random"])
    return Finding("x4-from-x2", "x4 converges faster from x2's weights.", text, verdict, "dB", values)


def _halfway(study: Study, variant: str) -> list[float]:
    """PSNR of each run of a variant after half of its steps; of runs that diverged there is none."""
    found = []
    for result in (study.results[name] for name in runs_of_variant(variant, study.budget)):
        if result["diverged"] is None and result["curve"]:
            near = min(result["curve"], key=lambda line: abs(line["step"] - result["steps"] / 2))
            found.append(near["psnr"])
    return found


def _ensemble(study: Study) -> Finding:
    gains, means, told = {}, [], []
    for scale in SCALES:
        scores = study.results[f"edsr-x{scale}"]["scales"].get(str(scale), {"psnr": [], "psnr_ensemble": []})
        pairs = zip(scores["psnr"], scores["psnr_ensemble"], strict=True)
        gains[f"x{scale}"] = gain = [b - a for a, b in pairs if a is not None and b is not None]  # as of exact ones
        means += [statistics.mean(gain)] if gain else []
        told.append(f"x{scale} {means[-1]:+.2f} dB" if gain else f"x{scale} nothing known")
    text = ", ".join(told) + _diverged(study, (f"edsr-x{scale}" for scale in SCALES))
    whole = len(means) == len(SCALES)
    verdict = OPEN if not whole else YES if min(means) >= 0.03 else NO if max(means) <= 0 else OPEN
    return Finding("self-ensemble", "The geometric self-ensemble gains about 0.1 dB.", text, verdict, "dB", gains)


def _wrong_range(study: Study) -> Finding:
    values = {"0..1": _psnr(study, "edsr-right-range"), "0..255": _psnr(study, "edsr-wrong-range")}
    text = f"a mean of 0..1 gives {_db(values['0..1'])}, one of 0..255 before values of 0..1 {_db(values['0..255'])}"
    text += _lacking(study, "edsr-right-range", "edsr-wrong-range")
    return Finding(
        "mean-shift", "A mean shift in the wrong range of values ruins the result.", text,
        decide(values["0..1"], values["0..255"], least=1.0), "dB", values,
    )  # fmt: skip


_CLAIMS: tuple[Callable[[Study], Finding], ...] = (
    _memory, _no_harm, _shift, _residual_scale, _loss, _from_x2, _ensemble, _wrong_range,
)  # fmt: skip

"""The network's tensors out of whatever a checkpoint wraps around them, by their bare keys.

Projects keep a network beside an optimizer, a discriminator, a copy with averaged weights; under "params", "net_g",
"state_dict"; with "module." or "model.net." before each key. The network is where the keys of a known layout are,
whatever leads there. Of several, averaged weights are taken, as their projects do.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from edsr.errors import WeightsError
from edsr.strict_json import loads

from .edsr import LAYOUTS
from .family import ENDS

BESIDE = {"discriminator", "netd", "step", "n", "epoch", "loss", "perceptual", "vgg", "generator", "module", "ema"}
"""First words of what trainers save beside a network, in one mapping with it."""

TERMS = "edsr-triton"
"""Under which the terms stand in the metadata of a state_dict, beside the versions of its modules."""

MAX_DEPTH = 4
"""Wrappers within wrappers that are looked into: a file may contain itself."""

# Where no known network is, what is named in the error is below these.
WRAPPERS = ("params_ema", "params", "state_dict", "model")


def unwrap(checkpoint: Any) -> dict[str, Tensor]:
    """The network's tensors; their types are as unchecked as the checkpoint's.

    Raises:
        WeightsError: It holds no tensors by name.
    """
    if found := _find(checkpoint):
        mapping, prefix = found
        return {key.removeprefix(prefix): value for key, value in mapping.items() if key.startswith(prefix)}
    for _ in range(MAX_DEPTH):
        if isinstance(checkpoint, Mapping):
            inner = (checkpoint[k] for k in WRAPPERS if isinstance(checkpoint.get(k), Mapping))
            checkpoint = next(inner, checkpoint)
    keys = list(checkpoint) if isinstance(checkpoint, Mapping) else []
    if not keys or not all(isinstance(key, str) for key in keys):
        raise WeightsError("not a file of weights: it does not hold tensors by name")
    return dict(checkpoint)


def _find(checkpoint: Any) -> tuple[Mapping[str, Any], str] | None:
    """The mapping that has the network, and what is before its keys there; None if none has."""
    found = sorted(_networks(checkpoint, "", 0, set()), key=lambda place: not _is_averaged(place[0]))
    return found[0][1:] if found else None


def stands_alone(checkpoint: Any) -> bool:
    """Whether nothing is beside the network's tensors that may be another part of a larger network."""
    if not (found := _find(checkpoint)):
        return False
    mapping, prefix = found
    others = (key for key, value in mapping.items() if not key.startswith(prefix) and isinstance(value, Tensor))
    return all(key.lower().replace("_", ".").split(".")[0] in BESIDE for key in others)


def unwrap_terms(checkpoint: Any) -> dict[str, Any] | None:
    """The terms in a checkpoint of `edsr.weights.exchange`, unchecked: a JSON text in the metadata of its tensors."""
    for place in (checkpoint, checkpoint.get("params") if isinstance(checkpoint, Mapping) else None):
        table = getattr(place, "_metadata", None)
        text = table.get(TERMS) if isinstance(table, Mapping) else None
        with contextlib.suppress(ValueError):
            terms = loads(text) if isinstance(text, str) else None
            if isinstance(terms, dict):
                return terms
    return None


def _networks(content: Any, where: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """(the way there, the mapping, what is before the keys) of each place that has the ends of a network."""
    if not isinstance(content, Mapping) or depth > MAX_DEPTH or id(content) in seen:
        return
    seen.add(id(content))
    if all(isinstance(key, str) for key in content):
        for prefix in _prefixes(content):
            yield f"{where}.{prefix}", content, prefix
    for key, value in content.items():
        yield from _networks(value, f"{where}.{key}", depth + 1, seen)


def _is_averaged(where: str) -> bool:
    """Whether one of the words on the way is "ema", as in params_ema."""
    return "ema" in where.lower().replace("_", ".").split(".")


def _prefixes(tensors: Mapping[str, Any]) -> list[str]:
    """What may stand before the keys of a network, in the order of its first keys; the empty one alone if it fits."""
    found: dict[str, None] = {}
    ends = [(f"{x.head}.weight", (f"{x.tail}.weight", "upsample_out.weight")) for x in LAYOUTS.values()]
    for head, tails in (*ends, *((first, (last,)) for first, last in ENDS)):
        for key in tensors:
            prefix = key.removesuffix(head)
            if key.endswith(head) and (not prefix or prefix[-1] == ".") and any(prefix + t in tensors for t in tails):
                found[prefix] = None
    return [""] if "" in found else list(found)

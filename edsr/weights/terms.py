"""What a file of weights may be used for, and what is only believed of it: its terms, which go with the weights.

They are a table of JSON's types with these entries, wherever they are: in `edsr.weights.read_info`, in the headers of
this project's files, and in what is exported.

- `license`: of the weights; None where nobody has stated it.
- `data`: names of what they were trained on.
- `data_licenses`: the licenses of that.
- `origin`: the layout of the other project's file that they come from; None for this project's.
- `assumed`: what that file does not state, in lines.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from edsr.models import DIV2K_MEAN, NetworkConfig

from .edsr import FORMAT, LAYOUTS
from .family import FAMILY

PACKAGED_LICENSE = "MIT"
"""Of the weights in the package, as of all of it."""

KEYS = ("license", "data", "data_licenses", "origin", "assumed")


def make_terms(
    stated: Mapping[str, Any] | None, training: Mapping[str, Any] | None, assumed: Iterable[str], layout: str
) -> dict[str, Any]:
    """The terms of a file.

    Args:
        stated: What the file itself says of them, unchecked.
        training: How its weights came about, as `save_model` was given it, unchecked.
        assumed: What it does not state, found or assumed by who has read it.
        layout: Its layout.
    """
    stated, training = stated or {}, training or {}
    license = stated.get("license", training.get("license"))
    origin = stated.get("origin") if layout == FORMAT or stated else layout
    return {
        "license": license if isinstance(license, str) and license else None,
        "data": _texts(stated.get("data")) or _texts(training.get("data")),
        "data_licenses": _texts(stated.get("data_licenses")) or _texts(training.get("licenses")),
        "origin": origin if isinstance(origin, str) else None,
        "assumed": list(dict.fromkeys([*_texts(stated.get("assumed")), *assumed])),
    }


def mix_terms(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The terms of a mixture: those of all its parts; its license is not stated if that of one is not."""
    parts = list(parts)
    mixed: dict[str, Any] = {
        key: list(dict.fromkeys(text for part in parts for text in part[key]))
        for key in ("data", "data_licenses", "assumed")
    }
    licenses = list(dict.fromkeys(part["license"] for part in parts))
    origins = dict.fromkeys(part["origin"] for part in parts if part["origin"])
    license = None if None in licenses else " and ".join(licenses)
    return {key: {"license": license, "origin": ", ".join(origins) or None, **mixed}[key] for key in KEYS}


def assumptions(
    config: NetworkConfig, layout: str, tensors: Iterable[str], source: str, notes: Iterable[str], stated: bool
) -> list[str]:
    """A line for each thing that a file does not state, and that was assumed, or found by trying.

    Args:
        config: Of the network as it was read.
        layout: Its layout, as which it was read.
        tensors: Names of the tensors in the file.
        source: Where its residual scale is from, as `read_info` says.
        notes: What was told of it already: that its scale was assumed.
        stated: Whether a header or a config.json states its configuration.
    """
    tensors, lines = set(tensors), []
    mean, residual_scale = getattr(config, "mean", None), getattr(config, "residual_scale", None)
    if layout == FORMAT and not stated:
        lines += [] if mean is None else [f"mean {_name(mean)}"]
        lines += ["no tanh at its end"] if hasattr(config, "tanh") else []
        lines += [f"residual scale {residual_scale:g}"] if config.architecture == "mdsr" and source == "file" else []
    elif layout in LAYOUTS and layout != FORMAT:
        span = LAYOUTS[layout].rgb_range
        kept = ("sub_mean.bias",) if layout == "edsr-pytorch" else ("mean",) if layout == "basicsr" else ()
        if layout != "edsr-pytorch" or not tensors.intersection(kept):
            lines += [f"pixels of 0..{span:g}, as {layout}'s networks take them"]
        if not tensors.intersection(kept):
            lines += [f"mean {_name(mean)}, as in {layout}"] if mean else []
    elif layout in FAMILY:
        lines += [f"range and kind of pixels as in {layout}"]
    if source in ("assumed", "found"):
        how = "found from the weights" if source == "found" else "neither the file nor its weights tell"
        lines += [f"residual scale {residual_scale:g}: {how}"]
    return lines + [note for note in notes if "scale" in note and "assumed" in note and "residual" not in note]


def _name(mean: tuple[float, ...]) -> str:
    return "of DIV2K" if mean == DIV2K_MEAN else "0" if not any(mean) else ", ".join(f"{m:g}" for m in mean)


def _texts(value: Any) -> list[str]:
    """The texts in a list that anybody may have written."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []

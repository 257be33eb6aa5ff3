"""Weight files, packaged or from elsewhere: found, read without running code, written whole.

Packaged weights lie in this folder, named NAME-xSCALE.safetensors.
"""

import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from edsr.errors import WeightsError
from edsr.models import EDSR, PRESETS, SCALES, EDSRConfig
from edsr.strict_json import dumps
from edsr.system import atomic_file, remove_abandoned

from . import interpolation
from .edsr import (
    AMBIGUOUS,
    FORMAT,
    LAYOUTS,
    build_model,
    detect_layout,
    expand_collapsed_upsampler,
    resolve_range,
)

FOLDER = Path(__file__).parent
"""Where the packaged weights lie."""

NAMES = (*PRESETS, "edsr-photo")
"""What packaged weights are called; edsr-photo is edsr-baseline trained further, on compressed images."""

# Where checkpoints keep the network beside other things, best first, and what wrappers put before its keys. Where some
# keys have such a prefix, those without it (n_averaged, losses) are not the network's.
WRAPPERS = ("params_ema", "params", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.", "generator.")


def load_model(
    name_or_path: str | os.PathLike,
    scale: int | None = None,
    residual_scale: float | None = None,
    *,
    layout: str | None = None,
) -> EDSR:
    """Loads a network, in fp32 on the CPU, in eval mode.

    A file is .safetensors, or anything that torch.load reads with weights_only=True; one that exists is taken for a
    file, whatever its name.

    By default a file's keys tell which project wrote it, except that super-image stores what EDSR-PyTorch stores. Of
    those two the network itself tells: a trained network gives its input back, only larger, if the values are those it
    was trained on. A file with mean-shift tensors counts as EDSR-PyTorch's and one without as super-image's, unless
    the other reading does that at least twice as well, and well. Untrained weights, which do it in neither, need
    `layout` to be taken for the other.

    Args:
        name_or_path: A preset ("edsr-baseline", "edsr", "edsr-photo"), a file, or a mixture of these
            ("edsr-baseline:0.3+edsr-photo:0.7", see `edsr.weights.interpolation`).
        scale: Which of a preset's packaged weights, 2 by default, in a mixture that of the files in it; for a file,
            the scale its network must have.
        residual_scale: What to multiply the residual branches by, where the file does not say; only this project's
            files do. By default that of the preset with as many blocks and features, otherwise 1; always 1 for
            super-image, which trained its 32 blocks of 256 features that way.
        layout: Which project wrote the file: a key of `edsr.weights.edsr.LAYOUTS`.

    Raises:
        WeightsError: There is no such file, it is damaged, holds code, is not an EDSR network with exactly the tensors
            it should have, all finite, or contradicts `scale` or `residual_scale`.
    """
    return _load(name_or_path, scale, residual_scale, layout)[0]


def read_info(name_or_path: str | os.PathLike, **options: Any) -> dict[str, Any]:
    """Describes the weights that `load_model` loads with the same options; same errors.

    Returns:
        `file`, `layout` (a key of `edsr.weights.edsr.LAYOUTS`), `scale`, `blocks`, `features`, `residual_scale`,
        `mean` (RGB in 0..1), `parameters` (how many the loaded network has), `dtype` (as stored, such as "float16")
        and `training` (what `save_model` was given, otherwise None). Of a mixture, `file` is its name and `training`
        is {"mixture": {name: share}}.
    """
    return _load(name_or_path, **options)[1]


def save_model(
    model: EDSR, path: str | os.PathLike, *, dtype: torch.dtype | None = None, training: dict | None = None
) -> None:
    """Writes a .safetensors file whole or not at all: an older file of that name stays until then.

    Args:
        model: The network.
        path: Where to, with the ending .safetensors.
        dtype: Floating-point type to store the weights in; by default their own.
        training: How they came about (data, steps, scores), in JSON's types; nan and inf are written as null.

    Raises:
        WeightsError: The file cannot be written, is not named .safetensors, or a weight is not finite in `dtype`.
        TypeError: `training` is not JSON.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise WeightsError(f"{path}: weights are written as safetensors; name the file {path.stem}.safetensors")
    metadata = {"format": FORMAT, "config": dumps(asdict(model.config))}
    if training is not None:
        metadata["training"] = dumps(training)
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{path}: not written, {key} is not finite in {_dtype_names([tensor])}")
    remove_abandoned(path.parent)
    try:
        with atomic_file(path) as file:
            file.write(save(tensors, metadata))
    except Exception as error:  # safetensors has exceptions of its own for what the disk refuses
        raise WeightsError(f"{path}: cannot be written: {_first_line(error)}") from error


def list_packaged() -> dict[str, tuple[int, ...]]:
    """Scales whose weights come with the package, ascending, by name; names without any are left out."""
    found = {name: tuple(s for s in SCALES if _packaged_file(name, s).is_file()) for name in NAMES}
    return {name: scales for name, scales in found.items() if scales}


def _packaged_file(name: str, scale: int) -> Path:
    return FOLDER / f"{name}-x{scale}.safetensors"


def _find_file(name: str, scale: int | None) -> Path:
    """The packaged file of a preset, or the file of that path."""
    if name in NAMES:
        path = _packaged_file(name, scale or 2)
        if not path.is_file():
            have = ", ".join(f"{n} x{s}" for n, scales in list_packaged().items() for s in scales) or "none"
            what = f"{name} x{scale or 2} is not packaged (packaged: {have})"
            raise WeightsError(f"{what}; give a file of weights: --model FILE")
        return path
    if os.path.isdir(name):
        raise WeightsError(f"{name}: is a folder; give the file of weights in it")
    if not os.path.isfile(name):
        raise WeightsError(f"{name}: no such file, and not a preset ({', '.join(NAMES)}) or a mixture of these")
    return Path(name)


def _load(
    name_or_path: str | os.PathLike,
    scale: int | None = None,
    residual_scale: float | None = None,
    layout: str | None = None,
) -> tuple[EDSR, dict[str, Any]]:
    """The network that `load_model` gives, and what `read_info` tells of it."""
    text = os.fsdecode(name_or_path)
    try:
        parts = None if text in NAMES or os.path.exists(text) else interpolation.parse_mixture(text)
        if parts is None:
            return _load_file(_find_file(text, scale), scale, residual_scale, layout)
        paths = {part: _find_file(part, scale) for part in parts if part not in NAMES}
        loaded = {part: _load_file(path, scale, residual_scale, layout) for part, path in paths.items()}
        # Presets are there for several scales, and take the first file's.
        scale = scale or next((model.config.scale for model, _ in loaded.values()), None)
        for part in parts:
            if part in NAMES:
                loaded[part] = _load_file(_find_file(part, scale), scale, residual_scale, layout)
        model = interpolation.mix([loaded[part][0] for part in parts], list(parts.values()), list(parts))
    except ValueError as error:
        raise WeightsError(f"{text}: {error}") from None
    return model, loaded[next(iter(parts))][1] | {
        "file": text,
        "layout": FORMAT,
        "dtype": "float32",
        "training": {"mixture": parts},
    }


def _load_file(
    path: Path, scale: int | None, residual_scale: float | None, layout: str | None
) -> tuple[EDSR, dict[str, Any]]:
    try:
        if layout is not None and layout not in LAYOUTS:
            raise WeightsError(f"unknown layout {layout}; choose one of {', '.join(LAYOUTS)}")
        checkpoint, metadata = _read_file(path)
        stored = _unwrap(checkpoint)
        tensors = expand_collapsed_upsampler(stored)
        name = layout or detect_layout(tensors)
        header = _header_config(metadata) if name == FORMAT else None
        model = build_model(tensors, name, residual_scale, header)
        if layout is None and name in AMBIGUOUS:
            model, name = resolve_range(model, name, tensors, residual_scale)
        if scale is not None and scale != model.config.scale:
            raise WeightsError(f"its network upscales x{model.config.scale}, not x{scale}; give another file")
        training = _header_json(metadata, "training") if header and "training" in metadata else None
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error.__cause__
    info = {"file": str(path), "layout": name, **asdict(model.config)}
    info |= {"parameters": sum(p.numel() for p in model.parameters())}
    info |= {"dtype": _dtype_names(stored.values()), "training": training}
    return model.eval(), info


def _read_file(path: Path) -> tuple[Any, dict[str, str]]:
    """A file's content, unchecked, and the metadata in its header."""
    try:
        if path.suffix.lower() != ".safetensors":
            with warnings.catch_warnings(action="ignore"):  # they are about formats; the result says it all
                return torch.load(path, map_location="cpu", weights_only=True), {}
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # neither reader documents what damaged bytes may lead it to raise
        if code := re.search(r"GLOBAL (\S+)|reduce for \w+ function (\S+)|TorchScript", str(error)):
            refusal = f"it holds code ({code[1] or code[2] or 'TorchScript'}) and is refused"
            raise WeightsError(f"{refusal}; ask for its state_dict alone") from error
        raise WeightsError(f"damaged, or not a file of weights: {_first_line(error)}") from error


def _unwrap(checkpoint: Any) -> dict[str, Tensor]:
    """The network's tensors by their bare keys, out of whatever is wrapped around them."""
    for _ in range(4):  # wrappers within wrappers end somewhere, even in a file that contains itself
        if isinstance(checkpoint, Mapping):
            inner = (checkpoint[k] for k in WRAPPERS if isinstance(checkpoint.get(k), Mapping))
            checkpoint = next(inner, checkpoint)
    keys = list(checkpoint) if isinstance(checkpoint, Mapping) else []
    if not keys or not all(isinstance(key, str) for key in keys):
        raise WeightsError("not a file of weights: it does not hold tensors by name")
    tensors = dict(checkpoint)
    while prefix := next((p for p in PREFIXES if any(k.startswith(p) for k in tensors)), None):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    for key, value in tensors.items():
        if not _is_plain(value):
            raise WeightsError(f"not a file of weights: {key} is not a floating-point tensor")
    return tensors


def _is_plain(value: Any) -> bool:
    """Whether it is a dense floating-point tensor, all of it in the file: an expanded one could need any memory."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _header_config(metadata: dict[str, str]) -> EDSRConfig | None:
    """The configuration in the header of one of our files; None in a file that does not claim to be one."""
    if metadata.get("format") != FORMAT:
        return None
    config = _header_json(metadata, "config")
    try:
        red, green, blue = map(float, config["mean"])
        scale, blocks, features = (int(config[key]) for key in ("scale", "blocks", "features"))
        residual_scale = float(config["residual_scale"])
        if not all(map(math.isfinite, (red, green, blue, residual_scale))):
            raise ValueError("not finite")
        return EDSRConfig(scale, blocks, features, residual_scale, (red, green, blue))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"its header is damaged (config: {_first_line(error)})") from error


def _header_json(metadata: dict[str, str], key: str) -> dict:
    """A table in the header of one of our files."""
    try:
        value = json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(f"its header is damaged ({key}: {_first_line(error)})") from error
    if not isinstance(value, dict):
        raise WeightsError(f"its header is damaged ({key} is not a table)")
    return value


def _dtype_names(tensors: Iterable[Tensor]) -> str:
    return ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors}))


def _first_line(error: Exception) -> str:
    """Of its message, at most 120 characters."""
    return next(iter(str(error).splitlines()), "")[:120] or type(error).__name__

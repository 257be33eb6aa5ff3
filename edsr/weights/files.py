"""Weight files, packaged or from elsewhere: found, read without running code, written whole.

Packaged weights lie in this folder, named NAME-xSCALE.safetensors.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from edsr.errors import WeightsError
from edsr.models import MDSR, NETWORKS, PRESETS, SCALES, EDSRConfig, Network, NetworkConfig, check_network
from edsr.storage import why_not_a_path
from edsr.strict_json import dumps
from edsr.system import atomic_file, remove_abandoned
from edsr.wording import either

from . import hub, interpolation, readings
from .container import read_file
from .edsr import (
    AMBIGUOUS,
    FORMAT,
    LAYOUTS,
    build_model,
    detect_layout,
    expand_collapsed_upsampler,
    published_residual_scale,
)
from .family import COUNTER, FAMILY, build_family, find_layout
from .header import MAX_RESIDUAL_SCALE, header_config, header_json, in_order
from .terms import PACKAGED_LICENSE, assumptions, make_terms, mix_terms
from .unwrapping import unwrap, unwrap_terms

FOLDER = Path(__file__).parent
"""Where the packaged weights lie."""

NAMES = (*PRESETS, "edsr-photo")
"""What packaged weights are called; edsr-photo is edsr-baseline trained further, on compressed images."""

logger = logging.getLogger(__name__)


def load_model(
    name_or_path: str | os.PathLike,
    scale: int | None = None,
    residual_scale: float | None = None,
    *,
    layout: str | None = None,
) -> Network:
    """Loads a network, in fp32 on the CPU, in eval mode.

    A file is .safetensors, or anything that torch.load reads with weights_only=True; one that exists is taken for a
    file, whatever its name.

    By default a file's keys tell which project wrote it, except that super-image stores what EDSR-PyTorch stores. Of
    those two the network itself tells: a trained network gives its input back, only larger, if the values are those it
    was trained on. A file with mean-shift tensors counts as EDSR-PyTorch's and one without as super-image's, unless
    the other reading does that at least twice as well, and well. Untrained weights, which do it in neither, need
    `layout` to be taken for the other.

    Args:
        name_or_path: A preset ("edsr-baseline", "edsr", "edsr-photo"), a file, a folder in the layout of the Hugging
            Face Hub (`config.json` and `model.safetensors`), a repository there ("hf-hub:user/name", see
            `edsr.weights.hub`), or a mixture of these ("edsr-baseline:0.3+edsr-photo:0.7", see
            `edsr.weights.interpolation`).
        scale: Which of a preset's packaged weights, 2 by default, in a mixture that of the files in it; for a file,
            the scale its network must have, or which of several in a folder.
        residual_scale: What to multiply the residual branches by, where the file does not say; only this project's
            files do. By default 1 or 0.1, whichever makes the network give its input back (`edsr.weights.readings`).
            Where that does not tell, that of the preset with as many blocks and features, otherwise 1, and always 1 for
            super-image, which trained its 32 blocks of 256 features that way; a warning is logged.
        layout: Which project wrote the file: a key of `edsr.weights.edsr.LAYOUTS`.

    Raises:
        WeightsError: There is no such file or repository, it cannot be downloaded, is damaged, holds code, is not an
            EDSR network with exactly the tensors it should have, all finite, contradicts `scale`, `residual_scale` or
            its config.json, or is right with none of the residual scales that are tried.
    """
    model, notes = load_with_notes(name_or_path, scale, residual_scale, layout=layout)
    for note in notes:
        logger.warning("%s: %s", os.fsdecode(name_or_path), note)
    return model


def load_with_notes(
    name_or_path: str | os.PathLike,
    scale: int | None = None,
    residual_scale: float | None = None,
    *,
    layout: str | None = None,
) -> tuple[Network, tuple[str, ...]]:
    """As `load_model`, with what was assumed: a line each, which is not logged."""
    if scale is not None and not isinstance(scale, int):
        raise TypeError(f"the scale is a whole number, 2, 3 or 4, not {scale!r}")
    model, info = _load(name_or_path, scale, residual_scale, layout)
    return model, tuple(info["notes"])


def load_with_info(
    name_or_path: str | os.PathLike, scale: int | None = None, residual_scale: float | None = None, **hub_options: Any
) -> tuple[Network, dict[str, Any]]:
    """As `load_model` and `read_info` at once, without a warning.

    Args:
        name_or_path: As in `load_model`.
        scale: As there.
        residual_scale: As there.
        hub_options: Of a repository: `token`, `cache_dir`, `force_download`, `local_files_only`, as in huggingface_hub.
    """
    return _load(name_or_path, scale, residual_scale, hub_options=hub_options)


def source_files(name_or_path: str | os.PathLike, scale: int | None = None, **hub_options: Any) -> list[Path]:
    """The files that `load_model` reads, but for packaged ones: who may not read these may not read a copy.

    Raises:
        WeightsError: As `load_model` does, where one is not there.
    """
    text = os.fsdecode(name_or_path)
    parts = None if text in NAMES or os.path.exists(text) else interpolation.parse_mixture(text)
    offline = hub_options | {"local_files_only": True, "force_download": False}
    return [_find_file(name, scale, offline).path for name in parts or [text] if name not in NAMES]


def read_info(name_or_path: str | os.PathLike, **options: Any) -> dict[str, Any]:
    """Describes the weights that `load_model` loads with the same options; same errors.

    Returns:
        `file`, `layout` (a key of `edsr.weights.edsr.LAYOUTS`), `scale`, `blocks`, `features`, `residual_scale`,
        `mean` (RGB in 0..1), `parameters` (how many the loaded network has), `dtype` (as stored, such as "float16"),
        `training` (what `save_model` was given, otherwise None), `terms` (see `edsr.weights.terms`),
        `residual_scale_source` ("file", "given", "found", "assumed", or "any" where it makes no difference) and `notes`
        (a list of what is told when it is loaded, in lines). Of a mixture, `file` is its name and `training` is
        {"mixture": {name: share}}.
    """
    return _load(name_or_path, **options)[1]


def save_model(
    model: Network,
    path: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    training: dict | None = None,
    terms: Mapping[str, Any] | None = None,
    sources: Iterable[str | os.PathLike] = (),
) -> None:
    """Writes a .safetensors file whole or not at all: an older file of that name stays until then.

    Args:
        model: The network.
        path: Where to, with the ending .safetensors.
        dtype: Floating-point type to store the weights in; by default their own.
        training: How they came about (data, steps, scores), in JSON's types; nan and inf are written as null.
        terms: Their license and the like, see `edsr.weights.terms`.
        sources: Files that the weights are from; who may not read these may not read the new one.

    Raises:
        WeightsError: The file cannot be written, is not named .safetensors, or a weight is not finite in `dtype`.
        TypeError: The model is none, or `training` or `terms` is not JSON.
    """
    check_network(model)
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise WeightsError(f"{path}: weights are written as safetensors; name the file {path.stem}.safetensors")
    config = {"architecture": model.config.architecture, **asdict(model.config)}
    metadata = {"format": FORMAT, "config": dumps(config)}
    if training is not None:
        metadata["training"] = dumps(training)
    if terms is not None:
        metadata["terms"] = dumps(terms)
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{path}: not written, {key} is not finite in {_dtype_names([tensor])}")
    check_target(path)
    write_whole(path, in_order(save(tensors, metadata)), sources)


def check_target(path: Path) -> None:
    """Raises WeightsError if no file of that name can be: there is no such folder, or it is one."""
    if not path.parent.is_dir():
        raise WeightsError(f"{path}: there is no folder {path.parent}, create it first")
    if path.is_dir():
        raise WeightsError(f"{path}: is a folder, name a file in it")


def write_whole(path: Path, data: bytes, sources: Iterable[str | os.PathLike] = ()) -> None:
    """Writes a file whole or not at all, readable by those who may read `sources`. Raises WeightsError."""
    remove_abandoned(path.parent)
    try:
        with atomic_file(path, sources=sources) as file:
            file.write(data)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror})") from error


def list_packaged() -> dict[str, tuple[int, ...]]:
    """Scales whose weights come with the package, ascending, by name; names without any are left out."""
    found = {name: tuple(s for s in SCALES if _packaged_file(name, s).is_file()) for name in NAMES}
    return {name: scales for name, scales in found.items() if scales}


def _packaged_file(name: str, scale: int) -> Path:
    return FOLDER / f"{name}-x{scale}.safetensors"


def _find_file(name: str, scale: int | None, hub_options: Mapping[str, Any] | None = None) -> hub.Located:
    """The packaged file of a preset, or the file of that path, in that folder or in that repository."""
    if name in NAMES and (path := _packaged_file(name, scale or 2)).is_file():
        return hub.Located(path)
    if name in NAMES or (name in NETWORKS and not os.path.exists(name)):
        have = ", ".join(f"{n} x{s}" for n, scales in list_packaged().items() for s in scales) or "none"
        what = f"{name} x{scale or 2}" if name in NAMES else name
        train_it = "" if name in NAMES else either("train it and ", f"train it (train --model {name}) and ")
        file = f"give a file of weights{either('', ': --model FILE')}"
        raise WeightsError(f"{what} is not packaged (packaged: {have}); {train_it}{file}")
    if os.path.isdir(name):
        return hub.locate_in(Path(name), scale)
    if os.path.exists(name) and not os.path.isfile(name):
        raise WeightsError(f"{name}: is not a regular file; give a file of weights")
    if os.path.isfile(name):
        return hub.Located(Path(name))
    if why := why_not_a_path(name):
        raise WeightsError(why)
    repository = hub.parse_repository(name)
    if repository and (folder := hub.fetch(repository, scale, **hub_options or {})):
        return hub.locate_in(folder, scale)
    how = f"; one on the Hugging Face Hub is named {hub.PREFIX}{name}" if repository else ""
    raise WeightsError(f"{name}: no such file, and not a preset ({', '.join(NAMES)}) or a mixture of these{how}")


def _load(
    name_or_path: str | os.PathLike,
    scale: int | None = None,
    residual_scale: float | None = None,
    layout: str | None = None,
    hub_options: Mapping[str, Any] | None = None,
) -> tuple[Network, dict[str, Any]]:
    """The network that `load_model` gives, and what `read_info` tells of it."""
    text = os.fsdecode(name_or_path)
    try:
        parts = None if text in NAMES or os.path.exists(text) else interpolation.parse_mixture(text)
        if parts is None:
            return _load_file(_find_file(text, scale, hub_options), scale, residual_scale, layout)
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
        "terms": mix_terms(loaded[part][1]["terms"] for part in parts),
        "notes": interpolation.notes(text) + [f"{part}: {note}" for part in parts for note in loaded[part][1]["notes"]],
    }


def load_state(
    checkpoint: Mapping[str, Any], scale: int | None = None, residual_scale: float | None = None
) -> tuple[Network, dict[str, Any]]:
    """As `load_with_info`, of what `torch.load` has read: a state_dict, under whatever wrapper.

    Args:
        checkpoint: It stays as it is. A header that its file had is not known here.
        scale: As in `load_model`.
        residual_scale: As there.

    Raises:
        WeightsError: As `load_model`, without a file's name.
    """
    return _build(checkpoint, {}, hub.Located(Path()), scale, residual_scale, None)


def _load_file(
    located: hub.Located, scale: int | None, residual_scale: float | None, layout: str | None
) -> tuple[Network, dict[str, Any]]:
    try:
        if layout is not None and layout not in (*LAYOUTS, *FAMILY):
            raise WeightsError(f"unknown layout {layout}; choose one of {', '.join((*LAYOUTS, *FAMILY))}")
        checkpoint, metadata = read_file(located.path)
        return _build(checkpoint, metadata, located, scale, residual_scale, layout)
    except WeightsError as error:
        raise WeightsError(f"{located.path}: {error}") from error.__cause__


def _build(
    checkpoint: Any,
    metadata: dict[str, str],
    located: hub.Located,
    scale: int | None,
    residual_scale: float | None,
    layout: str | None,
) -> tuple[Network, dict[str, Any]]:
    path, beside, _ = located
    stored = {k: _on_cpu(v) for k, v in unwrap(checkpoint).items() if not k.endswith(COUNTER)}
    for key, value in stored.items():
        if not _is_plain(value):
            raise WeightsError(f"not a file of weights: {key} is not a floating-point tensor")
    if residual_scale is not None and not 0 <= residual_scale <= MAX_RESIDUAL_SCALE:
        raise WeightsError(f"a residual scale is a number such as 1 or 0.1, not {residual_scale}")
    tensors = expand_collapsed_upsampler(stored)
    header = hub.agree(located, header_config(metadata) if layout in (None, FORMAT) else None)
    if beside and beside.layout != FORMAT:
        layout, residual_scale = beside.layout, _only(beside.config, residual_scale)
    other = header is not None and header.architecture != "edsr"
    family = FORMAT if other else layout if layout in FAMILY else find_layout(tensors) if not layout else None
    name = family or layout or detect_layout(tensors)
    header = header if name == FORMAT else None
    notes: list[str] = []
    if family:
        model, name, notes = build_family(tensors, family, scale, residual_scale, header)
        source = "" if not isinstance(model, MDSR) else "given" if residual_scale is not None else "file"
    elif header:
        assert isinstance(header, EDSRConfig)
        model, source = build_model(tensors, name, residual_scale, header), "file"
    else:
        layouts = AMBIGUOUS if layout is None and name in AMBIGUOUS else ()
        model, name, source = readings.resolve(tensors, name, residual_scale, layouts)
    hub.check_agreement(beside, name, model.config)
    source = "file" if beside and source else source
    if scale is not None and scale != model.config.scale:
        raise WeightsError(f"its network upscales x{model.config.scale}, not x{scale}; give another file")
    training = header_json(metadata, "training") if header and "training" in metadata else None
    kept = header_json(metadata, "terms") if header and "terms" in metadata else unwrap_terms(checkpoint)
    info = {"file": str(path), "layout": name, "architecture": model.config.architecture, **asdict(model.config)}
    info |= {"parameters": sum(p.numel() for p in model.parameters())}
    info |= {"dtype": _dtype_names(stored.values()), "training": training}
    if path.parent == FOLDER:
        kept = {"license": PACKAGED_LICENSE} | (kept or {})
    assumed = assumptions(model.config, name, stored, source, notes, header is not None)
    info |= {"terms": make_terms(kept, training, assumed, name)}
    info |= {"residual_scale_source": source} if source else {}
    return model.eval(), info | {"notes": notes if family else _notes(model.config, source)}


def _only(config: NetworkConfig, residual_scale: float | None) -> float:
    """The residual scale that a config.json states. Raises WeightsError if another one is given."""
    stated = getattr(config, "residual_scale", 1.0)
    if residual_scale not in (None, stated):
        raise WeightsError(f"its config.json says residual scale {stated:g}, not {residual_scale:g}; leave it out")
    return stated


def _notes(config: EDSRConfig, source: str) -> list[str]:
    """What is told of a file whose residual scale was assumed, or is not the usual one."""
    used = f"residual scale {config.residual_scale:g}"
    if source == "assumed":
        why = "neither the file nor its weights tell; if colors are wrong, give"
        return [f"{used} assumed: {why} {either('residual_scale', '--residual-scale')}"]
    usual = published_residual_scale("", config.blocks, config.features)
    if source == "found" and config.residual_scale != usual:
        sets = either("residual_scale", "--residual-scale")
        return [f"{used}, found from the weights: the file does not state it; {sets} sets another"]
    return []


def _on_cpu(value: Any) -> Any:
    """The value, on the CPU if it is a tensor of a GPU's, as programs hand over that load files to there."""
    return value.cpu() if isinstance(value, Tensor) and value.device.type not in ("cpu", "meta") else value


def _is_plain(value: Any) -> bool:
    """Whether it is a dense floating-point tensor, all of it in the file: an expanded one could need any memory."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _dtype_names(tensors: Iterable[Tensor]) -> str:
    return ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors}))

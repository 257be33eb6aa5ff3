"""Checkpoints for other projects: this project's networks under their names, in their values, as files they load.

What is read back from such a file (`edsr.weights.load_model`) is the same network, bit for bit. Neither project's file
states the residual scale; `reading_options` says how to set it there.
"""

import io
import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edsr.errors import WeightsError
from edsr.models import DIV2K_MEAN, EDSR, EDSRConfig, Network, check_network
from edsr.strict_json import dumps

from .edsr import LAYOUTS, MEAN_SHIFT, build_model
from .files import check_target, write_whole
from .unwrapping import TERMS

PROJECTS = {".pt": "edsr-pytorch", ".pth": "basicsr"}
"""The layout, a key of `edsr.weights.edsr.LAYOUTS`, that a file of each ending gets."""


def save_checkpoint(
    model: Network,
    path: str | os.PathLike[str],
    sources: Iterable[str | os.PathLike[str]] = (),
    terms: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network for another project, whole or not at all: EDSR-PyTorch's .pt, or BasicSR's .pth.

    Args:
        model: The network.
        path: Where to.
        sources: See `save_model`.
        terms: See `save_model`; they go into the metadata that a state_dict has for the versions of its modules, where
            no project's loader minds them.

    Raises:
        WeightsError: The ending is another one, the file cannot be written, or that project has no such network.
        TypeError: The model is none.
    """
    check_network(model)
    path = Path(path)
    if model.config.architecture != "edsr":
        raise WeightsError(
            f"{path}: not written, the network is of {model.config.architecture}, and only EDSR's go there"
        )
    layout = PROJECTS.get(path.suffix.lower())
    if layout is None:
        raise WeightsError(f"{path}: name a .pt file for EDSR-PyTorch, or a .pth file for BasicSR")
    check_target(path)
    assert isinstance(model, EDSR)
    try:
        tensors = OrderedDict(project_tensors(model, layout))
    except WeightsError as error:
        raise WeightsError(f"{path}: not written, {error}") from None
    if terms is not None:
        setattr(tensors, "_metadata", OrderedDict({"": {"version": 1}, TERMS: dumps(terms)}))  # noqa: B010
    buffer = io.BytesIO()
    torch.save({"params": tensors} if layout == "basicsr" else tensors, buffer)
    write_whole(path, buffer.getvalue(), sources)


def reading_options(config: EDSRConfig, layout: str) -> str:
    """How the project of a layout is told what its file does not state: a line for a person."""
    c = config
    if layout == "basicsr":
        mean = ", ".join(map(str, c.mean))
        sizes = f"num_feat: {c.features}, num_block: {c.blocks}, upscale: {c.scale}, res_scale: {c.residual_scale:g}"
        return f"BasicSR: network_g: {{type: EDSR, num_in_ch: 3, num_out_ch: 3, {sizes}, rgb_mean: [{mean}]}}"
    sizes = f"--n_resblocks {c.blocks} --n_feats {c.features} --res_scale {c.residual_scale:g}"
    return f"EDSR-PyTorch: --model EDSR --scale {c.scale} {sizes}"


def project_tensors(model: EDSR, layout: str) -> dict[str, Tensor]:
    """The network's tensors as the project of a layout has them, a key of LAYOUTS with pixels of 0..255.

    Biases are 255 times ours: in fp32 where dividing by 255 gives ours back, otherwise in fp64, which both projects'
    loaders round to fp32 themselves.

    Raises:
        WeightsError: The mean cannot be stated; without a file's name.
    """
    config, state = model.config, {key: value.detach().cpu().float() for key, value in model.state_dict().items()}
    span = LAYOUTS[layout].rgb_range
    tensors = {}
    for theirs, ours in LAYOUTS[layout].names(config.blocks, len(config.shuffle_factors)).items():
        tensors[f"{theirs}.weight"] = state[f"{ours}.weight"].contiguous()
        tensors[f"{theirs}.bias"] = _multiply(state[f"{ours}.bias"], span)
    if layout == "edsr-pytorch":
        eye = torch.eye(3).view(3, 3, 1, 1)
        published = config.mean == DIV2K_MEAN  # which readers know from its rounded value
        mean = torch.tensor(config.mean, dtype=torch.float32 if published else torch.float64)
        shift = span * mean if published else _multiply(mean, span)
        tensors |= dict(zip((key for key, _ in MEAN_SHIFT), (eye, -shift, eye.clone(), shift), strict=True))
    again = build_model(tensors, layout, config.residual_scale)
    if not all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(again.config.mean, config.mean, strict=True)):
        mean = ", ".join(f"{value:g}" for value in config.mean)
        raise WeightsError(f"{layout} cannot state that its mean is {mean}; choose .safetensors or .pt")
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    return tensors


def _multiply(values: Tensor, span: float) -> Tensor:
    """span · values in fp32 if dividing gives them back, otherwise in fp64."""
    exact = span * values.double()
    rounded = exact.float()
    return rounded if torch.equal((rounded.double() / span).to(values.dtype), values) else exact

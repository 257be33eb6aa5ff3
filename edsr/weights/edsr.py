"""Weight files to networks and back, the files of other EDSR projects included.

The shape of a network is read off its tensors, never off the file name. Foreign files are brought to this
project's names and to its values in 0..1 (see `edsr.models.edsr`): where a project counts in 0..255, every bias
is divided by 255, which is exact up to one rounding.

Packaged weights lie in the folder `weights` beside this module. It holds data only: without an
`__init__.py` it cannot shadow this module.
"""

import json
import math
import os
import re
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from edsr.errors import WeightsError
from edsr.models import DIV2K_MEAN, EDSR, PRESETS, SCALES, EDSRConfig

from . import interpolation

FOLDER = Path(__file__).parent
FORMAT = "edsr-triton"
NO_MEAN = (0.0, 0.0, 0.0)
NAMES = (*PRESETS, "edsr-photo")
"""What packaged weights are called; edsr-photo is edsr-baseline trained further, on compressed images."""


@dataclass(frozen=True)
class CheckpointLayout:
    """Where a project keeps each convolution ({} is the block's number; in body_end the number of blocks).

    span: the largest pixel value its network meets. mean: RGB of full range 1, subtracted before the head.
    extras: tensors that may be there or not, none or all, with their shapes.
    """

    head: str
    conv1: str
    conv2: str
    body_end: str
    upsampler: tuple[str, str]
    tail: str
    rgb_range: float
    mean: tuple[float, float, float]
    extras: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def names(self, blocks: int, stages: int) -> dict[str, str]:
        """The project's name of each convolution -> ours."""
        table = {self.head: "head", self.body_end.format(blocks): "body_end", self.tail: "tail"}
        for i in range(blocks):
            table[self.conv1.format(i)] = f"body.{i}.conv1"
            table[self.conv2.format(i)] = f"body.{i}.conv2"
        return table | {self.upsampler[i]: f"upsampler.{i}" for i in range(stages)}

    def count_blocks(self, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
        """How many blocks and upsampler stages the keys speak of: the highest number of each, plus one."""
        digits = [re.escape(conv).replace(r"\{\}", "([0-9]{1,6})") for conv in (self.conv1, self.conv2)]
        block = re.compile(rf"(?:{digits[0]}|{digits[1]})\.(?:weight|bias)")
        blocks = max((int(m[1] or m[2]) + 1 for m in map(block.fullmatch, tensors) if m), default=0)
        stages = max((i + 1 for i in (0, 1) if f"{self.upsampler[i]}.weight" in tensors), default=0)
        return min(blocks, len(tensors)), stages  # a made-up block number must not cost memory


SHIFT = (("sub_mean.weight", (3, 3, 1, 1)), ("sub_mean.bias", (3,)))
SHIFT += (("add_mean.weight", (3, 3, 1, 1)), ("add_mean.bias", (3,)))
BLOCK = ("body.{}.conv1", "body.{}.conv2")
OFFICIAL = ("head.0", "body.{}.body.0", "body.{}.body.2", "body.{}", ("tail.0.0", "tail.0.2"), "tail.1")
# On a draw the earlier one is taken.
LAYOUTS = {
    FORMAT: CheckpointLayout("head", *BLOCK, "body_end", ("upsampler.0", "upsampler.1"), "tail", 1, DIV2K_MEAN),
    # torchSR, too: the same tensors; its forward multiplies by 255 before them and divides after.
    "edsr-pytorch": CheckpointLayout(*OFFICIAL, 255, DIV2K_MEAN, SHIFT),
    # Builds sub_mean and add_mean for 0..255 and stores them, but its forward uses neither, on 0..1.
    "super-image": CheckpointLayout(*OFFICIAL, 1, NO_MEAN, SHIFT),
    "basicsr": CheckpointLayout(
        "conv_first", *BLOCK, "conv_after_body", ("upsample.0", "upsample.2"), "conv_last", 255, DIV2K_MEAN,
        (("mean", (1, 3, 1, 1)),),
    ),
    "mmagic": CheckpointLayout(
        "conv_first", *BLOCK, "conv_after_body", ("upsample.0.upsample_conv", "upsample.1.upsample_conv"),
        "conv_last", 1, DIV2K_MEAN,
    ),
    "mlcommons": CheckpointLayout("head", *BLOCK, "body_tail", ("upsample.0", "upsample.1"), "tail", 255, NO_MEAN),
}  # fmt: skip
SCALE_OF = {(4,): 2, (9,): 3, (4, 4): 4}  # channels out of each upsampler stage, in features

# Where checkpoints keep the network beside other things, best first, and what wrappers put before its
# keys. Where some keys have such a prefix, those without it (n_averaged, losses) are not the network's.
WRAPPERS = ("params_ema", "params", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.", "generator.")


def load_model(
    name_or_path: str | os.PathLike,
    scale: int | None = None,
    residual_scale: float | None = None,
    *,
    layout: str | None = None,
) -> EDSR:
    """The network of a preset ("edsr-baseline", "edsr", "edsr-photo"), of a file, or of a mixture of these
    ("edsr-baseline:0.3+edsr-photo:0.7", see `edsr.weights.interpolation`), in fp32 on the CPU, in eval mode.

    scale: which of a preset's packaged weights (2 by default, in a mixture that of the files in it); for a
    file, what its network must have. A file that exists is taken for a file, whatever its name.
    residual_scale: what to multiply the residual branches by, where the file does not say (only this
    project's files do). By default that of the preset with as many blocks and features, otherwise 1;
    always 1 for super-image, which trained its 32 blocks of 256 features that way.

    A file is .safetensors, or anything that torch.load reads with weights_only=True. `layout` says which
    project wrote it, one of LAYOUTS; by default its keys tell, except that super-image stores what
    EDSR-PyTorch stores. Of those two the network itself tells: a trained network gives its input back,
    only larger, if the values are those it was trained on. A file with mean-shift tensors counts as
    EDSR-PyTorch's and one without as super-image's, unless the other reading does that at least twice as
    well, and well. Untrained weights, which do it in neither, need `layout` to be taken for the other.

    Raises WeightsError if there is no such file, if it is damaged, holds code, is not an EDSR network
    with exactly the tensors it should have, all finite, or if it contradicts `scale` or `residual_scale`.
    """
    return _load(name_or_path, scale, residual_scale, layout)[0]


def read_info(name_or_path: str | os.PathLike, **options: Any) -> dict[str, Any]:
    """What there is to know about the weights that `load_model` loads with the same options; same errors.

    Keys: file, layout (a key of LAYOUTS), scale, blocks, features, residual_scale, mean (RGB in 0..1),
    parameters (how many the loaded network has), dtype (as stored, e.g. "float16"), training (what
    `save_model` was given, else None). Of a mixture: file is its name, and training {"mixture": {name: share}}.
    """
    return _load(name_or_path, **options)[1]


def save_model(
    model: EDSR, path: str | os.PathLike, *, dtype: torch.dtype | None = None, training: dict | None = None
) -> None:
    """Writes a .safetensors file whole or not at all: an older file of that name stays until then.

    dtype: a floating-point type to store the weights in (default: their own). training: anything JSON
    can say about how they came about (data, steps, scores). Raises WeightsError if the file cannot be
    written, is not named .safetensors, or if a weight is not finite in `dtype`; TypeError if `training`
    is not JSON.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise WeightsError(f"{path}: weights are written as safetensors; name the file {path.stem}.safetensors")
    metadata = {"format": FORMAT, "config": json.dumps(asdict(model.config))}
    if training is not None:
        metadata["training"] = json.dumps(training)
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{path}: not written, {key} is not finite in {_dtypes([tensor])}")
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        part.write_bytes(save(tensors, metadata))  # save_file would make it readable to its owner alone
        os.replace(part, path)
    except Exception as error:  # safetensors has exceptions of its own for what the disk refuses
        raise WeightsError(f"{path}: cannot be written: {_brief(error)}") from error
    finally:
        part.unlink(missing_ok=True)


def list_packaged() -> dict[str, tuple[int, ...]]:
    """Name -> scales whose weights come with the package, ascending; those of NAMES without any left out."""
    found = {name: tuple(s for s in SCALES if _packaged_file(name, s).is_file()) for name in NAMES}
    return {name: scales for name, scales in found.items() if scales}


def _packaged_file(name: str, scale: int) -> Path:
    return FOLDER / f"{name}-x{scale}.safetensors"


def _find(name: str, scale: int | None) -> Path:
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
    text = os.fsdecode(name_or_path)
    try:
        parts = None if text in NAMES or os.path.exists(text) else interpolation.parse_mixture(text)
        if parts is None:
            return _load_one(_find(text, scale), scale, residual_scale, layout)
        files = [_load_one(_find(part, scale), scale, residual_scale, layout) for part in parts if part not in NAMES]
        alike = files[0][0].config.scale if files else scale  # of presets there are several scales to choose from
        waiting = iter(files)
        found = [
            _load_one(_find(part, alike), alike, residual_scale, layout) if part in NAMES else next(waiting)
            for part in parts
        ]
        model = interpolation.mix([model for model, _ in found], list(parts.values()), list(parts))
    except ValueError as error:
        raise WeightsError(f"{text}: {error}") from None
    return model, found[0][1] | {
        "file": text,
        "layout": FORMAT,
        "dtype": "float32",
        "training": {"mixture": parts},
    }


def _load_one(
    path: Path, scale: int | None, residual_scale: float | None, layout: str | None
) -> tuple[EDSR, dict[str, Any]]:
    try:
        if layout is not None and layout not in LAYOUTS:
            raise WeightsError(f"unknown layout {layout}; choose one of {', '.join(LAYOUTS)}")
        stored, metadata = _read(path)
        stored = _network_of(stored)
        dtype = _dtypes(stored.values())
        tensors = _uncollapse(stored)
        name = layout or detect_layout(tensors)
        header = _header(metadata) if name == FORMAT else None
        model = _build(tensors, name, residual_scale, header)
        if layout is None and name in ("edsr-pytorch", "super-image"):
            model, name = resolve_range(model, name, tensors, residual_scale)
        if scale is not None and scale != model.config.scale:
            raise WeightsError(f"its network upscales x{model.config.scale}, not x{scale}; give another file")
        training = _json(metadata, "training") if header and "training" in metadata else None
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error.__cause__
    info = {"file": str(path), "layout": name, **asdict(model.config)}
    info |= {"parameters": sum(p.numel() for p in model.parameters()), "dtype": dtype, "training": training}
    return model.eval(), info


def _read(path: Path) -> tuple[Any, dict[str, str]]:
    """What a file holds, unchecked, and the metadata in its header."""
    try:
        if path.suffix.lower() != ".safetensors":
            with warnings.catch_warnings(action="ignore"):  # they are about formats; the outcome says it all
                return torch.load(path, map_location="cpu", weights_only=True), {}
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # neither reader says what damaged bytes may lead it to
        if code := re.search(r"GLOBAL (\S+)|reduce for \w+ function (\S+)|TorchScript", str(error)):
            what = f"it holds code ({code[1] or code[2] or 'TorchScript'}) and is refused"
            raise WeightsError(f"{what}; ask for its state_dict alone") from error
        raise WeightsError(f"damaged, or not a file of weights: {_brief(error)}") from error


def _network_of(checkpoint: Any) -> dict[str, Tensor]:
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
    """A dense floating-point tensor, all of it in the file (an expanded one could ask for any memory)."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _uncollapse(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """MLCommons' `upsample_out` (features -> 3 r² channels, then a pixel shuffle), as our upsampler and tail.

    Exactly the same function: the upsampler computes it in its first channels, which the shuffle makes
    the first three, and the tail picks those with its center tap. All other weights are zero.
    """
    if "upsample_out.weight" not in tensors or "tail.weight" in tensors:
        return tensors
    features, outputs = _outputs(tensors, "body_tail"), _outputs(tensors, "upsample_out")
    weight, bias = tensors["upsample_out.weight"], tensors.get("upsample_out.bias", torch.empty(0))
    fits = weight.shape == (outputs, features, 3, 3) and bias.shape == (outputs,) and outputs in (12, 27)
    if not fits or features < 3 or tensors["body_tail.weight"].shape[1] != features:
        raise WeightsError("upsample_out must lead from the features to 12 or 27 channels, with a bias")
    rest = outputs // 3 * features - outputs
    tail = torch.zeros(3, features, 3, 3)
    tail[range(3), range(3), 1, 1] = 1
    tensors = {k: v for k, v in tensors.items() if not k.startswith("upsample_out.")}
    return tensors | {
        "upsample.0.weight": F.pad(weight.float(), (0, 0, 0, 0, 0, 0, 0, rest)),
        "upsample.0.bias": F.pad(bias.float(), (0, rest)),
        "tail.weight": tail,
        "tail.bias": torch.zeros(3),
    }


def detect_layout(tensors: dict[str, Tensor]) -> str:
    """The layout that explains the most keys, if it explains at least half of them."""

    def explained(layout: CheckpointLayout) -> int:
        convs = layout.names(*layout.count_blocks(tensors))
        own = {f"{name}.{kind}" for name in convs for kind in ("weight", "bias")} | dict(layout.extras).keys()
        return len(own & tensors.keys())

    name = max(LAYOUTS, key=lambda n: explained(LAYOUTS[n]))
    if 2 * explained(LAYOUTS[name]) < len(tensors):
        raise WeightsError(f"not an EDSR network that is known here (keys such as {next(iter(tensors))})")
    return name


def _header(metadata: dict[str, str]) -> EDSRConfig | None:
    """The configuration in the header of one of our files; None in a file that does not claim to be one."""
    if metadata.get("format") != FORMAT:
        return None
    config = _json(metadata, "config")
    try:
        red, green, blue = map(float, config["mean"])
        scale, blocks, features = (int(config[key]) for key in ("scale", "blocks", "features"))
        residual_scale = float(config["residual_scale"])
        if not all(map(math.isfinite, (red, green, blue, residual_scale))):
            raise ValueError("not finite")
        return EDSRConfig(scale, blocks, features, residual_scale, (red, green, blue))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"its header is damaged (config: {_brief(error)})") from error


def _json(metadata: dict[str, str], key: str) -> dict:
    try:
        value = json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(f"its header is damaged ({key}: {_brief(error)})") from error
    if not isinstance(value, dict):
        raise WeightsError(f"its header is damaged ({key} is not a table)")
    return value


def _build(
    tensors: dict[str, Tensor], name: str, residual_scale: float | None, header: EDSRConfig | None = None
) -> EDSR:
    """The network that the tensors of layout `name` make, checked key by key."""
    layout = LAYOUTS[name]
    config = _config(tensors, name, residual_scale, header)
    with torch.device("meta"):  # shapes only
        model = EDSR(config)
    convs = layout.names(config.blocks, len(config.shuffle_factors))
    own = {f"{k}.{kind}": f"{v}.{kind}" for k, v in convs.items() for kind in ("weight", "bias")}
    expected = {key: model.get_parameter(ours).shape for key, ours in own.items()}
    if any(key in tensors for key, _ in layout.extras):
        expected |= dict(layout.extras)
    wrong = [f"{k} is missing, expected {list(v)}" for k, v in expected.items() if k not in tensors]
    wrong += [f"{k} is unexpected" for k in tensors if k not in expected]
    both = ((k, list(tensors[k].shape), list(v)) for k, v in expected.items() if k in tensors)
    wrong += [f"{k} is {found}, expected {shape}" for k, found, shape in both if found != shape]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(f"not a whole EDSR network of layout {name}: {'; '.join(wrong[:3])}{more}")
    span, mean = _values(tensors, name)
    state = {}
    for key, ours in own.items():
        tensor = tensors[key].detach().double() / span if ours.endswith("bias") else tensors[key].detach()
        state[ours] = tensor.to(torch.float32, copy=True)
        if not state[ours].isfinite().all():
            raise WeightsError(f"{key} is not finite; the weights are broken")
    model.load_state_dict(state, assign=True)
    model.config = replace(config, mean=header.mean if header else mean)
    return model


def _config(
    tensors: dict[str, Tensor], name: str, residual_scale: float | None, header: EDSRConfig | None
) -> EDSRConfig:
    """The configuration that the shapes ask for; its mean is the header's or the layout's."""
    layout = LAYOUTS[name]
    features = _outputs(tensors, layout.head)
    if not features:
        raise WeightsError(f"{layout.head}.weight is missing or not [features, 3, 3, 3]")
    blocks, stages = layout.count_blocks(tensors)
    # A first stage that is missing beside a second one is named with the other wrong keys: say x2 for it.
    outputs = [_outputs(tensors, stage) or 4 * features for stage in layout.upsampler[:stages]]
    scale = SCALE_OF.get(tuple(n / features for n in outputs))
    if scale is None:
        channels = f"[{layout.upsampler[0]}.weight ...] with {outputs or 'no'} channels"
        raise WeightsError(f"its upsampler, {channels}, makes no x2, x3 or x4 of {features} features")
    if header:
        if header != replace(header, scale=scale, blocks=blocks, features=features):
            found = f"x{scale}, {blocks} blocks and {features} features"
            raise WeightsError(f"its tensors are those of {found}, its header says otherwise: it is damaged")
        if residual_scale not in (None, header.residual_scale):
            said = f"the file says residual scale {header.residual_scale}, not {residual_scale}"
            raise WeightsError(f"{said}; leave it out")
        return header
    if residual_scale is None:
        alike = (p for p in PRESETS.values() if (p.blocks, p.features) == (blocks, features))
        published = next(alike, EDSRConfig()).residual_scale
        residual_scale = 1.0 if name == "super-image" else published
    return EDSRConfig(scale, blocks, features, residual_scale, layout.mean)


def _outputs(tensors: dict[str, Tensor], conv: str) -> int:
    weight = tensors.get(f"{conv}.weight")
    return weight.shape[0] if weight is not None and weight.ndim == 4 else 0


def _values(tensors: dict[str, Tensor], name: str) -> tuple[float, tuple[float, float, float]]:
    """The largest pixel value the network meets, and the mean of full range 1 subtracted before it."""
    layout = LAYOUTS[name]
    span, mean = layout.rgb_range, layout.mean
    if name == "edsr-pytorch" and "sub_mean.weight" in tensors:
        one, sub, two, add = (tensors[key].detach().double() for key, _ in SHIFT)
        eye = torch.eye(3, dtype=torch.float64)
        if not all(torch.equal(w[..., 0, 0], eye) for w in (one, two)) or not torch.equal(add, -sub):
            raise WeightsError("sub_mean and add_mean are not a mean shift of standard deviation 1 and its opposite")
        span = 255 if sub.abs().max() > 1 or not sub.any() else 1  # a mean of 0 leaves the project's default
        mean = tuple((add / span).tolist())
    elif name == "basicsr" and "mean" in tensors:
        mean = tuple(tensors["mean"].double().flatten().tolist())
    if not all(0 <= m <= 1 for m in mean):
        raise WeightsError(f"its mean {list(mean)} is not within the range of its pixels")
    # No file holds the published mean exactly: it is a decimal fraction.
    published = all(math.isclose(m, d, rel_tol=1e-6) for m, d in zip(mean, DIV2K_MEAN, strict=True))
    return span, DIV2K_MEAN if published else mean


def resolve_range(model: EDSR, name: str, tensors: dict[str, Tensor], residual_scale: float | None) -> tuple[EDSR, str]:
    """EDSR-PyTorch's or super-image's, whichever reading the network bears out (see `load_model`)."""
    names = sorted(("edsr-pytorch", "super-image"), reverse="sub_mean.weight" not in tensors)
    usual, other = (model if n == name else _build(tensors, n, residual_scale) for n in names)
    if _miss(other) < min(0.05, _miss(usual) / 2):
        return other, names[1]
    return usual, names[0]


def _miss(model: EDSR) -> float:
    """Mean difference, in the middle, between a smooth image and the upscaled one averaged down again."""
    ramp = torch.linspace(0.2, 0.8, 16).expand(16, 16)
    x = torch.stack([ramp, ramp.T, ramp.flip(0, 1)])[None]
    with torch.no_grad():
        back = F.avg_pool2d(model(x), model.config.scale)
    return (back - x)[..., 4:12, 4:12].abs().mean().item()


def _dtypes(tensors: Any) -> str:
    return ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors}))


def _brief(error: Exception) -> str:
    """Its first line, of bearable length."""
    return next(iter(str(error).splitlines()), "")[:120] or type(error).__name__

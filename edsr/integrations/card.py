"""The model card: what people on the Hugging Face Hub read of a network, and what its search goes by."""

from collections.abc import Mapping
from typing import Any

from edsr.errors import printable
from edsr.models import TITLES, NetworkConfig

LICENSES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense", "openrail",
}  # fmt: skip
"""Licenses by the names that the Hub knows; others are called other there."""

NOT_STATED = "not stated"


def make_card(
    config: NetworkConfig,
    parameters: int,
    terms: Mapping[str, Any],
    record: Mapping[str, Any],
    repo_id: str = "USER/NAME",
    scores: Mapping[str, Any] | None = None,
) -> str:
    """The text of a `README.md`, with what the Hub's search reads before it.

    Args:
        config: The network's.
        parameters: How many it has.
        terms: See `edsr.weights.terms`.
        record: How its weights came about.
        repo_id: USER/NAME of its repository.
        scores: PSNR in dB, or {"psnr": ..., "ssim": ...}, by the name of a set of images; those of the record if None.
    """
    table = score_table(record.get("scores") if scores is None else scores)
    title = f"{TITLES[config.architecture]} x{config.scale}"
    parts = [f"# {title}", _introduction(config, parameters), "## Use", _use(repo_id)]
    parts += ["## Scores", _scores(table, record)]
    parts += ["## Training data", _data(terms), *_training(record)]
    parts += ["## License", _license(terms)]
    if terms["assumed"] or terms["origin"]:
        where = f"The weights come from a file of {_text(terms['origin'])}. " if terms["origin"] else ""
        lines = "\n".join(f"- {_text(line)}" for line in terms["assumed"])
        parts += ["## Assumed", f"{where}What that file does not state was found or assumed:\n\n{lines or '- nothing'}"]
    return f"---\n{_front(config, title, terms, table)}---\n\n" + "\n\n".join(parts) + "\n"


def score_table(scores: Any) -> dict[str, dict[str, float]]:
    """Scores by the name of a set, checked. Raises TypeError for what is no number."""
    table = {}
    for name, values in (scores or {}).items():
        values = values if isinstance(values, Mapping) else {"psnr": values}
        for value in values.values():
            if value is not None and not isinstance(value, int | float):
                raise TypeError(f"scores are numbers by names of sets of images, not {value!r}")
        table[str(name)] = {key.lower(): float(value) for key, value in values.items() if value is not None}
    return table


def _front(config: NetworkConfig, title: str, terms: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    license: dict[str, str] = {}
    if stated := terms["license"]:
        known = stated.lower().replace(" ", "-")
        license = {"license": known} if known in LICENSES else {"license": "other", "license_name": _text(stated)}
    results = [
        EvalResult(
            task_type="image-to-image",
            dataset_type=name.lower(),
            dataset_name=name,
            metric_type=metric,
            metric_value=value,
        )
        for name, values in table.items()
        for metric, value in values.items()
    ]
    tags = ["super-resolution", "image-upscaling", config.architecture, f"x{config.scale}"]
    evaluated: dict[str, Any] = {"eval_results": results, "model_name": title} if results else {}
    data = ModelCardData(library_name="edsr-triton", pipeline_tag="image-to-image", tags=tags, **license, **evaluated)
    return data.to_yaml() + "\n"


def _introduction(config: NetworkConfig, parameters: int) -> str:
    scales = " or ".join(str(scale) for scale in config.scales)
    shape = f"{TITLES[config.architecture]}, {config.describe()}, {parameters:,} parameters"
    return f"Upscales images {scales} times: {shape}. RGB in 0..1 at both ends."


def _use(repo_id: str) -> str:
    name = _text(repo_id if "/" in repo_id else f"USER/{repo_id}")
    return (
        f"```sh\npip install 'edsr-triton[hub]'\nedsr upscale photo.jpg --model hf-hub:{name}\n```\n\n"
        f'```python\nfrom edsr import Upscaler, load_model\n\nupscaler = Upscaler(load_model("hf-hub:{name}"))\n```'
    )


def _scores(table: Mapping[str, Mapping[str, float]], record: Mapping[str, Any]) -> str:
    rows = {name: (values.get("psnr"), values.get("ssim")) for name, values in table.items()}
    for key, name in (("validation_psnr", "validation"), ("validation_psnr_degraded", "validation, degraded images")):
        value = record.get(key)
        if isinstance(value, int | float):
            rows.setdefault(name, (value, None))
    if not rows:
        return "None are stated."
    lines = ["| Images | PSNR, dB | SSIM |", "|---|---:|---:|"]
    lines += [f"| {_text(name)} | {_number(psnr, 2)} | {_number(ssim, 4)} |" for name, (psnr, ssim) in rows.items()]
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _data(terms: Mapping[str, Any]) -> str:
    data = ", ".join(map(_text, terms["data"])) or NOT_STATED
    licenses = ", ".join(map(_text, terms["data_licenses"])) or NOT_STATED
    return f"- Images: {data}\n- Their licenses: {licenses}"


def _training(record: Mapping[str, Any]) -> list[str]:
    """A line of how it was trained, if anything is known."""
    left_out = ("data", "license", "licenses", "scores")
    told = [f"{_text(key)} {_text(value)}" for key, value in record.items() if key not in left_out]
    return [f"Training: {'; '.join(told)}."] if told else []


def _license(terms: Mapping[str, Any]) -> str:
    if terms["license"]:
        return f"Of the weights: {_text(terms['license'])}."
    return "Of the weights: not stated. Ask whoever published them before you use them for more than trying."


def _text(value: Any) -> str:
    """A text that somebody else may have written, harmless in a line of Markdown or in a cell of a table."""
    text = printable(str(value)).replace("\\", "\\\\")
    return "".join(f"\\{c}" if c in "|`[]<>*#" else c for c in text)

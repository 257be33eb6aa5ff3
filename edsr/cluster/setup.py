"""What every worker of a batch is given, and must be found to agree on."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from edsr.batch import UpscaleOptions, UpscalerPool
from edsr.errors import WeightsError
from edsr.storage import Place
from edsr.weights import AUTO, FAITHFUL, available_scales, load_model

CORRECTING = "edsr-photo"
"""What "auto" mixes in."""


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know.

    Args:
        network: Arguments of `UpscalerPool` but for its devices, by name.
        device: As `edsr.Upscaler` takes it: "cpu" or "cuda".
        threads: That compute in a worker.
        options: What is wanted of every image.
        tag: What the names of results end in.
        folder: The current folder, from which relative names go.
        output: Where results go; what can be told beforehand of writing there must be well.
        probe: A file in the output's folder that must be seen; None for a URL.
        sample: An input that must be seen, and its size in bytes.
        fingerprint: See `fingerprint`.
        environment: Variables that are set where they are not.
        on_command_line: Whether messages name options of the command line.
    """

    network: dict
    device: str
    threads: int
    options: UpscaleOptions
    tag: str
    folder: Path
    output: Place
    probe: Path | None
    sample: tuple[Place, int] | None
    fingerprint: str
    environment: dict[str, str] = field(default_factory=dict)
    on_command_line: bool = False

    def pool(self) -> UpscalerPool:
        """The networks, on this setup's device."""
        return UpscalerPool(devices=[self.device], **self.network)


def fingerprint(model: str, scale: int | None, residual_scale: float | None = None) -> str:
    """A hash of all weights that a batch may use: the same wherever these are.

    Args:
        model, scale, residual_scale: As `UpscalerPool` takes them.

    Raises:
        WeightsError: They cannot be had.
    """
    digest = hashlib.sha256()
    for name in (FAITHFUL, CORRECTING) if model == AUTO else (model,):
        for one in [scale] if scale is not None else available_scales(model) or [None]:
            try:
                network = load_model(name, one, residual_scale)
            except WeightsError as error:
                if name != CORRECTING or model != AUTO:
                    raise
                digest.update(type(error).__name__.encode())
                continue
            digest.update(repr(network.config).encode())
            for key, tensor in sorted(network.state_dict().items()):
                digest.update(key.encode())
                digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
